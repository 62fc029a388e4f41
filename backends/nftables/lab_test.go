package nftables

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
}

// The conformance suite tests the binary. A few of its cases in this process are quicker to debug.
func TestShortConformance(t *testing.T) {
	needRoot(t)
	conformance.Test(t, conformance.InProcess(func() dataplane.Dataplane { return &Backend{} }), conformance.Options{
		Cases: []string{"tcp-echo", "udp-reply", "tcp-and-udp-on-one-port", "empty-pool", "weights", "source-ranges", "bad-records", "generations"}})
}

// gateway runs the dataplane in a lab's gateway, in this process.
type gateway struct {
	*testing.T
	lab  *lab.Lab
	next uint64
	Backend
}

func newGateway(t *testing.T) *gateway {
	t.Helper()
	needRoot(t)
	l, err := lab.New(1)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	g := &gateway{T: t, lab: l}
	g.restart()
	return g
}

func (g *gateway) do(f func() error) {
	g.Helper()
	require.NoError(g, g.lab.Gateways[0].Do(f))
}

// watchFor runs Watch for a while, and collects its reports.
func (g *gateway) watchFor(d time.Duration, reports *[]string) error {
	ctx, cancel := context.WithTimeout(g.Context(), d)
	defer cancel()
	return g.Watch(ctx, func(f dataplane.Fault) { *reports = append(*reports, f.Message) })
}

func (g *gateway) restart() {
	g.Backend = Backend{}
	g.do(func() error {
		return g.Configure(g.Context(), dataplane.Config{StateDir: g.TempDir()})
	})
}

func (g *gateway) apply(s model.Snapshot) dataplane.Change {
	var change dataplane.Change
	g.do(func() error {
		held, err := g.Applied(g.Context())
		if err != nil {
			return err
		}
		g.next++
		change = dataplane.Change{Base: held.Generation, Next: dataplane.Generation{Epoch: "test", Number: g.next}, Delta: model.Difference(held.Digests, s)}
		result, err := g.Apply(g.Context(), change)
		require.Empty(g, result.Failed)
		return err
	})
	return change
}

func (g *gateway) nft(stdin string, arguments ...string) string {
	var output []byte
	g.do(func() (err error) {
		cmd := exec.Command("nft", arguments...)
		cmd.Stdin = strings.NewReader(stdin)
		output, err = cmd.CombinedOutput()
		return err
	})
	return string(output)
}

func labPool(id string, v4 bool, endpoints ...int) model.Pool {
	p := model.Pool{ID: model.PoolID("t/" + id), Tenant: "t"}
	for _, i := range endpoints {
		a := lab.EndpointAddress(v4, i)
		p.Endpoints = append(p.Endpoints, model.Endpoint{ID: a.String(), Address: a, Weight: 1})
	}
	return p
}

func labFrontend(protocol model.Protocol, vip netip.Addr, port, target uint16, pool string) model.Frontend {
	return model.Frontend{FrontendKey: model.FrontendKey{VIP: vip, Protocol: protocol, Port: port},
		Owner: model.ObjectName{Namespace: "tenant-t", Name: "lb"}, Tenant: "t", Pool: model.PoolID("t/" + pool), TargetPort: target}
}

func everything() model.Snapshot {
	sticky := labFrontend(model.TCP, lab.VIP(true, 1), 80, 30080, "all")
	sticky.AffinityTimeout, sticky.Restricted = 90*time.Second, true
	sticky.SourceRanges = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.18.0.0/15")}
	limited := labFrontend(model.TCP, lab.VIP(true, 4), 80, 30080, "all")
	limited.MaxConnections, limited.MaxNewPerSecond = 100, 10
	direct := []model.Frontend{labFrontend(model.TCP, lab.VIP(true, 3), 80, 30080, "all"), labFrontend(model.UDP, lab.VIP(false, 3), 80, 30080, "six")}
	direct[0].Forwarding, direct[1].Forwarding = model.Direct, model.Direct
	return model.Snapshot{
		Pools: []model.Pool{labPool("all", true, 0, 1), labPool("none", true), labPool("six", false, 1)},
		Frontends: []model.Frontend{sticky, labFrontend(model.TCP, lab.VIP(true, 1), 81, 30080, "none"), labFrontend(model.TCP, lab.VIP(true, 2), 80, 30080, "all"),
			labFrontend(model.UDP, lab.VIP(false, 1), 53, 30053, "six"), direct[0], direct[1], limited}}
}

