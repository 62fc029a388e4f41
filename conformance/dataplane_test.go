package conformance

import (
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
)

// Each case runs in both families: vip(1) is the first VIP of the family, v4 tells which it is.
func bothFamilies(t *testing.T, nodes int, f func(t *testing.T, r *rig, v4 bool, vip func(int) string)) {
	for name, v4 := range map[string]bool{"IPv4": true, "IPv6": false} {
		t.Run(name, func(t *testing.T) {
			f(t, newRig(t, nodes), v4, func(i int) string {
				if v4 {
					return fmt.Sprintf("203.0.113.%d", i)
				}
				return fmt.Sprintf("2001:db8:f::%d", i)
			})
		})
	}
}

func at(vip string, port int) string { return net.JoinHostPort(vip, fmt.Sprint(port)) }

func TestTrafficReachesEveryEndpointOfThePool(t *testing.T) {
	bothFamilies(t, 3, func(t *testing.T, r *rig, v4 bool, vip func(int) string) {
		for i := range 3 {
			r.server(i, 30080)
			r.server(i, 30053)
		}
		r.apply(model.Snapshot{
			Pools: []model.Pool{pool("all", v4, 0, 1, 2)},
			Frontends: []model.Frontend{
				frontend(model.TCP, vip(1), 80, 30080, "all"),
				frontend(model.TCP, vip(1), 53, 30053, "all"),
				frontend(model.UDP, vip(1), 53, 30053, "all"),
				frontend(model.TCP, vip(2), 80, 30053, "all"),
			},
		})
		for _, c := range []struct{ network, address string }{{"tcp", at(vip(1), 80)}, {"udp", at(vip(1), 53)}, {"tcp", at(vip(1), 53)}, {"tcp", at(vip(2), 80)}} {
			require.Len(t, r.spread(c.network, c.address, 60), 3, "%v", c)
		}
		stats, err := r.process.Stats(t.Context())
		require.NoError(t, err)
		require.EqualValues(t, 60, stats.Frontends[frontend(model.TCP, vip(1), 80, 1, "all").FrontendKey].Connections)
	})
}

func TestOtherPortsOfAVIPAreRefusedAndReachNothingOfTheHost(t *testing.T) {
	bothFamilies(t, 1, func(t *testing.T, r *rig, v4 bool, vip func(int) string) {
		require.NoError(t, r.gateway.Do(func() error {
			l, err := net.Listen("tcp", ":22")
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		}))
		r.apply(model.Snapshot{Pools: []model.Pool{pool("all", v4, 0)}, Frontends: []model.Frontend{frontend(model.TCP, vip(1), 80, 30080, "all")}})
		require.True(t, r.refused("tcp", at(vip(1), 22)))
		require.True(t, r.refused("udp", at(vip(1), 80)))
	})
}

func TestAnEmptyPoolRefusesQuicklyAndRecovers(t *testing.T) {
	bothFamilies(t, 1, func(t *testing.T, r *rig, v4 bool, vip func(int) string) {
		r.server(0, 30080)
		frontends := []model.Frontend{frontend(model.TCP, vip(1), 80, 30080, "all"), frontend(model.UDP, vip(1), 80, 30080, "all")}
		for range 2 {
			r.apply(model.Snapshot{Pools: []model.Pool{pool("all", v4)}, Frontends: frontends})
			require.True(t, r.refused("tcp", at(vip(1), 80)))
			require.True(t, r.refused("udp", at(vip(1), 80)))
			r.apply(model.Snapshot{Pools: []model.Pool{pool("all", v4, 0)}, Frontends: frontends})
			require.Equal(t, "n0", r.mustAsk("tcp", at(vip(1), 80)))
			require.Equal(t, "n0", r.mustAsk("udp", at(vip(1), 80)))
		}
	})
}

