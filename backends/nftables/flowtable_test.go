package nftables

import (
	"errors"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/hostflows"
	"kubelb.k8c.io/backends/nftables/elements"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

// newFastGateway returns a gateway that counts the packets for VIPs that pass the host's chains. It skips the test if the kernel has no flowtables.
func newFastGateway(t *testing.T) *gateway {
	t.Helper()
	g := newGateway(t)
	if !g.isOn() {
		t.Skip(g.fast.currentNote())
	}
	g.nft(`table inet watcher {
		chain watch {
			type filter hook prerouting priority -400;
			meta l4proto { tcp, udp } ip daddr 203.0.113.0/24 counter
			meta l4proto { tcp, udp } ip6 daddr 2001:db8:f::/64 counter
		}
	}`, "-f", "-")
	for _, node := range g.lab.Nodes {
		for _, port := range []uint16{80, 30080} {
			server, err := node.Serve(port)
			require.NoError(t, err)
			t.Cleanup(func() { server.Close() })
		}
	}
	return g
}

var watched = regexp.MustCompile(`counter packets (\d+)`)

// isOn reports whether flows take the fast path.
func (g *gateway) isOn() bool { return g.fast.currentNote() == fastNote }

// syncFastPath adapts the fast path to the host, and requires that there is no problem.
func (g *gateway) syncFastPath() {
	g.Helper()
	g.do(func() error { g.fast.sync(); return nil })
	require.Equal(g, fastNote, g.fast.currentNote())
}

// seen returns the number of packets for VIPs that have passed the host's chains.
func (g *gateway) seen() int {
	total := 0
	for _, match := range watched.FindAllStringSubmatch(g.nft("", "list", "table", "inet", "watcher"), -1) {
		n, err := strconv.Atoi(match[1])
		require.NoError(g, err)
		total += n
	}
	return total
}

// exchanges is the number of requests and answers with which a flow is tested.
const exchanges = 20

// seenOf returns how many packets of the exchanges pass the chains.
func (g *gateway) seenOf(exchange func() error) int {
	g.Helper()
	before := g.seen()
	for range exchanges {
		require.NoError(g, exchange())
	}
	return g.seen() - before
}

func (g *gateway) isFast(exchange func() error, what string) {
	g.Helper()
	require.LessOrEqual(g, g.seenOf(exchange), 1, "packets of %s that pass the chains", what)
}

func (g *gateway) isSlow(exchange func() error, what string) {
	g.Helper()
	require.GreaterOrEqual(g, g.seenOf(exchange), exchanges, "packets of %s that pass the chains", what)
}

// begin starts a flow, and waits until connection tracking takes a UDP flow for assured.
func (g *gateway) begin(f model.Frontend, from *lab.Host) func() error {
	g.Helper()
	exchange := g.beginShort(f, from)
	if f.Protocol == model.UDP {
		time.Sleep(2100 * time.Millisecond)
		for range 2 {
			require.NoError(g, exchange())
		}
	}
	return exchange
}

func (g *gateway) beginShort(f model.Frontend, from *lab.Host) func() error {
	g.Helper()
	to := netip.AddrPortFrom(f.VIP, f.Port)
	if f.Protocol == model.TCP {
		s, err := from.Stream(to, lab.From{})
		require.NoError(g, err)
		g.Cleanup(func() { s.Close() })
		require.NoError(g, s.Alive())
		return s.Alive
	}
	c, err := from.Dial("udp", to, lab.From{})
	require.NoError(g, err)
	g.Cleanup(func() { c.Close() })
	exchange := func() error {
		_, err := lab.RequestAddresses(c, 1)
		return err
	}
	for range 2 {
		require.NoError(g, exchange())
	}
	return exchange
}

// inEveryWay returns a frontend for each mode and protocol.
func inEveryWay(v4 bool) (s model.Snapshot) {
	s.Pools = []model.Pool{labPool("all", v4, 0, 1)}
	for i, mode := range []model.Forwarding{model.NAT, model.Transparent, model.Direct} {
		for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
			f := labFrontend(protocol, lab.VIP(v4, 1+i), 80, 30080, "all")
			if f.Forwarding = mode; mode == model.Direct {
				f.TargetPort = 80
			}
			s.Frontends = append(s.Frontends, f)
		}
	}
	return s
}

