// Package envoy is the dataplane in Envoy, the proxy that KubeLB's users know.
//
// A frontend is a listener, a cluster and its endpoints in Envoy (resources.go), which the plugin serves over incremental xDS
// on a socket that only Envoy reaches (xds.go). Pool, target port and endpoints stand in the last of the three, so that
// their changes touch no listener and no connection. Envoy belongs to a process of its own (package supervisor) and
// serves what it has while the plugin is away; the plugin keeps in a file what that is (store.go), and serves nothing
// before it knows.
//
// Packets for a VIP, which is on no interface, are brought to Envoy's sockets by marks and a routing rule (guard.go). The
// same rules refuse what nobody serves, and enforce source ranges for TCP and UDP.
//
// The plugin remembers the clients of frontends with affinity (client_table.go). Envoy asks it for their endpoints (affinity.go, affinity_filters.go).
//
// What a proxy cannot do: a connection is accepted before its endpoint is known to answer, endpoints see the gateway's
// address, and connections end with Envoy itself.
package envoy
