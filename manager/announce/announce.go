// Package announce makes a network's hosts send packets for VIPs to this gateway.
package announce

import (
	"context"
	"net/netip"

	"kubelb.k8c.io/core/ipam"
)

// Announcer answers for a set of addresses. Implementations are safe for concurrent use.
type Announcer interface {
	// Announce adds addresses to the set and makes them known.
	Announce(addresses ...netip.Addr)
	// Withdraw removes addresses from the set; when it returns they are no longer answered for.
	Withdraw(addresses ...netip.Addr)
	// Able tells whether anything would be heard: a gateway whose links are down is of no use to anybody.
	Able() bool
	// Silent is why nobody would hear of an address of the family, empty if somebody does.
	Silent(ipam.Family) string
	// Run announces until ctx ends; then nothing is answered any more.
	Run(ctx context.Context) error
}

// None announces nothing: packets for VIPs are routed to this gateway by other means.
type None struct{}

var _ Announcer = None{}

// Announce does nothing.
func (None) Announce(...netip.Addr) {}

// Withdraw does nothing.
func (None) Withdraw(...netip.Addr) {}

// Able is always the case.
func (None) Able() bool { return true }

// Silent is never the case.
func (None) Silent(ipam.Family) string { return "" }

// Run waits for ctx to end.
func (None) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}
