package gateway

import (
	"context"
	"sync/atomic"
	"time"

	"kubelb.k8c.io/core/election"
	"kubelb.k8c.io/manager/heartbeat"
	"kubelb.k8c.io/manager/membership"
)

// neighbours are peers, as their Leases say, of a gateway that holds its own.
type neighbours []membership.Peer

func (neighbours) ActivePeers() ([]election.Peer, []string, bool) { return nil, nil, true }
func (n neighbours) AllPeers() []membership.Peer                  { return n }
func (neighbours) Publish(membership.Published)                   {}
func (neighbours) IsPublished(election.View) bool                 { return true }
func (neighbours) Reaches() bool                                  { return true }
func (neighbours) SetWriteError(string)                           {}
func (neighbours) LastError() error                               { return nil }
func (neighbours) Run(context.Context) error                      { return nil }

// changing are peers that change.
type changing struct{ neighbours }

// lease is this gateway's, where no other gateway is on the segment.
type lease struct{ holds atomic.Bool }

func (l *lease) LeaseNumber() (uint64, bool)  { return 1, l.holds.Load() }
func (*lease) PeerState() heartbeat.PeerState { return heartbeat.NoPeer }
func (*lease) PeersSince(time.Duration) (leased, missing bool) {
	return false, false
}
