package gateway

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/manager/announce/announcetest"
)

func TestAGatewayWithACordonedNodeDrainsAsLongAsPeersTakeOver(t *testing.T) {
	peers := &changingPeers{}
	g := New(Options{Name: "g", AnnounceOptions: AnnounceOptions{Announcer: announcetest.Recorder{}}, PeerOptions: PeerOptions{Member: peers}, Log: slog.New(slog.DiscardHandler)}, nil, nil)
	g.ownership.Add(netip.MustParseAddr("203.0.113.1"))
	there, gone := fixedPeers{{Name: "other", Active: true, CanTakeOver: true}}, fixedPeers{{Name: "other", CanTakeOver: true}}
	now := time.Now()
	drains := func(others fixedPeers, in time.Duration) bool {
		peers.fixedPeers = others
		g.drain.Update(now.Add(in), g.ownership.IsReplaced)
		return g.drain.Draining()
	}
	require.False(t, drains(there, 0), "there is no reason")
	g.drain.Cordon(true)
	require.False(t, drains(gone, 0), "no peer takes over")
	require.False(t, drains(gone, time.Hour))
	require.False(t, drains(there, time.Hour))
	require.False(t, drains(there, time.Hour+time.Second-1), "other gateways with cordoned Nodes may drain first")
	require.True(t, drains(there, time.Hour+10*time.Second))
	require.True(t, drains(there, 2*time.Hour))
	require.False(t, drains(gone, 2*time.Hour), "no other gateway is left")
	require.False(t, drains(there, 2*time.Hour))
	require.True(t, drains(there, 3*time.Hour))
	g.drain.Cordon(false)
	require.False(t, drains(there, 3*time.Hour))
	g.drain.Request(true)
	require.True(t, drains(gone, 3*time.Hour), "a request of the operator counts in any case")
}

// Gateways know the state of their peers with a delay.
func TestOfGatewaysWithCordonedNodesOneStays(t *testing.T) {
	names := []string{"g1", "g2", "g3"}
	gateways, peers := map[string]*Gateway{}, map[string]*changingPeers{}
	for _, name := range names {
		peers[name] = &changingPeers{}
		g := New(Options{Name: name, AnnounceOptions: AnnounceOptions{Announcer: announcetest.Recorder{}}, PeerOptions: PeerOptions{Member: peers[name]}, Log: slog.New(slog.DiscardHandler)}, nil, nil)
		g.ownership.Add(netip.MustParseAddr("203.0.113.1"))
		g.drain.Cordon(true)
		gateways[name] = g
	}
	const step, known = 20 * time.Millisecond, 10 // updates until peers know
	now := time.Now()
	var said []map[string]bool
	staying := 0
	for range int(5 * time.Minute / step) {
		now = now.Add(step)
		is := map[string]bool{}
		for name, g := range gateways {
			var others fixedPeers
			for _, other := range names {
				if other != name {
					others = append(others, fixedPeers{{Name: other, Active: true, CanTakeOver: true, Draining: len(said) >= known && said[len(said)-known][other]}}...)
				}
			}
			peers[name].fixedPeers = others
			g.drain.Update(now, g.ownership.IsReplaced)
			is[name] = g.drain.Draining()
		}
		said = append(said, is)
		staying = 0
		for _, drains := range is {
			if !drains {
				staying++
			}
		}
	}
	require.Equal(t, 1, staying)
}