func TestRenderedTablesEqualTheKernels(t *testing.T) {
	g := newGateway(t)
	g.restartWithOption(flowtableOff) // a flowtable depends on the host, so it is not in the text
	text, err := g.Render(t.Context(), everything())
	require.NoError(t, err)
	g.apply(everything())
	g.nft("", "delete", "chain", "netdev", "kubelb", "egress-back") // of this host, so not in the text
	held := g.nft("", "list", "ruleset")
	g.do(func() error { return g.Close(t.Context(), true) })
	g.nft(text, "-f", "-")
	// google/nftables does not record the byte order of a map's data, so nft lists marks as data with their bytes swapped.
	// And timeouts change.
	differs := regexp.MustCompile(`: 0x[0-9a-f]{8}| expires [0-9a-z]+`)
	require.Equal(t, differs.ReplaceAllString(held, ""), differs.ReplaceAllString(g.nft("", "list", "ruleset"), ""),
		"the rendered text, loaded by nft, lists like what the backend made")
}

func TestANewProcessChangesNothingInTheKernel(t *testing.T) {
	g := newGateway(t)
	g.apply(everything())
	server, err := g.lab.Nodes[0].Serve(30080)
	require.NoError(t, err)
	defer server.Close()
	before := withoutCounters(g.nft("", "list", "ruleset"))
	g.restart()
	require.True(t, g.apply(everything()).Empty())
	require.Equal(t, before, withoutCounters(g.nft("", "list", "ruleset")))
}

func TestADirectEndpointMustBeOnASegmentOfTheGateway(t *testing.T) {
	g := newGateway(t)
	far := model.Pool{ID: "t/far", Tenant: "t", Endpoints: []model.Endpoint{{ID: "b", Address: g.lab.B.IPv4, Weight: 1}}}
	f := labFrontend(model.TCP, lab.VIP(true, 1), 80, 30080, "far")
	f.Forwarding = model.Direct
	refused := func(s model.Snapshot) {
		g.do(func() error {
			held, err := g.Applied(g.Context())
			if err != nil {
				return err
			}
			g.next++
			result, err := g.Apply(g.Context(), dataplane.Change{Base: held.Generation, Next: dataplane.Generation{Epoch: "test", Number: g.next}, Delta: model.Difference(held.Digests, s)})
			require.Len(g, result.Failed, 1)
			require.Contains(g, result.Failed[0].Message, "endpoint 198.18.1.100 is behind router 192.0.2.254")
			return err
		})
	}
	refused(model.Snapshot{Pools: []model.Pool{far}, Frontends: []model.Frontend{f}})
	near := labPool("far", true, 0)
	g.apply(model.Snapshot{Pools: []model.Pool{near}, Frontends: []model.Frontend{f}})
	refused(model.Snapshot{Pools: []model.Pool{far}, Frontends: []model.Frontend{f}})
}

func TestDirectFlowsAreRestoredAtTheInterfacesOfCurrentRoutes(t *testing.T) {
	g := newGateway(t)
	near := labPool("near", true, 0)
	f := labFrontend(model.TCP, lab.VIP(true, 1), 80, 30080, "near")
	f.Forwarding = model.Direct
	g.apply(model.Snapshot{Pools: []model.Pool{near}, Frontends: []model.Frontend{f}})
	changes := func() (problem string) {
		g.do(func() error {
			g.routes.Note()
			problem = g.followDirectRoutes(time.Now().Add(time.Minute))
			return nil
		})
		return problem
	}
	ip := func(arguments ...string) {
		g.do(func() error {
			return exec.Command("ip", append([]string{"route", "replace", near.Endpoints[0].Address.String() + "/32"}, arguments...)...).Run()
		})
	}
	egress := func() string { return g.nft("", "list", "table", "netdev", "kubelb") }
	require.Empty(t, changes())
	require.NotContains(t, egress(), "chain egress-front")
	ip("dev", "front")
	require.Empty(t, changes())
	require.Contains(t, egress(), "chain egress-front")
	ip("via", g.lab.A.IPv4.String())
	require.Contains(t, changes(), "is behind router")
	require.Empty(t, changes(), "it is reported once")
	ip("dev", "front")
	require.Empty(t, changes())
}

