package bgp

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	wire "github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"
	"github.com/stretchr/testify/require"
)

const (
	gatewaysASN, routersASN = 4200000001, 64500
	soon                    = 10 * time.Second
)

var loopback = netip.MustParseAddr("127.0.0.1")

// router is another BGP speaker, which listens on loopback for the tested speaker.
type router struct {
	*server.BgpServer
	at   netip.Addr
	port uint16

	mu  sync.Mutex // guards ups
	ups int
}

// newRouter listens on a free port. change changes its configuration.
func newRouter(t testing.TB, asn uint32, change func(*api.Peer)) *router {
	t.Helper()
	return newRouterAt(t, loopback, asn, change)
}

func newRouterAt(t testing.TB, at netip.Addr, asn uint32, change func(*api.Peer)) *router {
	t.Helper()
	r := &router{BgpServer: server.NewBgpServer(), at: at, port: freePort(t)}
	go r.Serve()
	ctx := context.Background()
	require.NoError(t, r.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{Asn: asn, RouterId: "10.0.0.1", ListenPort: int32(r.port), ListenAddresses: []string{at.String()}}}))
	t.Cleanup(r.Stop)
	require.NoError(t, r.WatchEvent(t.Context(), server.WatchEventMessageCallbacks{OnPeerUpdate: func(e *apiutil.WatchEventMessage_PeerEvent, _ time.Time) {
		if e.Type == apiutil.PEER_EVENT_STATE && e.Peer.State.SessionState == wire.BGP_FSM_ESTABLISHED {
			r.mu.Lock()
			r.ups++
			r.mu.Unlock()
		}
	}}, server.WatchPeer()))
	p := &api.Peer{Conf: &api.PeerConf{NeighborAddress: loopback.String(), PeerAsn: gatewaysASN}, Transport: &api.Transport{PassiveMode: true}}
	for _, afi := range []api.Family_Afi{api.Family_AFI_IP, api.Family_AFI_IP6} {
		p.AfiSafis = append(p.AfiSafis, &api.AfiSafi{Config: &api.AfiSafiConfig{Family: &api.Family{Afi: afi, Safi: api.Family_SAFI_UNICAST}, Enabled: true}})
	}
	if change != nil {
		change(p)
	}
	require.NoError(t, r.AddPeer(ctx, &api.AddPeerRequest{Peer: p}))
	return r
}

func freePort(t testing.TB) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// sessions returns the number of sessions so far.
func (r *router) sessions() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ups
}

// routes returns the routes of a family in the router's table, with their attributes.
func (r *router) routes(t testing.TB, family wire.Family) map[string][]wire.PathAttributeInterface {
	t.Helper()
	out := map[string][]wire.PathAttributeInterface{}
	require.NoError(t, r.ListPath(apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_GLOBAL, Family: family}, func(prefix wire.NLRI, paths []*apiutil.Path) {
		for _, p := range paths {
			out[prefix.String()] = p.Attrs
		}
	}))
	return out
}

func (r *router) peer() Peer {
	return Peer{Name: "router", Address: r.at, Port: r.port, LocalASN: gatewaysASN, PeerASN: routersASN, HoldTime: 90 * time.Second, Keepalive: 30 * time.Second,
		ConnectRetry: time.Second, IPv4: true}
}

// newSpeaker runs a speaker until the test ends, or stop is called.
func newSpeaker(t testing.TB) (s *Speaker, stop func()) {
	t.Helper()
	return newSpeakerAs(t, "10.0.0.2")
}

func discarded() *slog.Logger { return slog.New(slog.DiscardHandler) }

// newSpeakerAs runs a speaker with this BGP identifier.
func newSpeakerAs(t testing.TB, id string) (s *Speaker, stop func()) {
	t.Helper()
	s = NewSpeaker(Options{RouterID: netip.MustParseAddr(id), Changed: func() {}, Log: discarded()})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	t.Cleanup(stop)
	return s, stop
}

func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	require.Eventually(t, is, soon, 20*time.Millisecond, what)
}

func addresses(n int) (all []netip.Addr) {
	for i := range n {
		all = append(all, netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}))
	}
	return all
}

func TestEachAddressIsARouteToTheGateway(t *testing.T) {
	r := newRouter(t, routersASN, nil)
	s, stop := newSpeaker(t)
	require.False(t, s.CanAnnounce())
	s.Announce(netip.MustParseAddr("203.0.113.1"))
	require.NoError(t, s.SetPeers(t.Context(), []Peer{r.peer()}))
	eventually(t, "what was announced before the session", func() bool { return len(r.routes(t, wire.RF_IPv4_UC)) == 1 })
	require.True(t, s.CanAnnounce())
	s.Announce(netip.MustParseAddr("203.0.113.2"))
	eventually(t, "what was announced later", func() bool { return len(r.routes(t, wire.RF_IPv4_UC)) == 2 })
	attributes := fmt.Sprint(r.routes(t, wire.RF_IPv4_UC)["203.0.113.2/32"])
	require.Contains(t, attributes, "Nexthop: 127.0.0.1")
	require.Contains(t, attributes, fmt.Sprint(gatewaysASN))
	s.Withdraw(netip.MustParseAddr("203.0.113.1"))
	eventually(t, "one is withdrawn", func() bool { return len(r.routes(t, wire.RF_IPv4_UC)) == 1 })
	require.Equal(t, 1, r.sessions())
	begin := time.Now()
	stop()
	require.Empty(t, r.routes(t, wire.RF_IPv4_UC), "all are withdrawn before the session ends")
	require.GreaterOrEqual(t, time.Since(begin), withdrawalPause)
}

