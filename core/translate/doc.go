// Package translate turns what users of Kubernetes write into what a dataplane holds, in two steps of pure functions.
//
// In the tenant cluster, a Service with its nodes and EndpointSlices becomes the wished LoadBalancer (Wish, NodeAddresses).
// On the management cluster, LoadBalancers, Addresses and Tenants become the model (Hub), one change at a time: a changed
// LoadBalancer re-translates one LoadBalancer, a node that joins or leaves changes one pool. What cannot be served yields
// a Problem that names the field and the fix, never a panic.
package translate
