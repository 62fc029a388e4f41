// Package ccm is the tenant side: it watches Services of type LoadBalancer, their EndpointSlices and the nodes, and keeps
// the LoadBalancers and the Addresses in the tenant's namespace on the management cluster accordingly. What the hub
// answers goes back into the Services' status, conditions and events.
//
// It owns a Service when its loadBalancerClass is kubelb, or when it has none and the class is not required. Services of
// other classes are never touched, in any way.
package ccm
