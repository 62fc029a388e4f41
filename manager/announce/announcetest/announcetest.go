// Package announcetest has announcers for tests. They send no packets.
package announcetest

import (
	"context"
	"net/netip"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/manager/announce"
)

// Recorder records the announced addresses.
type Recorder map[netip.Addr]bool

var _ announce.Announcer = Recorder{}

// Announce adds the addresses.
func (b Recorder) Announce(addresses ...netip.Addr) {
	for _, a := range addresses {
		b[a] = true
	}
}

// Withdraw removes the addresses.
func (b Recorder) Withdraw(addresses ...netip.Addr) {
	for _, a := range addresses {
		delete(b, a)
	}
}

// CanAnnounce always returns true.
func (Recorder) CanAnnounce() bool { return true }

// SilentReason always returns an empty text.
func (Recorder) SilentReason(ipam.Family) string { return "" }

// Run does nothing.
func (Recorder) Run(context.Context) error { return nil }

// SilentRecorder is a Recorder whose announcements of some families, or of all, reach nobody.
type SilentRecorder struct {
	Recorder
	// IsWorking is the result of CanAnnounce, Reasons has the results of SilentReason.
	IsWorking bool
	Reasons   map[ipam.Family]string
}

// CanAnnounce returns IsWorking.
func (m SilentRecorder) CanAnnounce() bool { return m.IsWorking }

// SilentReason returns the text for the family.
func (m SilentRecorder) SilentReason(f ipam.Family) string { return m.Reasons[f] }
