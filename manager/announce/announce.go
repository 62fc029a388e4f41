// Package announce makes the hosts of a network send packets for VIPs to this gateway.
package announce

import (
	"context"
	"net/netip"

	"kubelb.k8c.io/core/ipam"
)

// Announcer announces a set of addresses. Implementations are safe for concurrent use.
type Announcer interface {
	// Announce adds addresses to the set and announces them.
	Announce(addresses ...netip.Addr)
	// Withdraw removes addresses from the set. When it returns, this gateway does not answer for them any more.
	Withdraw(addresses ...netip.Addr)
	// CanAnnounce reports whether any host or router can receive announcements. It is false while all links are down.
	CanAnnounce() bool
	// SilentReason returns why no host or router receives announcements of this family. It is empty if one does.
	SilentReason(ipam.Family) string
	// Run announces until ctx ends, and then withdraws all addresses.
	Run(ctx context.Context) error
}

// None announces nothing: packets for VIPs reach this gateway by other means.
type None struct{}

var _ Announcer = None{}

// Announce does nothing.
func (None) Announce(...netip.Addr) {}

// Withdraw does nothing.
func (None) Withdraw(...netip.Addr) {}

// CanAnnounce always returns true.
func (None) CanAnnounce() bool { return true }

// SilentReason always returns an empty text.
func (None) SilentReason(ipam.Family) string { return "" }

// Run waits for ctx to end.
func (None) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}
