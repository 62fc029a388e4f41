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

// remembers has a table remember clients of a frontend's number, from an address on, for a while.
func (g *gateway) remembers(number uint32, first netip.Addr, n int, stays time.Duration) {
	g.Helper()
	g.do(func() error {
		c, err := elements.Connect()
		if err != nil {
			return err
		}
		t := g.tableFor(first)
		var clients []nft.SetElement
		for range n {
			clients = append(clients, nft.SetElement{Key: append(mark(number), first.AsSlice()...), Val: mark(1), Timeout: stays})
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

// remembered is of how many clients each number has, by the kernel.
func (g *gateway) remembered(v4 bool) map[uint32]int {
	g.Helper()
	of := map[uint32]int{}
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
				of[binary.NativeEndian.Uint32(c.key)]++
			}
		}
		return nil
	})
	return of
}

// sweepUntilIdle takes steps of sweeps until all have ended, and returns how many.
func (g *gateway) sweepUntilIdle(now time.Time, sweeps map[*table]*sweep) (steps int) {
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

// sweepUntilNothingIsFound has sweeps follow one another, as one that has found something is followed by another one.
func (g *gateway) sweepUntilNothingIsFound(now time.Time, sweeps map[*table]*sweep) time.Time {
	g.Helper()
	for range 10 {
		now = now.Add(sweepEvery)
		g.sweepUntilIdle(now, sweeps)
		if !slices.ContainsFunc(g.tables, func(t *table) bool { return t.state.retired }) {
			return now
		}
	}
	require.FailNow(g, "sweeps find something again and again")
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

func TestClientsOfAFrontendThatHasGoneAreForgotten(t *testing.T) {
	g := newGateway(t)
	pools := []model.Pool{labPool("all", true, 0), labPool("six", false, 0)}
	sticky := slices.Concat(stickyFrontends(true, 80, 81), stickyFrontends(false, 80, 81))
	g.apply(model.Snapshot{Pools: pools, Frontends: sticky})
	number := func(f model.Frontend) uint32 { return g.tableFor(f.VIP).state.frontends[f.FrontendKey].number }
	stays, goes, of := map[bool]uint32{}, map[bool]uint32{}, map[bool]netip.Addr{true: netip.MustParseAddr("10.0.0.0"), false: netip.MustParseAddr("2001:db8:aaaa::")}
	for i, v4 := range []bool{true, false} {
		stays[v4], goes[v4] = number(sticky[2*i]), number(sticky[2*i+1])
		g.remembers(stays[v4], of[v4], 3000, time.Hour)
		g.remembers(goes[v4], of[v4], 5000, time.Hour)
	}
	sweeps, now := map[*table]*sweep{}, time.Now()
	require.Equal(t, 1, g.sweepUntilIdle(now, sweeps), "nothing has gone, and nothing is read")
	g.apply(model.Snapshot{Pools: pools, Frontends: []model.Frontend{sticky[0], sticky[2]}})
	for _, v4 := range []bool{true, false} {
		require.Greater(t, g.remembered(v4)[goes[v4]], 4000, "of some the kernel does not tell while it gives the map more room")
	}
	require.Greater(t, g.sweepUntilIdle(now, sweeps), 3)
	now = g.sweepUntilNothingIsFound(now, sweeps)
	for _, v4 := range []bool{true, false} {
		require.Equal(t, map[uint32]int{stays[v4]: 3000}, g.remembered(v4))
	}
	require.Equal(t, 1, g.sweepUntilIdle(now.Add(time.Hour), sweeps), "it is done")

	// A frontend that has affinity no more forgets its clients, too, and not before the next time.
	plain := sticky[0]
	plain.AffinityTimeout = 0
	g.apply(model.Snapshot{Pools: pools, Frontends: []model.Frontend{plain, sticky[2]}})
	require.Equal(t, 1, g.sweepUntilIdle(now.Add(sweepEvery-time.Second), sweeps))
	g.sweepUntilNothingIsFound(now, sweeps)
	require.Empty(t, g.remembered(true))
	require.Equal(t, map[uint32]int{stays[false]: 3000}, g.remembered(false))

	// What an earlier process has left behind is forgotten as well.
	g.remembers(goes[false], of[false], 10, time.Hour)
	g.restart()
	var reports []string
	g.do(func() error { return g.watchFor(6*endsInterval, &reports) })
	require.Empty(t, reports)
	require.Equal(t, map[uint32]int{stays[false]: 3000}, g.remembered(false))
}

// Between being read and being deleted a client may go, and its number be another frontend's.
func TestASweepDeletesNoClientThatSomebodyHasNow(t *testing.T) {
	g := newGateway(t)
	pools := []model.Pool{labPool("all", true, 0)}
	sticky := stickyFrontends(true, 80, 81)
	g.apply(model.Snapshot{Pools: pools, Frontends: sticky[:1]})
	four := g.tableFor(lab.VIP(true, 1))
	first := netip.MustParseAddr("10.0.0.0")
	g.remembers(7, first, 200, time.Hour)
	g.remembers(8, first, 100, time.Hour)
	g.remembers(9, first, 100, sweepSpares-time.Second)
	require.Eventually(t, func() bool { return g.remembered(true)[7] == 200 && g.remembered(true)[8] == 100 }, 5*time.Second, 10*time.Millisecond, "the map has room")
	four.state.retired = true
	sweeps, now := map[*table]*sweep{}, time.Now()
	for range 100 {
		if g.do(func() error { return g.sweepClients(now, sweeps) }); len(sweeps[four].stale) > 0 {
			break
		}
	}
	require.Equal(t, 300, len(sweeps[four].stale), "those that the kernel forgets soon are left to it")
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
		return four.deleteThere(others, &transactions)
	})
	require.Equal(t, map[uint32]int{7: 100, 8: 100, 9: 100}, g.remembered(true))
	g.sweepUntilIdle(now, sweeps)
	require.True(t, four.state.retired, "one step asks the kernel for a few halves")
	require.NotZero(t, g.remembered(true)[7])
	g.sweepUntilNothingIsFound(now, sweeps)
	require.Equal(t, map[uint32]int{8: 100, 9: 100}, g.remembered(true))
}

// However many clients are to be forgotten, and the kernel gives the map more room meanwhile: each step is a small one.
func TestManyClientsAreForgottenInSmallSteps(t *testing.T) {
	g := newGateway(t)
	pools := []model.Pool{labPool("all", true, 0)}
	sticky := stickyFrontends(true, 80, 81)
	g.apply(model.Snapshot{Pools: pools, Frontends: sticky})
	four := g.tableFor(lab.VIP(true, 1))
	living := four.state.frontends[sticky[0].FrontendKey].number
	const many = 30_000
	for _, number := range []uint32{living, living + 1} {
		g.remembers(number, netip.MustParseAddr("10.0.0.0"), many, time.Hour)
	}
	g.apply(model.Snapshot{Pools: pools, Frontends: sticky[:1]})
	require.True(t, four.state.retired)
	g.sweepUntilNothingIsFound(time.Now(), map[*table]*sweep{})
	require.Equal(t, map[uint32]int{living: many}, g.remembered(true))
}

func TestAnAnswerThatIsCutOffIsNoKey(t *testing.T) {
	for _, body := range []string{"", "\x02\x00\x00", "\x02\x00\x00\x00\xff\xff\x03\x80", strings.Repeat("\xff", 64)} {
		clients, err := clientsIn(nil, []byte(body))
		require.Empty(t, clients)
		require.Error(t, err, fmt.Sprintf("%x", body))
	}
}
