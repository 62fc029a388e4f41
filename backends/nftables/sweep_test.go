package nftables

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	nft "github.com/google/nftables"
	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/nftables/elements"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

// addClients adds n clients of a frontend's number with successive addresses and this timeout to the kernel's map.
func (g *gateway) addClients(number uint32, first netip.Addr, n int, timeout time.Duration) {
	g.Helper()
	g.do(func() error {
		c, err := elements.Connect()
		if err != nil {
			return err
		}
		t := g.tableFor(first)
		var clients []nft.SetElement
		for range n {
			clients = append(clients, nft.SetElement{Key: append(mark(number), first.AsSlice()...), Val: mark(1), Timeout: timeout})
			first = first.Next()
		}
		for chunk := range slices.Chunk(clients, elements.PerMessage) {
			if err := c.SetAddElements(t.sets[mapClients], chunk); err != nil {
				return err
			}
		}
		return c.Flush()
	})
}

// clientsOfNumbers returns the number of clients of each number in the kernel's map.
func (g *gateway) clientsOfNumbers(v4 bool) map[uint32]int {
	g.Helper()
	count := map[uint32]int{}
	g.do(func() error {
		d, err := dumpClients(g.tableFor(lab.VIP(v4, 1)))
		if err != nil {
			return err
		}
		defer d.close()
		for more := true; more; {
			var clients []client
			if clients, more, err = d.next(); err != nil {
				return err
			}
			for _, c := range clients {
				count[binary.NativeEndian.Uint32(c.key)]++
			}
		}
		return nil
	})
	return count
}

// sweepUntilIdle takes steps until no sweep runs, and returns their number.
func (g *gateway) sweepUntilIdle(now time.Time, sweeps map[*table]*clientSweep) (steps int) {
	g.Helper()
	for {
		g.do(func() error { return g.sweepClients(now, sweeps) })
		steps++
		idle := true
		for _, s := range sweeps {
			idle = idle && s.dump == nil && len(s.stale) == 0
		}
		if idle {
			return steps
		}
		require.Less(g, steps, 100_000)
	}
}

// sweepUntilNothingIsStale runs sweeps until one finds no stale clients. It returns the time of the last one.
func (g *gateway) sweepUntilNothingIsStale(now time.Time, sweeps map[*table]*clientSweep) time.Time {
	g.Helper()
	for range 10 {
		now = now.Add(sweepInterval)
		g.sweepUntilIdle(now, sweeps)
		if !slices.ContainsFunc(g.tables, func(t *table) bool { return t.state.staleClients }) {
			return now
		}
	}
	require.FailNow(g, "each sweep finds stale clients")
	return now
}

func stickyFrontends(v4 bool, ports ...uint16) (out []model.Frontend) {
	pool := map[bool]string{true: "all", false: "six"}[v4]
	for _, port := range ports {
		f := labFrontend(model.TCP, lab.VIP(v4, 1), port, 30080, pool)
		f.AffinityTimeout = 3 * time.Hour
		out = append(out, f)
	}
	return out
}

func TestClientsOfADeletedFrontendAreDeleted(t *testing.T) {
	g := newGateway(t)
	pools := []model.Pool{labPool("all", true, 0), labPool("six", false, 0)}
	sticky := slices.Concat(stickyFrontends(true, 80, 81), stickyFrontends(false, 80, 81))
	g.apply(model.Snapshot{Pools: pools, Frontends: sticky})
	number := func(f model.Frontend) uint32 { return g.tableFor(f.VIP).state.frontends[f.FrontendKey].number }
	kept, deleted, first := map[bool]uint32{}, map[bool]uint32{}, map[bool]netip.Addr{true: netip.MustParseAddr("10.0.0.0"), false: netip.MustParseAddr("2001:db8:aaaa::")}
	for i, v4 := range []bool{true, false} {
		kept[v4], deleted[v4] = number(sticky[2*i]), number(sticky[2*i+1])
		g.addClients(kept[v4], first[v4], 3000, time.Hour)
		g.addClients(deleted[v4], first[v4], 5000, time.Hour)
	}
	sweeps, now := map[*table]*clientSweep{}, time.Now()
	require.Equal(t, 1, g.sweepUntilIdle(now, sweeps), "no frontend was deleted, and nothing is read")
	g.apply(model.Snapshot{Pools: pools, Frontends: []model.Frontend{sticky[0], sticky[2]}})
	for _, v4 := range []bool{true, false} {
		require.Greater(t, g.clientsOfNumbers(v4)[deleted[v4]], 4000, "the kernel leaves some out while it resizes the map")
	}
	require.Greater(t, g.sweepUntilIdle(now, sweeps), 3)
	now = g.sweepUntilNothingIsStale(now, sweeps)
	for _, v4 := range []bool{true, false} {
		require.Equal(t, map[uint32]int{kept[v4]: 3000}, g.clientsOfNumbers(v4))
	}
	require.Equal(t, 1, g.sweepUntilIdle(now.Add(time.Hour), sweeps), "no sweep is due")

	// The clients of a frontend that loses its affinity are also deleted, once the next sweep is due.
	plain := sticky[0]
	plain.AffinityTimeout = 0
	g.apply(model.Snapshot{Pools: pools, Frontends: []model.Frontend{plain, sticky[2]}})
	require.Equal(t, 1, g.sweepUntilIdle(now.Add(sweepInterval-time.Second), sweeps))
	g.sweepUntilNothingIsStale(now, sweeps)
	require.Empty(t, g.clientsOfNumbers(true))
	require.Equal(t, map[uint32]int{kept[false]: 3000}, g.clientsOfNumbers(false))

	// Clients that an earlier process has left are also deleted.
	g.addClients(deleted[false], first[false], 10, time.Hour)
	g.restart()
	var reports []string
	g.do(func() error { return g.watchFor(6*endsInterval, &reports) })
	require.Empty(t, reports)
	require.Equal(t, map[uint32]int{kept[false]: 3000}, g.clientsOfNumbers(false))
}

