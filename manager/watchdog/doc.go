// Package watchdog tries a gateway's own frontends as a client does. Everything else that a gateway says of a frontend it says from what it has told its
// dataplane; this package sends a SYN and waits for the answer.
//
// The SYN comes from an address that no host has, by a pair of virtual interfaces. It enters the host's network as a client's packet does, passes the
// dataplane, reaches an endpoint, and the answer takes the same way back. No socket of the host is involved: the host's own connections pass by some
// dataplanes.
//
// What cannot be tried is not tried: UDP, where only the Service knows what is an answer; frontends that are forwarded direct, whose answers go past the
// gateway; frontends whose source ranges do not let the address in; frontends without an endpoint, which refuse connections on purpose.
package watchdog
