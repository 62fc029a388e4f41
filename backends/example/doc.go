// Package example is a dataplane as a third party would write one, in as few lines as it takes: a proxy in user space. It
// is for reading, and for measuring the conformance suite; nobody should run it.
//
// A backend keeps what it was told by digest, opens what is to be served, and answers Apply record by record. Which
// endpoint a flow meets is decided by package maglev over the pool's endpoints, as in any other backend.
//
// What it cannot do, it does not declare (source ranges, affinity and so on), and refuses. What it cannot do by its nature,
// the suite finds out: connections end with the process, since they end in it.
package example
