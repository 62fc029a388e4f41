// Package announcetest has announcers for tests. They send no packets.
package announcetest

import (
	"context"
	"net/netip"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/manager/announce"
)

// Board records the announced addresses.
type Board map[netip.Addr]bool

var _ announce.Announcer = Board{}

// Announce adds the addresses.
func (b Board) Announce(addresses ...netip.Addr) {
	for _, a := range addresses {
		b[a] = true
	}
}

// Withdraw removes the addresses.
func (b Board) Withdraw(addresses ...netip.Addr) {
	for _, a := range addresses {
		delete(b, a)
	}
}

// Able always returns true.
func (Board) Able() bool { return true }

// Silent always returns an empty text.
func (Board) Silent(ipam.Family) string { return "" }

// Run does nothing.
func (Board) Run(context.Context) error { return nil }

// Mute is a Board whose announcements of some families, or of all, reach nobody.
type Mute struct {
	Board
	// IsAble is the result of Able, Why has the results of Silent.
	IsAble bool
	Why    map[ipam.Family]string
}

// Able returns IsAble.
func (m Mute) Able() bool { return m.IsAble }

// Silent returns the text for the family.
func (m Mute) Silent(f ipam.Family) string { return m.Why[f] }
