// Package example is a short example of a dataplane that a third party could write: a proxy in user space. It is for reading,
// for testing the conformance suite, and to begin with: docs/plugin.md says how to copy it into a module of your own. Do not use it in
// production.
//
// It keeps the digests of its records, listens at the frontends, and applies a change record by record. Package maglev
// chooses the endpoint of a flow among the pool's endpoints, as in other dataplanes.
//
// It does not declare the features that it lacks (source ranges, affinity and so on), and refuses records that need them.
// The suite also finds what this proxy cannot do: its connections end with the process, and the host answers at external addresses.
package example
