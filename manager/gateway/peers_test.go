package gateway

import (
	"context"
	"sync/atomic"
	"time"

	"kubelb.k8c.io/core/election"
	"kubelb.k8c.io/manager/heartbeat"
	"kubelb.k8c.io/manager/membership"
)

// fixedPeers are the peers of a gateway that has its Lease.
type fixedPeers []membership.Peer

func (fixedPeers) ActivePeers() ([]election.Peer, []string, bool) { return nil, nil, true }
func (n fixedPeers) AllPeers() []membership.Peer                  { return n }
func (fixedPeers) Publish(membership.Published)                   {}
func (fixedPeers) IsPublished(election.View) bool                 { return true }
func (fixedPeers) ReachesAPI() bool                               { return true }
func (fixedPeers) SetWriteError(string)                           {}
func (fixedPeers) LastError() error                               { return nil }
func (fixedPeers) Run(context.Context) error                      { return nil }

// changingPeers are peers that change.
type changingPeers struct{ fixedPeers }

// fakeLease is this gateway's Lease, without other gateways on the segment.
type fakeLease struct{ holds atomic.Bool }

func (l *fakeLease) LeaseNumber() (uint64, bool)  { return 1, l.holds.Load() }
func (*fakeLease) PeerState() heartbeat.PeerState { return heartbeat.NoPeer }
func (*fakeLease) PeersSince(time.Duration) (leased, missing bool) {
	return false, false
}