func TestEstablishedConnectionsOutliveEveryChangeElsewhere(t *testing.T) {
	bothFamilies(t, 2, func(t *testing.T, r *rig, v4 bool, vip func(int) string) {
		r.server(0, 30080)
		r.server(1, 30080)
		r.apply(model.Snapshot{Pools: []model.Pool{pool("all", v4, 0)}, Frontends: []model.Frontend{frontend(model.TCP, vip(1), 80, 30080, "all")}})
		c, err := r.dial("tcp", at(vip(1), 80), 0)
		require.NoError(t, err)
		defer c.Close()
		buffer := make([]byte, 256)
		n, err := c.Read(buffer)
		require.NoError(t, err)
		require.Contains(t, string(buffer[:n]), "n0")
		alive := func() {
			t.Helper()
			c.SetDeadline(time.Now().Add(2 * time.Second))
			_, err := c.Write([]byte("echo"))
			require.NoError(t, err)
			n, err := c.Read(buffer)
			require.NoError(t, err)
			require.Equal(t, "echo", string(buffer[:n]))
		}
		alive()
		for i := range 20 {
			r.apply(model.Snapshot{Pools: []model.Pool{pool("all", v4, 0), pool("other", v4, 0, 1)},
				Frontends: []model.Frontend{frontend(model.TCP, vip(1), 80, 30080, "all"), frontend(model.TCP, vip(2), uint16(80+i), 30080, "other")}})
		}
		alive()
		// The pool moves to the other node, then everything goes; the plugin dies in between.
		r.apply(model.Snapshot{Pools: []model.Pool{pool("all", v4, 1)}, Frontends: []model.Frontend{frontend(model.TCP, vip(1), 80, 30080, "all")}})
		require.Equal(t, "n1", r.mustAsk("tcp", at(vip(1), 80)))
		alive()
		r.process.Stop()
		alive()
		r.start()
		r.apply(model.Snapshot{})
		require.True(t, len(r.ruleset()) > 0)
		alive()
	})
}

func TestARestartedPluginTakesOverWhatItFindsAndChangesOnlyWhatDiffers(t *testing.T) {
	bothFamilies(t, 3, func(t *testing.T, r *rig, v4 bool, vip func(int) string) {
		for i := range 3 {
			r.server(i, 30080)
		}
		sticky := frontend(model.TCP, vip(2), 80, 30080, "all")
		sticky.AffinityTimeout = time.Hour
		sticky.Restricted = true
		sticky.SourceRanges = []netipPrefix{prefix(v4, "192.0.2.0/24", "2001:db8:c::/64"), prefix(v4, "10.1.0.0/16", "2001:db8:d::/48")}
		want := model.Snapshot{
			Pools:     []model.Pool{pool("all", v4, 0, 1), pool("none", v4)},
			Frontends: []model.Frontend{frontend(model.TCP, vip(1), 80, 30080, "all"), sticky, frontend(model.UDP, vip(1), 9, 30080, "none")},
		}
		r.apply(want)
		before, node := r.ruleset(), r.mustAsk("tcp", at(vip(2), 80))
		r.process.Stop()
		r.start()
		require.True(t, r.apply(want).Empty(), "nothing differs, so nothing may be sent")
		withoutCounters := func(s string) string {
			var kept []string
			for _, line := range strings.Split(s, "\n") {
				if !strings.Contains(line, "packets") && !strings.Contains(line, "expires") {
					kept = append(kept, line)
				}
			}
			return strings.Join(kept, "\n")
		}
		require.Equal(t, withoutCounters(before), withoutCounters(r.ruleset()))
		// A pool whose rows a former process wrote, a frontend that changes, one that goes.
		want.Pools[0] = pool("all", v4, 0, 1, 2)
		want.Frontends = want.Frontends[:2]
		want.Frontends[1].SourceRanges = want.Frontends[1].SourceRanges[:1]
		change := r.apply(want)
		require.Len(t, change.UpsertPools, 1)
		require.Len(t, change.UpsertFrontends, 1)
		require.Len(t, change.DeleteFrontends, 1)
		require.Len(t, r.spread("tcp", at(vip(1), 80), 60), 3)
		require.Equal(t, map[string]int{node: 10}, r.spread("tcp", at(vip(2), 80), 10))
	})
}

func TestSourceRangesAreEnforcedAndChangeLive(t *testing.T) {
	bothFamilies(t, 1, func(t *testing.T, r *rig, v4 bool, vip func(int) string) {
		r.server(0, 30080)
		f := frontend(model.TCP, vip(1), 80, 30080, "all")
		f.Restricted = true
		apply := func(ranges ...netipPrefix) {
			f.SourceRanges = ranges
			r.apply(model.Snapshot{Pools: []model.Pool{pool("all", v4, 0)}, Frontends: []model.Frontend{f, frontend(model.TCP, vip(2), 80, 30080, "all")}})
		}
		apply(prefix(v4, "192.0.2.100/32", "2001:db8:c::100/128"))
		require.Equal(t, "n0", r.mustAsk("tcp", at(vip(1), 80)))
		apply(prefix(v4, "192.0.2.101/32", "2001:db8:c::101/128"))
		_, err := r.ask("tcp", at(vip(1), 80))
		require.ErrorContains(t, err, "timeout")
		require.Equal(t, "n0", r.mustAsk("tcp", at(vip(2), 80)), "another VIP is not concerned")
		apply(prefix(v4, "192.0.2.0/25", "2001:db8:c::/64"))
		require.Equal(t, "n0", r.mustAsk("tcp", at(vip(1), 80)))
		apply()
		_, err = r.ask("tcp", at(vip(1), 80))
		require.ErrorContains(t, err, "timeout")
	})
}

