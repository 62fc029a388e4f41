// Package translate turns what users of Kubernetes write into what a dataplane holds, in two steps of pure functions.
//
// In the tenant cluster, a Service with its nodes and EndpointSlices becomes the requested LoadBalancer (DesiredLoadBalancer, NodeAddresses).
// On the hub, LoadBalancers, Addresses and Tenants become the model (Translator), one change at a time: a changed LoadBalancer is
// translated again alone, and a node that joins or leaves changes one pool. For anything that cannot be served there is a
// Problem that names the field and the fix, never a panic.
package translate
