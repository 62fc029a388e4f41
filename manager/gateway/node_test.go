package gateway

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/manager/announce/announcetest"
)

func TestAGatewayWhoseNodeIsCordonedDrainsAsLongAsOthersTakeOver(t *testing.T) {
	peers := &changing{}
	g := New(Options{Name: "g", AnnounceOptions: AnnounceOptions{Announcer: announcetest.Board{}}, PeerOptions: PeerOptions{Member: peers}, Log: slog.New(slog.DiscardHandler)}, nil, nil)
	g.ownership.Add(netip.MustParseAddr("203.0.113.1"))
	there, gone := neighbours{{Name: "other", Active: true, CanTakeOver: true}}, neighbours{{Name: "other", CanTakeOver: true}}
	now := time.Now()
	drains := func(others neighbours, in time.Duration) bool {
		peers.neighbours = others
		g.drain.Update(now.Add(in), g.ownership.IsReplaced)
		return g.drain.Draining()
	}
	require.False(t, drains(there, 0), "nobody wishes so")
	g.drain.Cordon(true)
	require.False(t, drains(gone, 0), "nobody takes over")
	require.False(t, drains(gone, time.Hour))
	require.False(t, drains(there, time.Hour))
	require.False(t, drains(there, time.Hour+time.Second-1), "others that are cordoned may go first")
	require.True(t, drains(there, time.Hour+10*time.Second))
	require.True(t, drains(there, 2*time.Hour))
	require.False(t, drains(gone, 2*time.Hour), "it is the last one")
	require.False(t, drains(there, 2*time.Hour))
	require.True(t, drains(there, 3*time.Hour))
	g.drain.Cordon(false)
	require.False(t, drains(there, 3*time.Hour))
	g.drain.Request(true)
	require.True(t, drains(gone, 3*time.Hour), "what the operator says of the gateway itself is done")
}

// They know of one another what each said a moment ago.
func TestOfGatewaysWhoseNodesAreCordonedAtOnceOneStays(t *testing.T) {
	names := []string{"g1", "g2", "g3"}
	gateways, peers := map[string]*Gateway{}, map[string]*changing{}
	for _, name := range names {
		peers[name] = &changing{}
		g := New(Options{Name: name, AnnounceOptions: AnnounceOptions{Announcer: announcetest.Board{}}, PeerOptions: PeerOptions{Member: peers[name]}, Log: slog.New(slog.DiscardHandler)}, nil, nil)
		g.ownership.Add(netip.MustParseAddr("203.0.113.1"))
		g.drain.Cordon(true)
		gateways[name] = g
	}
	const step, known = 20 * time.Millisecond, 10 // looks until others know
	now := time.Now()
	var said []map[string]bool
	staying := 0
	for range int(5 * time.Minute / step) {
		now = now.Add(step)
		is := map[string]bool{}
		for name, g := range gateways {
			var others neighbours
			for _, other := range names {
				if other != name {
					others = append(others, neighbours{{Name: other, Active: true, CanTakeOver: true, Draining: len(said) >= known && said[len(said)-known][other]}}...)
				}
			}
			peers[name].neighbours = others
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
