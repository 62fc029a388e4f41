// Package envoy is the dataplane that uses Envoy, the proxy that KubeLB's users know.
//
// A frontend is a listener, a cluster and a load assignment in Envoy (resources.go). The plugin serves them over incremental
// xDS on a socket that only Envoy reaches (xds.go). Pool, target port and endpoints are only in the load assignment, so that
// their changes affect no listener and no connection. A process of its own runs Envoy (package supervisor), so that Envoy goes
// on without the plugin. The plugin writes what Envoy serves to a file (store.go), and serves nothing before it has read it.
//
// A VIP is on no interface. Marks and a routing rule deliver packets for it to Envoy's sockets (ruleset.go). The same nftables
// rules refuse flows to ports that are not served, and enforce source ranges for TCP and UDP.
//
// The plugin stores the clients of frontends with affinity (client_table.go). Envoy asks it for their endpoints (affinity.go,
// affinity_filters.go).
//
// Limits of a proxy: a connection is accepted before its endpoint is known to answer, endpoints see the gateway's address, and
// connections end with Envoy.
package envoy
