// Package conformance judges a dataplane by packets: it drives a backend through the plugin contract only, in a lab of
// network namespaces, and looks at what arrives where.
package conformance