func TestThePluginDoesNotStartBesideATableOfAnotherProgram(t *testing.T) {
	for _, family := range []string{"ip", "ip6", "netdev"} {
		g := newGateway(t)
		g.do(func() error { return g.Close(t.Context(), true) })
		require.Empty(t, g.nft("table "+family+" kubelb { chain foreign { }; }", "-f", "-"))
		foreign := g.nft("", "list", "ruleset")
		g.Backend = Backend{}
		g.do(func() error {
			err := g.Configure(t.Context(), dataplane.Config{StateDir: t.TempDir()})
			require.EqualError(t, err, `the nftables table `+family+` kubelb is not KubeLB's: delete it (nft delete table `+family+` kubelb), or use another name for KubeLB's tables with --backend-option table=NAME`)
			return nil
		})
		require.Equal(t, foreign, g.nft("", "list", "ruleset"))
		require.Contains(t, foreign, "foreign")
	}
}

func TestAMissingEgressChainIsAddedAgain(t *testing.T) {
	g := newGateway(t)
	g.apply(everything())
	g.nft("", "delete", "chain", "netdev", "kubelb", "egress-back")
	g.do(func() error {
		require.Equal(g, "chain egress-back", g.missing())
		return nil
	})
	g.restart()
	g.apply(model.Snapshot{})
	g.apply(everything())
	require.Contains(t, g.nft("", "list", "table", "netdev", "kubelb"), "chain egress-back")
}