func TestKnownFlowsTakeTheFastPath(t *testing.T) {
	for _, v4 := range []bool{true, false} {
		g := newFastGateway(t)
		all := inEveryWay(v4)
		g.apply(all)
		require.NoError(t, g.lab.RouteNodesVia(0))
		require.NoError(t, g.lab.ServeVIPOnNodes(netip.AddrPortFrom(lab.VIP(v4, 3), 80), 80))
		for _, f := range all.Frontends {
			for _, client := range []*lab.Host{g.lab.A, g.lab.B} {
				what := f.FrontendKey.String() + " " + f.Forwarding.String() + " from " + client.Name
				if exchange := g.begin(f, client); f.Forwarding == model.Direct {
					g.isSlow(exchange, what)
				} else {
					g.isFast(exchange, what)
				}
			}
		}
	}
}

func TestFlowsThatTheFastPathWouldTreatDifferentlyStaySlow(t *testing.T) {
	for _, v4 := range []bool{true, false} {
		g := newFastGateway(t)
		plain, limited, beside := labFrontend(model.TCP, lab.VIP(v4, 1), 80, 30080, "all"), labFrontend(model.TCP, lab.VIP(v4, 2), 80, 30080, "all"), labFrontend(model.TCP, lab.VIP(v4, 2), 81, 30080, "all")
		limited.MaxConnections = 10
		datagrams := labFrontend(model.UDP, lab.VIP(v4, 1), 80, 30080, "all")
		g.apply(model.Snapshot{Pools: []model.Pool{labPool("all", v4, 0)}, Frontends: []model.Frontend{plain, limited, beside, datagrams}})
		g.isSlow(g.begin(limited, g.lab.A), "a frontend whose connections are counted")
		g.isSlow(g.begin(beside, g.lab.A), "another one of its address")
		g.restart()
		g.apply(model.Snapshot{Pools: []model.Pool{labPool("all", v4, 0)}, Frontends: []model.Frontend{plain, beside, datagrams}})
		g.isFast(g.begin(beside, g.lab.A), "that one, once the other is gone")
		began := time.Now()
		short := g.beginShort(datagrams, g.lab.A)
		before := g.seen()
		require.NoError(t, short())
		if time.Since(began) < 2*time.Second {
			require.Equal(t, 1, g.seen()-before, "a UDP flow that has just begun")
		}
		g.isFast(g.begin(plain, g.lab.A), "all others")

		g.nft("table inet other { chain taint { type filter hook prerouting priority -140; tcp dport 80 ct mark set 7; }; }", "-f", "-")
		g.isSlow(g.begin(plain, g.lab.A), "a flow with somebody's mark")
		g.nft("", "delete", "table", "inet", "other")

		// To the endpoint by the router, from it by the segment.
		endpoint, front := lab.EndpointAddress(v4, 0), g.lab.GatewayAddress(v4, 0)
		network := func(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }
		require.NoError(t, g.lab.Gateways[0].Route(network(endpoint), routerOf(v4)))
		require.NoError(t, g.lab.Nodes[0].Route(network(front), g.lab.Gateways[0].Address(v4).String()))
		g.isSlow(g.begin(plain, g.lab.A), "a flow that takes another interface than its answers")
	}
}

func routerOf(v4 bool) string {
	if v4 {
		return "192.0.2.254"
	}
	return "2001:db8:c::fe"
}

