// Package watchdog tries a gateway's own TCP frontends: a try connects to a frontend as a client does. The rest of a gateway's status says what its
// dataplane was sent. A try shows what happens to connections.
//
// A try sends its SYN from an address that no host has, by a pair of virtual interfaces (veth). The SYN enters the host as a client's packet does,
// passes the dataplane, and reaches an endpoint. The answer takes the same way back. No socket of the host is involved: some dataplanes do not see
// the host's own connections.
//
// Some frontends are not tried: UDP, since only the application knows what counts as an answer; forwarding direct, since answers bypass the gateway;
// source ranges that exclude the address; frontends without an endpoint, which refuse connections on purpose.
//
// Neighbours checks whether hosts on the clients' segment still answer this host.
package watchdog
