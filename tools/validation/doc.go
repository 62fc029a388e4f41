// Package validation finds the objects that API servers refuse, without an API server.
//
// It checks LoadBalancers, Addresses, Tenants and the other kinds of kubelb.k8c.io with the CustomResourceDefinitions of package crds and with the
// API server's libraries: schema, defaults, list types and CEL rules. The messages are those of the API server.
//
// There is no such library for Services, Nodes and EndpointSlices. The package has the rules of Kubernetes 1.37 for the fields that matter for load
// balancing. An end-to-end test compares its verdicts with those of a real API server for each input of the corpus.
//
// It checks stored objects like new ones. If releases of Kubernetes differ, it has the more lenient rule: it accepts a network with bits after its
// prefix, such as 192.0.2.7/24, which Kubernetes 1.36 and later refuse in new objects.
//
// It does not check admission policies and webhooks; conditions of other objects or of the cluster's configuration (NodePorts that are taken or out
// of range, cluster IPs, address families that the cluster lacks, quotas); changes of existing objects (immutable fields); fields of Services and
// Nodes that do not matter for load balancing.
package validation
