// Package explain goes the whole way from objects to the model in one call, without a cluster: what a tenant's CCM would
// write, which address the hub would give, what every gateway would hold, and why something is left out. It only calls
// what the CCM and the manager call. It does not ask whether an API server would take the objects; 'kubelb render' does.
//
// # The document format, version v1
//
// JSON takes a document of type Input and returns one of type Output; both name their version. Fields have the names in
// the types' tags, addresses, CIDRs and families their usual text forms; what is absent has its zero value. Within v1
// fields may be added, and none changes its meaning or goes. An unknown field is an error, so that a typing error cannot
// pass for a default. The answer depends on nothing but the input: no clock, no random number, no order of a map. The
// order of lists does not matter either, save that of address pools (the oldest first) and that of ports within an object.
//
// core.wasm (package wasm) offers the same call to other languages and to browsers.
package explain