func withoutCounters(ruleset string) string {
	var kept []string
	for line := range strings.Lines(ruleset) {
		if !strings.Contains(line, "packets") && !strings.Contains(line, "expires") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

func TestConnectionsAreCountedByFrontendAndEndpoint(t *testing.T) {
	g := newGateway(t)
	for _, node := range g.lab.Nodes[:2] {
		server, err := node.Serve(30080)
		require.NoError(t, err)
		defer server.Close()
	}
	g.apply(everything())
	open := labFrontend(model.TCP, lab.VIP(true, 2), 80, 30080, "all").FrontendKey
	answers, err := g.lab.A.RequestTimes(60, "tcp", netip.AddrPortFrom(open.VIP, open.Port))
	require.NoError(t, err)
	first := 0
	for _, a := range answers {
		if a.Endpoint == lab.EndpointAddress(true, 0) {
			first++
		}
	}
	var stats dataplane.Stats
	g.do(func() (err error) {
		stats, err = g.Stats(t.Context())
		return err
	})
	require.EqualValues(t, 60, stats.Frontends[open].Connections)
	require.EqualValues(t, first, stats.Endpoints[dataplane.EndpointKey{Pool: "t/all", Endpoint: lab.EndpointAddress(true, 0).String()}].Connections)
}

// A packet may be looked up in one map before a change, and in the next one after it.
func TestAPacketIsDroppedIfItsEndpointIsDeletedBetweenTwoLookups(t *testing.T) {
	g := newGateway(t)
	server, err := g.lab.Nodes[0].Serve(30080)
	require.NoError(t, err)
	defer server.Close()
	sticky := labFrontend(model.TCP, lab.VIP(true, 2), 80, 30080, "all")
	sticky.AffinityTimeout = time.Minute
	g.apply(model.Snapshot{Pools: []model.Pool{labPool("all", true, 0)}, Frontends: []model.Frontend{labFrontend(model.TCP, lab.VIP(true, 1), 80, 30080, "all"), sticky}})
	g.nft("", "flush", "map", "ip", "kubelb", "endpoints")
	for vip := range 2 {
		require.True(t, g.lab.A.Silent("tcp", netip.AddrPortFrom(lab.VIP(true, 1+vip), 80)), "VIP %d", 1+vip)
	}
}

// An operator or another program may change the tables.
func TestUnreadableTablesAreReplaced(t *testing.T) {
	g := newGateway(t)
	g.apply(everything())
	for _, element := range []string{"{ 0x00000009 : 0x00000001 }", "{ * : 0x00000001 }"} {
		g.nft("", "add", "element", "ip", "kubelb", mapRegistry, element) // kernels before 5.13 know no *
		g.restart()
		var held dataplane.Applied
		g.do(func() (err error) {
			held, err = g.Applied(t.Context())
			return err
		})
		require.Empty(t, held.Pools, "the manager has to send all records again: %s", element)
		description, err := g.Describe(t.Context())
		require.NoError(t, err)
		require.Contains(t, strings.Join(description.Notes, "\n"), "the tables were replaced, since the existing ones could not be read (adopt table")
		g.apply(everything())
		g.restart()
		g.do(func() (err error) {
			held, err = g.Applied(t.Context())
			return err
		})
		require.Equal(t, everything().Digests(), held.Digests)
	}
}

func TestARecordThatTheKernelRefusesDoesNotBlockOthers(t *testing.T) {
	g := newGateway(t)
	s := model.Snapshot{Pools: []model.Pool{labPool("all", true, 0)}}
	for port := range uint16(7) {
		s.Frontends = append(s.Frontends, labFrontend(model.TCP, lab.VIP(true, 1), 80+port, 30080, "all"))
	}
	g.apply(s)
	bad := s.Frontends[3]
	require.Empty(t, g.nft("", "delete", "element", "ip", "kubelb", mapPorts, fmt.Sprintf("{ %s . tcp . %d }", bad.VIP, bad.Port)))
	for i := range s.Frontends {
		s.Frontends[i].TargetPort = 30090
	}
	g.do(func() error {
		result, err := g.Apply(g.Context(), dataplane.Change{Delta: model.Delta{UpsertFrontends: s.Frontends}})
		require.Len(g, result.Failed, 1)
		require.Equal(g, bad.FrontendKey, result.Failed[0].Frontend)
		require.Contains(g, result.Failed[0].Message, "no such file or directory")
		held, applied := g.Applied(g.Context())
		require.NoError(g, applied)
		require.Equal(g, bad.Digest(), held.Frontends[bad.FrontendKey], "a refused record keeps its former state")
		for i, f := range s.Frontends {
			require.True(g, i == 3 || f.Digest() == held.Frontends[f.FrontendKey], "%s", f.FrontendKey)
		}
		return err
	})
}

func TestAPurgeRemovesAllTablesAndNoOthers(t *testing.T) {
	g := newGateway(t)
	g.apply(everything())
	require.Empty(t, g.nft("table ip kubelb-other { chain c { type filter hook input priority 0; }; }", "-f", "-"))
	for range 2 { // a purge that is repeated finds nothing to do
		g.do(func() error { return g.Close(t.Context(), true) })
		held := g.nft("", "list", "tables")
		require.Equal(t, "table ip kubelb-other\n", held)
		require.Contains(t, g.nft("", "list", "ruleset"), "hook input")
	}
}

func TestARemovedTableIsAFaultThatNamesIt(t *testing.T) {
	g := newGateway(t)
	g.do(func() error {
		require.Empty(g, g.missing())
		return nil
	})
	for _, table := range []string{"ip kubelb", "ip6 kubelb", "netdev kubelb"} {
		g.nft("", append([]string{"delete", "table"}, strings.Fields(table)...)...)
		g.do(func() error {
			require.Equal(g, "table "+table, g.missing())
			return nil
		})
		g.restart()
	}
}
