// Package explain translates objects to the model in one call, without a cluster. It shows what a tenant's CCM would
// write, which address the hub would allocate, what every gateway would hold, and why something is left out. It calls the
// same functions as the CCM and the manager. It does not check whether an API server would take the objects; 'kubelb
// render' does.
//
// # The document format, version v1
//
// JSON takes a document of type Input and returns one of type Output. Both have the field version. Fields have the names in
// the types' tags. Addresses, CIDRs and families have their usual text forms. Absent fields have their zero values. Within v1
// fields may be added, but no field is removed or changes its meaning. An unknown field is an error, so that a misspelt field
// is not silently ignored. The output depends on the input only: not on a clock, random numbers or the order of a map. The
// order of lists does not matter either, except that of address pools (the oldest first) and of ports within an object.
//
// core.wasm (package wasm) offers the same call to other languages and to browsers.
package explain
