// Package announcetest has announcers for tests of who announces: they tell no network.
package announcetest

import (
	"context"
	"net/netip"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/manager/announce"
)

// Board notes what is announced.
type Board map[netip.Addr]bool

var _ announce.Announcer = Board{}

// Announce notes the addresses.
func (b Board) Announce(addresses ...netip.Addr) {
	for _, a := range addresses {
		b[a] = true
	}
}

// Withdraw forgets the addresses.
func (b Board) Withdraw(addresses ...netip.Addr) {
	for _, a := range addresses {
		delete(b, a)
	}
}

// Able tells that announcements are heard.
func (Board) Able() bool { return true }

// Silent tells that hosts hear of each family.
func (Board) Silent(ipam.Family) string { return "" }

// Run does nothing.
func (Board) Run(context.Context) error { return nil }

// Mute is a Board that nobody hears of some families, or of any.
type Mute struct {
	Board
	// IsAble is what Able tells, Why is what Silent tells of a family.
	IsAble bool
	Why    map[ipam.Family]string
}

// Able tells whether announcements are heard.
func (m Mute) Able() bool { return m.IsAble }

// Silent tells why nobody hears of a family.
func (m Mute) Silent(f ipam.Family) string { return m.Why[f] }