func TestAffinityKeepsAClientOnItsEndpointUntilTheTimeout(t *testing.T) {
	bothFamilies(t, 3, func(t *testing.T, r *rig, v4 bool, vip func(int) string) {
		for i := range 3 {
			r.server(i, 30080)
		}
		f := frontend(model.TCP, vip(1), 80, 30080, "all")
		f.AffinityTimeout = 2 * time.Second
		r.apply(model.Snapshot{Pools: []model.Pool{pool("all", v4, 0)}, Frontends: []model.Frontend{f}})
		require.Equal(t, map[string]int{"n0": 5}, r.spread("tcp", at(vip(1), 80), 5))
		// Endpoints that join do not take the client away, whatever its hash says now.
		r.apply(model.Snapshot{Pools: []model.Pool{pool("all", v4, 0, 1, 2)}, Frontends: []model.Frontend{f}})
		require.Equal(t, map[string]int{"n0": 10}, r.spread("tcp", at(vip(1), 80), 10))
		// Each new connection begins the timeout anew; once it has passed, the hash decides, and nothing but the hash.
		time.Sleep(3 * time.Second)
		require.Len(t, r.spread("tcp", at(vip(1), 80), 10), 1)
		// An endpoint that leaves takes its clients' memory with it.
		r.apply(model.Snapshot{Pools: []model.Pool{pool("all", v4, 1)}, Frontends: []model.Frontend{f}})
		require.Equal(t, map[string]int{"n1": 5}, r.spread("tcp", at(vip(1), 80), 5))
		// A frontend that moves to another pool forgets, and so does another owner of the same address and port.
		r.apply(model.Snapshot{Pools: []model.Pool{pool("all", v4, 1), pool("else", v4, 2)}, Frontends: []model.Frontend{frontendOn(f, "else")}})
		require.Equal(t, map[string]int{"n2": 5}, r.spread("tcp", at(vip(1), 80), 5))
	})
}

func TestAUDPFlowLeavesAnEndpointThatIsGoneOrUnhealthy(t *testing.T) {
	bothFamilies(t, 2, func(t *testing.T, r *rig, v4 bool, vip func(int) string) {
		r.server(0, 30053)
		r.server(1, 30053)
		frontends := []model.Frontend{frontend(model.UDP, vip(1), 53, 30053, "all")}
		ask := func() string {
			node, err := r.askFrom("udp", at(vip(1), 53), 5353)
			require.NoError(t, err)
			return node
		}
		r.apply(model.Snapshot{Pools: []model.Pool{pool("all", v4, 0)}, Frontends: frontends})
		require.Equal(t, "n0", ask())
		r.apply(model.Snapshot{Pools: []model.Pool{pool("all", v4, 1)}, Frontends: frontends})
		require.Equal(t, "n1", ask())
		both := pool("all", v4, 0, 1)
		both.Endpoints[1].State = model.Unhealthy
		r.apply(model.Snapshot{Pools: []model.Pool{both}, Frontends: frontends})
		require.Equal(t, "n0", ask())
		// A draining endpoint keeps its flow and gets no new one.
		both = pool("all", v4, 0, 1)
		both.Endpoints[0].State = model.Draining
		r.apply(model.Snapshot{Pools: []model.Pool{both}, Frontends: frontends})
		require.Equal(t, "n0", ask())
		require.Equal(t, map[string]int{"n1": 20}, r.spread("udp", at(vip(1), 53), 20))
	})
}

func TestABadRecordBlocksNoOther(t *testing.T) {
	bothFamilies(t, 1, func(t *testing.T, r *rig, v4 bool, vip func(int) string) {
		r.server(0, 30080)
		bad, orphan := frontend(model.TCP, vip(2), 80, 30080, "all"), frontend(model.TCP, vip(3), 80, 30080, "missing")
		bad.Forwarding = model.Direct
		result, _ := r.tryApply(model.Snapshot{Pools: []model.Pool{pool("all", v4, 0)},
			Frontends: []model.Frontend{frontend(model.TCP, vip(1), 80, 30080, "all"), bad, orphan}})
		require.Len(t, result.Failed, 2)
		require.Contains(t, result.Failed[0].Message, "direct")
		require.Contains(t, result.Failed[1].Message, "does not exist")
		require.Equal(t, "n0", r.mustAsk("tcp", at(vip(1), 80)))
	})
}