func TestAFastFlowMovesWhenItsEndpointIsUnhealthy(t *testing.T) {
	for _, v4 := range []bool{true, false} {
		g := newFastGateway(t)
		f := labFrontend(model.UDP, lab.VIP(v4, 1), 80, 30080, "all")
		pool := labPool("all", v4, 0)
		g.apply(model.Snapshot{Pools: []model.Pool{pool}, Frontends: []model.Frontend{f}})
		c, err := g.lab.A.Dial("udp", netip.AddrPortFrom(f.VIP, f.Port), lab.From{})
		require.NoError(t, err)
		defer c.Close()
		ask := func() error { _, err := lab.RequestAddresses(c, 1); return err }
		require.NoError(t, ask())
		time.Sleep(2100 * time.Millisecond)
		require.NoError(t, ask())
		require.NoError(t, ask())
		g.isFast(ask, "the flow")
		pool.Endpoints[0].State = model.Unhealthy
		pool.Endpoints = append(pool.Endpoints, labPool("", v4, 1).Endpoints...)
		g.apply(model.Snapshot{Pools: []model.Pool{pool}, Frontends: []model.Frontend{f}})
		answer, err := lab.RequestAddresses(c, 1)
		require.NoError(t, err)
		require.Equal(t, lab.EndpointAddress(v4, 1), answer.Endpoint)
	}
}

// The flow expires with the timeout of connection tracking, which includes that of the flowtable.
func TestAnIdleFastFlowExpiresLikeASlowOne(t *testing.T) {
	g := newFastGateway(t)
	g.do(func() error {
		return os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream", []byte("8"), 0)
	})
	g.do(func() error { return os.WriteFile("/proc/sys/net/netfilter/nf_flowtable_udp_timeout", []byte("3"), 0) })
	f := labFrontend(model.UDP, lab.VIP(true, 1), 80, 30080, "all")
	g.apply(model.Snapshot{Pools: []model.Pool{labPool("all", true, 0)}, Frontends: []model.Frontend{f}})
	exchange := g.begin(f, g.lab.A)
	g.isFast(exchange, "the flow")
	flows := func() (n int) {
		g.do(func() error { return hostflows.EachTracked(true, func(f *hostflows.Flow) bool { n++; return false }) })
		return n
	}
	time.Sleep(5 * time.Second)
	require.Equal(t, 1, flows(), "5 s of 8 s")
	time.Sleep(6 * time.Second)
	require.Zero(t, flows(), "11 s of 8 s")
}

func TestTheFlowtableIsReplacedEverySixHours(t *testing.T) {
	g := newFastGateway(t)
	f := labFrontend(model.TCP, lab.VIP(true, 1), 80, 30080, "all")
	g.apply(model.Snapshot{Pools: []model.Pool{labPool("all", true, 0)}, Frontends: []model.Frontend{f}})
	exchange := g.begin(f, g.lab.A)
	listed := func() string { return g.nft("", "-a", "list", "flowtables") }
	before := listed()
	g.syncFastPath()
	require.Equal(t, before, listed())
	g.fast.createdAt = time.Now().Add(-renewInterval - time.Second)
	g.syncFastPath()
	require.NotEqual(t, before, listed())
	require.NoError(t, exchange())
	g.isFast(exchange, "the connection that was there")
}