// Between the reading and the deletion of a client, the client may expire, and another frontend may get its number.
func TestASweepKeepsClientsWhoseNumberAnotherFrontendHasNow(t *testing.T) {
	g := newGateway(t)
	pools := []model.Pool{labPool("all", true, 0)}
	sticky := stickyFrontends(true, 80, 81)
	g.apply(model.Snapshot{Pools: pools, Frontends: sticky[:1]})
	four := g.tableFor(lab.VIP(true, 1))
	first := netip.MustParseAddr("10.0.0.0")
	g.addClients(7, first, 200, time.Hour)
	g.addClients(8, first, 100, time.Hour)
	g.addClients(9, first, 100, sweepMinTimeout-time.Second)
	require.Eventually(t, func() bool { return g.clientsOfNumbers(true)[7] == 200 && g.clientsOfNumbers(true)[8] == 100 }, 5*time.Second, 10*time.Millisecond, "the kernel has resized the map")
	four.state.staleClients = true
	sweeps, now := map[*table]*clientSweep{}, time.Now()
	for range 100 {
		if g.do(func() error { return g.sweepClients(now, sweeps) }); len(sweeps[four].stale) > 0 {
			break
		}
	}
	require.Equal(t, 300, len(sweeps[four].stale), "clients that expire soon are left to the kernel")
	four.state.lastNumber = 7
	g.apply(model.Snapshot{Pools: pools, Frontends: sticky})
	require.EqualValues(t, 8, four.state.frontends[sticky[1].FrontendKey].number)
	g.do(func() error {
		var others []nft.SetElement
		for a, i := first, 0; i < 200; a, i = a.Next(), i+1 {
			if i%2 == 0 {
				others = append(others, nft.SetElement{Key: append(mark(7), a.AsSlice()...)})
			}
		}
		transactions := 1
		return four.deleteExisting(others, &transactions)
	})
	require.Equal(t, map[uint32]int{7: 100, 8: 100, 9: 100}, g.clientsOfNumbers(true))
	g.sweepUntilIdle(now, sweeps)
	require.True(t, four.state.staleClients, "one step makes a bounded number of transactions")
	require.NotZero(t, g.clientsOfNumbers(true)[7])
	g.sweepUntilNothingIsStale(now, sweeps)
	require.Equal(t, map[uint32]int{8: 100, 9: 100}, g.clientsOfNumbers(true))
}

// Each step is small, however many clients are stale, and while the kernel resizes the map.
func TestManyStaleClientsAreDeletedInSmallSteps(t *testing.T) {
	g := newGateway(t)
	pools := []model.Pool{labPool("all", true, 0)}
	sticky := stickyFrontends(true, 80, 81)
	g.apply(model.Snapshot{Pools: pools, Frontends: sticky})
	four := g.tableFor(lab.VIP(true, 1))
	living := four.state.frontends[sticky[0].FrontendKey].number
	const many = 30_000
	for _, number := range []uint32{living, living + 1} {
		g.addClients(number, netip.MustParseAddr("10.0.0.0"), many, time.Hour)
	}
	g.apply(model.Snapshot{Pools: pools, Frontends: sticky[:1]})
	require.True(t, four.state.staleClients)
	g.sweepUntilNothingIsStale(time.Now(), map[*table]*clientSweep{})
	require.Equal(t, map[uint32]int{living: many}, g.clientsOfNumbers(true))
}

func TestATruncatedNetlinkMessageIsAnError(t *testing.T) {
	for _, body := range []string{"", "\x02\x00\x00", "\x02\x00\x00\x00\xff\xff\x03\x80", strings.Repeat("\xff", 64)} {
		clients, err := appendClients(nil, []byte(body))
		require.Empty(t, clients)
		require.Error(t, err, fmt.Sprintf("%x", body))
	}
}

func TestAFailedSweepIsFollowedByAnotherOne(t *testing.T) {
	g := newGateway(t)
	sticky := stickyFrontends(true, 80, 81)
	g.apply(model.Snapshot{Pools: []model.Pool{labPool("all", true, 0)}, Frontends: sticky})
	four := g.tableFor(lab.VIP(true, 1))
	g.addClients(four.state.frontends[sticky[1].FrontendKey].number, netip.MustParseAddr("10.0.0.0"), 100, time.Hour)
	g.apply(model.Snapshot{Pools: []model.Pool{labPool("all", true, 0)}, Frontends: sticky[:1]})
	sweeps, now := map[*table]*clientSweep{}, time.Now()
	g.do(func() error { return g.sweepClients(now, sweeps) })
	sweeps[four].dump.buffer = make([]byte, 8) // the kernel's answer does not fit
	g.do(func() error {
		require.Error(t, g.sweepClients(now, sweeps))
		return nil
	})
	g.sweepUntilNothingIsStale(now, sweeps)
	require.Empty(t, g.clientsOfNumbers(true))
}
