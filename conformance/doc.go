// Package conformance tests dataplanes: it drives a plugin in a lab of network namespaces, through the plugin contract
// alone, and checks which packets arrive where.
//
// Tests of a dataplane call Test. Operators and third parties run the program kubelb-conformance. Package cases has the
// cases, package lab the network.
package conformance