func TestTheFastPathFollowsTheHostsInterfaces(t *testing.T) {
	g := newFastGateway(t)
	held := func() []string {
		g.syncFastPath()
		return regexp.MustCompile(`devices = \{.*\}`).FindAllString(g.nft("", "list", "flowtables"), -1)
	}
	before := held()
	require.Equal(t, []string{"devices = { back, front }", "devices = { back, front }"}, before)
	g.do(func() error {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "also"}}
		if err := netlink.LinkAdd(bridge); err != nil {
			return err
		}
		return netlink.AddrAdd(bridge, &netlink.Addr{IPNet: netlink.NewIPNet([]byte{198, 18, 2, 1})})
	})
	require.Equal(t, []string{"devices = { also, back, front }", "devices = { also, back, front }"}, held())
	require.Contains(t, g.nft("", "list", "set", "ip", "kubelb", setFastInterfaces), `"also"`)
	g.do(func() error {
		link, err := netlink.LinkByName("also")
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	require.Equal(t, before, held())
	require.NotContains(t, g.nft("", "list", "set", "ip", "kubelb", setFastInterfaces), `"also"`)
}

func TestTheFastPathIsAdoptedTurnedOffAndPurgedBesideAnotherFlowtable(t *testing.T) {
	g := newFastGateway(t)
	theirs := "table inet theirs { flowtable ft { hook ingress priority 0; devices = { back, front }; }; }"
	g.nft(theirs, "-f", "-")
	f := labFrontend(model.TCP, lab.VIP(true, 1), 80, 30080, "all")
	s := model.Snapshot{Pools: []model.Pool{labPool("all", true, 0)}, Frontends: []model.Frontend{f}}
	g.apply(s)
	exchange := g.begin(f, g.lab.A)
	g.isFast(exchange, "a connection")
	g.restart()
	g.isFast(exchange, "a connection, after a restart")
	g.restartWithOption(flowtableOff)
	require.NotContains(t, g.nft("", "list", "table", "ip", "kubelb"), "fast")
	g.isSlow(exchange, "a connection, with the option off")
	g.restart()
	g.apply(s)
	require.NoError(t, exchange())
	g.isFast(exchange, "a connection, with the option on again")
	g.do(func() error { return g.Close(t.Context(), true) })
	left := g.nft("", "list", "ruleset")
	require.NotContains(t, left, "kubelb")
	require.Contains(t, left, "flowtable ft")
}

func TestAFlowtableWithoutItsChainsIsReplaced(t *testing.T) {
	g := newFastGateway(t)
	without := func() {
		for _, chain := range []string{flowtableName, chainNotes} {
			for _, verb := range []string{"flush", "delete"} {
				require.Empty(t, g.nft("", verb, "chain", "ip", "kubelb", chain))
			}
		}
		require.Empty(t, g.nft("", "delete", "set", "ip", "kubelb", setFastInterfaces))
	}
	without()
	g.restartWithOption(flowtableOff)
	require.NotContains(t, g.nft("", "list", "flowtables"), "flowtable fast")
	g.restart()
	require.True(t, g.isOn())
	without()
	g.fast.createdAt = time.Now().Add(-renewInterval - time.Second)
	g.syncFastPath()
	require.Contains(t, g.nft("", "list", "table", "ip", "kubelb"), "flow add @fast")
}

// A process that is killed between the transactions of the chains and of their rules leaves empty chains.
func TestMissingFastRulesAreAddedAgain(t *testing.T) {
	g := newFastGateway(t)
	g.syncFastPath()
	listed := func() string { return withoutCounters(g.nft("", "list", "table", "ip", "kubelb")) }
	whole := listed()
	for _, chain := range []string{flowtableName, chainNotes} {
		require.Empty(t, g.nft("", "flush", "chain", "ip", "kubelb", chain))
		require.NotEqual(t, whole, listed())
		g.syncFastPath()
		require.Equal(t, whole, listed(), "rules of chain %s", chain)
	}
}

func TestTheRulesOfAnEarlierVersionAreReplacedAtStart(t *testing.T) {
	g := newFastGateway(t)
	whole := g.nft("", "list", "chain", "ip", "kubelb", chainNotes)
	for _, change := range [][]string{{"flush", "chain", "ip", "kubelb", chainNotes}, {"add", "rule", "ip", "kubelb", chainNotes, "meta", "mark", "7", "accept"}} {
		require.Empty(t, g.nft("", change...))
	}
	g.restart()
	require.Equal(t, whole, g.nft("", "list", "chain", "ip", "kubelb", chainNotes))
}

// Another version replaces tables whose version chain has another name.
func TestTablesOfAnotherVersionAreReplacedWithTheirFlowtables(t *testing.T) {
	g := newFastGateway(t)
	f := labFrontend(model.TCP, lab.VIP(true, 1), 80, 30080, "all")
	s := model.Snapshot{Pools: []model.Pool{labPool("all", true, 0)}, Frontends: []model.Frontend{f}}
	g.apply(s)
	exchange := g.begin(f, g.lab.A)
	g.isFast(exchange, "a connection")
	require.Empty(t, g.nft("", "rename", "chain", "ip", "kubelb", versionChain, "layout-0"))
	g.restartWithOption(flowtableOff)
	require.NotContains(t, g.nft("", "list", "flowtables"), "flowtable fast", "so it would be after a downgrade")
	g.isSlow(exchange, "a connection, under the other version")
	require.Empty(t, g.nft("", "rename", "chain", "ip", "kubelb", versionChain, "layout-0"))
	g.restart()
	g.apply(s)
	require.NoError(t, exchange())
	g.isFast(exchange, "a connection, after an upgrade")
}

func (g *gateway) restartWithOption(flowtable string) {
	g.Backend = Backend{}
	g.do(func() error {
		return g.Configure(g.Context(), dataplane.Config{StateDir: g.TempDir(), Options: map[string]string{optionFlowtable: flowtable}})
	})
}

func TestWithoutFlowtablesInTheKernelAllFlowsAreSlowAndTheNoteSaysSo(t *testing.T) {
	g := newGateway(t)
	if g.isOn() {
		t.Skip("this kernel has flowtables")
	}
	description, err := g.Describe(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{unsupportedNote}, description.Notes)
	g.apply(everything())
	auto := withoutCounters(g.nft("", "list", "ruleset"))
	require.NotContains(t, auto, "flowtable")
	g.restartWithOption(flowtableOff)
	require.Equal(t, auto, withoutCounters(g.nft("", "list", "ruleset")))
	description, err = g.Describe(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{offNote}, description.Notes)
}

// nft 1.0 aborts at rules that it cannot write, so that nobody could list the host's rules. A kernel without flowtables accepts the rules without
// their last expression.
func TestNftListsTheFastRules(t *testing.T) {
	g := newGateway(t)
	g.restartWithOption(flowtableOff)
	for _, table := range g.tables {
		g.do(func() error {
			c, err := elements.Connect()
			if err != nil {
				return err
			}
			addChains(c, table.nft, fastChains())
			return errors.Join(c.AddSet(table.fastInterfaces(), nil), c.Flush())
		})
		g.do(func() error {
			n, err := table.countRules("nowhere")
			require.Zero(t, n)
			return err
		})
		rules, err := table.fastRules()
		require.NoError(t, err)
		taking := rules[flowtableName][len(rules[flowtableName])-len(masqueraded()):]
		for i := range taking {
			taking[i] = taking[i][:len(taking[i])-1]
		}
		family := table.layout.name
		ours := "ct status dnat ct original " + family + " daddr @vips "
		for chain, texts := range map[string][]string{
			flowtableName: {
				"ct mark 0x00000000 ct direction original ct state established " + ours + "ct original " + family + " daddr != @slow_path fib saddr . iif oif missing ct mark set 0x6b756201\n",
				"meta l4proto udp ct direction reply ct state established ct status dnat ct status assured meta mark 0x00000000 ct mark 0x00000000 " +
					"ct original " + family + " daddr @vips ct original " + family + " daddr != @slow_path " +
					"iifname @fast_interfaces oifname @fast_interfaces fib saddr . iif oif exists\n",
			},
			chainNotes: {"meta mark != 0x00000000 ct mark 0x00000000 ct state established " + ours + "ct original " + family + " daddr != @slow_path ct mark set 0x6b756201\n"},
		} {
			g.do(func() error { return table.replaceRules(chain, rules[chain]) })
			g.do(func() error {
				n, err := table.countRules(chain)
				require.Equal(t, len(rules[chain]), n)
				return err
			})
			for _, text := range texts {
				require.Contains(t, g.nft("", "list", "chain", family, "kubelb", chain), text)
			}
		}
	}
}
