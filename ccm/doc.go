// Package ccm is kubelb-ccm, the cloud controller manager of a tenant cluster. It watches Services of type LoadBalancer, their EndpointSlices and the nodes.
// From these it writes the LoadBalancers and the Addresses in the tenant's namespace on the management cluster (hub). It copies the hub's answer
// into the status, the condition and the events of each Service.
//
// It owns a Service if the Service's loadBalancerClass is kubelb, or if the Service has no class and --use-loadbalancer-class is not set. It never
// changes Services of other classes.
package ccm