func TestAThousandAddressesAreAnnouncedAndWithdrawnInOneSession(t *testing.T) {
	r := newRouter(t, routersASN, nil)
	s, _ := newSpeaker(t)
	require.NoError(t, s.SetPeers(t.Context(), []Peer{r.peer()}))
	eventually(t, "a session", s.CanAnnounce)
	for range 3 {
		s.Announce(addresses(1000)...)
		eventually(t, "all are there", func() bool { return len(r.routes(t, wire.RF_IPv4_UC)) == 1000 })
		s.Withdraw(addresses(1000)...)
		eventually(t, "all are gone", func() bool { return len(r.routes(t, wire.RF_IPv4_UC)) == 0 })
	}
	require.Equal(t, 1, r.sessions())
}

func TestRoutesOfARouterAreIgnored(t *testing.T) {
	r := newRouter(t, routersASN, nil)
	s, _ := newSpeaker(t)
	for _, a := range addresses(3) {
		path, err := pathTo(a)
		require.NoError(t, err)
		_, err = r.AddPath(apiutil.AddPathRequest{Paths: []*apiutil.Path{path}})
		require.NoError(t, err)
	}
	require.NoError(t, s.SetPeers(t.Context(), []Peer{r.peer()}))
	own := netip.MustParseAddr("203.0.113.1")
	s.Announce(own)
	eventually(t, "what is ours", func() bool { return len(r.routes(t, wire.RF_IPv4_UC)) == 4 })
	offered := 0
	eventually(t, "what is offered has come", func() bool {
		offered = 0
		require.NoError(t, s.server.ListPath(apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_ADJ_IN, Name: loopback.String(), Family: wire.RF_IPv4_UC},
			func(wire.NLRI, []*apiutil.Path) { offered++ }))
		return offered == 3
	})
	var taken []string
	require.NoError(t, s.server.ListPath(apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_GLOBAL, Family: wire.RF_IPv4_UC},
		func(prefix wire.NLRI, _ []*apiutil.Path) { taken = append(taken, prefix.String()) }))
	require.Equal(t, []string{own.String() + "/32"}, taken)
}

func TestAChangedPolicyIsSentInThePresentSession(t *testing.T) {
	r := newRouter(t, routersASN, nil)
	s, _ := newSpeaker(t)
	s.Announce(netip.MustParseAddr("203.0.113.1"))
	p := r.peer()
	require.NoError(t, s.SetPeers(t.Context(), []Peer{p}))
	eventually(t, "a route", func() bool { return len(r.routes(t, wire.RF_IPv4_UC)) == 1 })
	p.Communities = []string{"64512:100", "64512:1:2", "no-export"}
	for range 2 { // setting the same peers again changes nothing
		require.NoError(t, s.SetPeers(t.Context(), []Peer{p}))
	}
	eventually(t, "its communities", func() bool {
		attributes := fmt.Sprint(r.routes(t, wire.RF_IPv4_UC)["203.0.113.1/32"])
		return slices.IndexFunc([]string{"64512:100", "64512:1:2", "no-export"}, func(c string) bool { return !strings.Contains(attributes, c) }) < 0
	})
	p.Communities = nil
	require.NoError(t, s.SetPeers(t.Context(), []Peer{p}))
	eventually(t, "none any more", func() bool {
		return !strings.Contains(fmt.Sprint(r.routes(t, wire.RF_IPv4_UC)["203.0.113.1/32"]), "64512")
	})
	require.Equal(t, 1, r.sessions())
	p.HoldTime = 30 * time.Second
	require.NoError(t, s.SetPeers(t.Context(), []Peer{p}))
	eventually(t, "another session, since its timers are others", func() bool { return r.sessions() == 2 })
	require.NoError(t, s.SetPeers(t.Context(), nil))
	eventually(t, "no route from no session", func() bool { return len(r.routes(t, wire.RF_IPv4_UC)) == 0 })
	require.Empty(t, s.Sessions())
}

func TestTheLocalPreferenceIsSentInTheSameAS(t *testing.T) {
	r := newRouter(t, gatewaysASN, nil)
	s, _ := newSpeaker(t)
	s.Announce(netip.MustParseAddr("203.0.113.1"))
	p, preference := r.peer(), uint32(250)
	p.PeerASN, p.LocalPreference = gatewaysASN, &preference
	require.NoError(t, s.SetPeers(t.Context(), []Peer{p}))
	eventually(t, "a route that is preferred", func() bool {
		return strings.Contains(fmt.Sprint(r.routes(t, wire.RF_IPv4_UC)["203.0.113.1/32"]), "LocalPref: 250")
	})
}

func TestASessionNeedsThePassword(t *testing.T) {
	r := newRouter(t, routersASN, func(p *api.Peer) { p.Conf.AuthPassword = "secret" })
	s, _ := newSpeaker(t)
	p := r.peer()
	p.Password = "guess"
	require.NoError(t, s.SetPeers(t.Context(), []Peer{p}))
	require.Never(t, s.CanAnnounce, 2*time.Second, 50*time.Millisecond)
	p.Password = "secret"
	require.NoError(t, s.SetPeers(t.Context(), []Peer{p}))
	eventually(t, "a session", s.CanAnnounce)
}