func TestPurgeLeavesNothingAndOthersAreUntouched(t *testing.T) {
	r := newRig(t, 1)
	require.NoError(t, r.gateway.Do(func() error {
		return runNft("add table inet foreign; add chain inet foreign c { type filter hook forward priority 0; }")
	}))
	r.apply(model.Snapshot{Pools: []model.Pool{pool("all", true, 0)}, Frontends: []model.Frontend{frontend(model.TCP, "203.0.113.1", 80, 30080, "all")}})
	require.Contains(t, r.ruleset(), "table ip kubelb")
	require.NoError(t, r.process.Close(t.Context(), true))
	require.NotContains(t, r.ruleset(), "kubelb")
	require.Contains(t, r.ruleset(), "table inet foreign")
}

func TestRulesOfOthersSeeNoMarkOfOurs(t *testing.T) {
	bothFamilies(t, 1, func(t *testing.T, r *rig, v4 bool, vip func(int) string) {
		r.server(0, 30080)
		require.NoError(t, r.gateway.Do(func() error {
			return runNft("add table inet foreign; add chain inet foreign c { type filter hook forward priority 0; }; add rule inet foreign c meta mark != 0 counter drop")
		}))
		sticky := frontend(model.TCP, vip(1), 81, 30080, "all")
		sticky.AffinityTimeout = time.Minute
		r.apply(model.Snapshot{Pools: []model.Pool{pool("all", v4, 0)}, Frontends: []model.Frontend{
			frontend(model.TCP, vip(1), 80, 30080, "all"), sticky, frontend(model.UDP, vip(1), 9, 30009, "all")}})
		for _, port := range []int{80, 81, 81} {
			require.Equal(t, "n0", r.mustAsk("tcp", at(vip(1), port)))
		}
		// Datagrams that nobody answers: each of them is new to conntrack. The node reads them and stays silent.
		require.NoError(t, r.nodes[0].Do(func() error {
			silent, err := net.ListenPacket("udp", at(nodeAddress(0, v4).String(), 30009))
			if err == nil {
				t.Cleanup(func() { silent.Close() })
			}
			return err
		}))
		c, err := r.dial("udp", at(vip(1), 9), 0)
		require.NoError(t, err)
		defer c.Close()
		for range 5 {
			_, err := c.Write([]byte("?"))
			require.NoError(t, err)
		}
		clean := strings.Contains(r.ruleset(), "meta mark != 0x00000000 counter packets 0 bytes 0 drop")
		require.True(t, clean, "a packet with a mark of ours came to somebody else's rule")
	})
}

func TestThePluginsSocketIsInItsPrivateDirectory(t *testing.T) {
	r := newRig(t, 0)
	info, err := os.Stat(r.sockets)
	require.NoError(t, err)
	require.EqualValues(t, 0o700, info.Mode().Perm())
	entries, err := os.ReadDir(r.sockets)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	require.NotZero(t, entries[0].Type()&os.ModeSocket)
}

func TestASecondPluginOnTheSameStateIsRefused(t *testing.T) {
	r := newRig(t, 0)
	first := r.process
	second := *r
	second.t = t
	err := second.configureAnother()
	require.ErrorContains(t, err, "another backend works on")
	_, err = first.Applied(t.Context())
	require.NoError(t, err)
}

func TestWhatIsRenderedIsWhatTheKernelHolds(t *testing.T) {
	r := newRig(t, 2)
	f := frontend(model.TCP, "203.0.113.1", 80, 30080, "all")
	f.AffinityTimeout, f.Restricted, f.SourceRanges = 90*time.Second, true, []netipPrefix{prefix(true, "192.0.2.0/24", "")}
	want := model.Snapshot{Pools: []model.Pool{pool("all", true, 0, 1), pool("none", true), pool("six", false, 1)},
		Frontends: []model.Frontend{f, frontend(model.UDP, "2001:db8:f::1", 53, 30053, "six"), frontend(model.TCP, "203.0.113.1", 81, 30080, "none")}}
	text, err := r.process.Render(t.Context(), want)
	require.NoError(t, err)
	r.apply(want)
	held := r.ruleset()
	require.NoError(t, r.process.Close(t.Context(), true))
	require.NoError(t, r.gateway.Do(func() error { return runNft(text) }))
	// google/nftables does not record the byte order of a map's data, so nft lists marks as data with their bytes swapped.
	data := regexp.MustCompile(`: 0x[0-9a-f]{8}`)
	require.Equal(t, data.ReplaceAllString(held, ": mark"), data.ReplaceAllString(r.ruleset(), ": mark"), "the rendered text, loaded by nft, lists like what the backend made")
}
