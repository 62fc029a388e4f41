// Package validation says what API servers refuse, without one.
//
// LoadBalancers, Addresses, Tenants and the other kinds of kubelb.k8c.io are judged by the CustomResourceDefinitions of package crds and by the
// API server's own libraries: schema, defaults, list types and CEL rules. Messages are the API server's.
//
// Services, Nodes and EndpointSlices have no such library. The rules here are those of Kubernetes 1.37 for the fields that matter for load
// balancing. An end-to-end test compares the verdicts with a real API server's for each input of the corpus.
//
// Objects that are stored already are judged as new ones. So of two releases of Kubernetes the rules of the more lenient one are here: a network
// with bits behind its prefix, such as 192.0.2.7/24, is taken, which Kubernetes 1.36 and later refuse in new objects.
//
// Not judged: admission policies and webhooks; what depends on other objects or on the cluster's configuration (NodePorts that are taken or out of
// the cluster's range, cluster IPs, families that the cluster lacks, quotas); changes of an object that is there (immutable fields); fields of
// Services and Nodes that do not matter for load balancing.
package validation
