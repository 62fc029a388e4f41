// Package conformance judges dataplanes: it drives a backend through the plugin contract only, in a lab of network
// namespaces, and looks at what arrives where.
//
// A backend's own tests call Run; operators and third parties run the binary kubelb-conformance. What there is to show is
// in package cases, the network in package lab.
package conformance
