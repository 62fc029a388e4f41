package bgp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	wire "github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"

	"kubelb.k8c.io/manager/bfd"
)

// Options are what a speaker needs.
type Options struct {
	// Name is the gateway's. RouterID is the BGP identifier (RFC 6286), an IPv4 address that no other speaker has; if it is none, it is
	// the own address towards the first router, or a number made of the name where that is IPv6.
	Name     string
	RouterID netip.Addr
	// StayWhenEnded leaves the routes with routers that know graceful restart when the speaker ends: another one follows soon, and the
	// dataplane works on in between. Otherwise they are withdrawn.
	StayWhenEnded bool
	// Notice is how long the speaker waits at its end before it withdraws routes, for other gateways to know what comes to them.
	Notice time.Duration
	// Changed is told when a session came or went; it must not block.
	Changed func()
	Log     *slog.Logger
}

// Session is what has become of a peer.
type Session struct {
	Peer        Peer
	Established bool
	// Since is when that began. Reason is why there is no session, as far as known.
	Since  time.Time
	Reason string
	// Detected: BFD, if the peer does it, finds the router there.
	Detected bool
}

// Speaker announces addresses. It is safe for concurrent use.
type Speaker struct {
	options Options

	mu    sync.Mutex // guards all below
	owned map[netip.Addr]bool
	peers map[netip.Addr]Peer
	bfd   *bfd.Server
	// server is there from the first peer on, until the end.
	server   *server.BgpServer
	sessions map[netip.Addr]Session
	hops     map[netip.Addr]nextHops
	ended    bool
	// policyName is the policy that is in force, policies how many there have been; told is what it says.
	policyName, told string
	policies         int
	endWatch         context.CancelFunc
}

// NewSpeaker returns a speaker without peers.
func NewSpeaker(o Options) *Speaker {
	return &Speaker{options: o, bfd: bfd.New(bfd.Options{Changed: o.Changed, Log: o.Log.With("part", "bfd")}), owned: map[netip.Addr]bool{}, peers: map[netip.Addr]Peer{}, sessions: map[netip.Addr]Session{}, hops: map[netip.Addr]nextHops{}}
}

// Announce has routers send packets for the addresses here.
func (s *Speaker) Announce(addresses ...netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range addresses {
		s.owned[a] = true
	}
	s.tell(addresses, false)
}

// Withdraw takes that back. Routers hear of it at once, and heed it a moment later.
func (s *Speaker) Withdraw(addresses ...netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var gone []netip.Addr
	for _, a := range addresses {
		if s.owned[a] {
			delete(s.owned, a)
			gone = append(gone, a)
		}
	}
	s.tell(gone, true)
}

// tell hands routes to the server; mu is held.
func (s *Speaker) tell(addresses []netip.Addr, withdrawn bool) {
	if s.server == nil || len(addresses) == 0 {
		return
	}
	paths := make([]*apiutil.Path, len(addresses))
	for i, a := range addresses {
		path, err := pathTo(a)
		if err != nil {
			s.options.Log.Error("no route can be made", "address", a, "error", err)
			return
		}
		paths[i] = path
	}
	var err error
	if withdrawn {
		err = s.server.DeletePath(apiutil.DeletePathRequest{Paths: paths})
	} else {
		_, err = s.server.AddPath(apiutil.AddPathRequest{Paths: paths})
	}
	if err != nil {
		s.options.Log.Error("announce by BGP", "addresses", len(addresses), "withdrawn", withdrawn, "error", err)
	}
}

// pathTo is the route to an address. Its next hop is put in for each router by policy.
func pathTo(a netip.Addr) (*apiutil.Path, error) {
	nlri, err := wire.NewIPAddrPrefix(netip.PrefixFrom(a, a.BitLen()))
	if err != nil {
		return nil, err
	}
	path := &apiutil.Path{Family: wire.RF_IPv4_UC, Nlri: nlri, Attrs: []wire.PathAttributeInterface{wire.NewPathAttributeOrigin(wire.BGP_ORIGIN_ATTR_TYPE_IGP)}}
	var hop wire.PathAttributeInterface
	if a.Is4() {
		hop, err = wire.NewPathAttributeNextHop(netip.IPv4Unspecified())
	} else {
		path.Family = wire.RF_IPv6_UC
		hop, err = wire.NewPathAttributeMpReachNLRI(path.Family, []wire.PathNLRI{{NLRI: nlri}}, netip.IPv6Unspecified())
	}
	path.Attrs = append(path.Attrs, hop)
	return path, err
}

// Able tells whether any router listens.
func (s *Speaker) Able() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, session := range s.sessions {
		if session.Established {
			return true
		}
	}
	return false
}

// Sessions are the peers with what has become of them, by name.
func (s *Speaker) Sessions() []Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	sessions := slices.Collect(maps.Values(s.sessions))
	for i := range sessions {
		sessions[i].Detected = s.bfd.Up(sessions[i].Peer.Address)
	}
	slices.SortFunc(sessions, func(a, b Session) int { return a.Peer.Address.Compare(b.Peer.Address) })
	return sessions
}

// SetPeers has sessions with these routers and no others. A session whose peer has not changed goes on, whatever else does; what can be
// told anew without another session is told anew. Each router may be there once.
func (s *Speaker) SetPeers(ctx context.Context, peers []Peer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.server == nil && len(peers) == 0 {
		return nil
	}
	if s.server == nil {
		if err := s.start(ctx, peers[0]); err != nil {
			return err
		}
	}
	wanted := map[netip.Addr]Peer{}
	for _, p := range peers {
		wanted[p.Address] = p
	}
	var errs []error
	for address, has := range s.peers {
		if is, there := wanted[address]; !there || !is.equal(has) {
			errs = append(errs, s.remove(ctx, address))
		}
	}
	errs = append(errs, s.direct(ctx, peers), s.detect(peers))
	for _, p := range peers {
		_, there := s.peers[p.Address]
		s.peers[p.Address] = p
		session := s.sessions[p.Address]
		session.Peer = p
		s.sessions[p.Address] = session
		if there {
			continue
		}
		if err := s.server.AddPeer(ctx, &api.AddPeerRequest{Peer: p.wire()}); err != nil {
			errs = append(errs, fmt.Errorf("BGPPeer %s: %w", p.Name, err))
			delete(s.peers, p.Address)
		}
	}
	return errors.Join(errs...)
}

// start starts the server, which connects to routers and listens for none; mu is held.
func (s *Speaker) start(ctx context.Context, first Peer) error {
	id, err := s.routerID(first.Address)
	if err != nil {
		return fmt.Errorf("BGPPeer %s: %w", first.Name, err)
	}
	b := server.NewBgpServer(server.LoggerOption(s.options.Log.With("part", "bgp"), nil))
	go b.Serve()
	if err := b.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{Asn: first.LocalASN, RouterId: id.String(), ListenPort: -1}}); err != nil {
		return fmt.Errorf("start the BGP speaker: %w", err)
	}
	watch, end := context.WithCancel(context.WithoutCancel(ctx))
	if err := b.WatchEvent(watch, server.WatchEventMessageCallbacks{OnPeerUpdate: s.hear}, server.WatchPeer()); err != nil {
		end()
		b.Stop()
		return fmt.Errorf("watch BGP sessions: %w", err)
	}
	s.server, s.endWatch = b, end
	if err := s.refuse(ctx); err != nil {
		// A speaker that takes what it is offered must not be found by the next attempt.
		end()
		b.Stop()
		s.server, s.endWatch = nil, nil
		return fmt.Errorf("refuse what routers offer: %w", err)
	}
	s.tell(slices.Collect(maps.Keys(s.owned)), false)
	return nil
}

// detect has routers notice that this host is gone. What they notice is for them to act upon: nothing that is announced here depends on it.
func (s *Speaker) detect(peers []Peer) error {
	detected := map[netip.Addr]bfd.Timers{}
	for _, p := range peers {
		if p.BFDInterval > 0 {
			detected[p.Address] = bfd.Timers{Interval: p.BFDInterval, Multiplier: p.BFDMultiplier}
		}
	}
	return s.bfd.SetPeers(detected)
}

func (s *Speaker) routerID(router netip.Addr) (netip.Addr, error) {
	if s.options.RouterID.Is4() {
		return s.options.RouterID, nil
	}
	if own, err := sourceTowards(router); err != nil || own.Is4() {
		return own, err
	}
	h := fnv.New32a()
	h.Write([]byte(s.options.Name))
	var id [4]byte
	binary.BigEndian.PutUint32(id[:], max(1, h.Sum32()))
	return netip.AddrFrom4(id), nil
}

func (s *Speaker) remove(ctx context.Context, address netip.Addr) error {
	delete(s.peers, address)
	delete(s.sessions, address)
	delete(s.hops, address)
	return s.server.DeletePeer(ctx, &api.DeletePeerRequest{Address: address.String()})
}

// direct says what goes out to whom. Where that differs from before, routers that have a session are told anew; mu is held.
func (s *Speaker) direct(ctx context.Context, peers []Peer) error {
	var errs []error
	for _, p := range peers {
		hops, err := nextHopsTowards(p.Address)
		if err != nil {
			errs = append(errs, fmt.Errorf("BGPPeer %s: %w", p.Name, err))
			continue // what was found before stays
		}
		s.hops[p.Address] = hops
	}
	next := policyFor(peers, s.hops)
	told := fmt.Sprint(next.sets, next.rules)
	if told == s.told {
		return errors.Join(errs...)
	}
	if err := s.enact(ctx, next); err != nil {
		return errors.Join(append(errs, err)...)
	}
	s.told = told
	for address := range s.peers {
		errs = append(errs, s.server.ResetPeer(ctx, &api.ResetPeerRequest{Address: address.String(), Soft: true, Direction: api.ResetPeerRequest_DIRECTION_OUT}))
	}
	return errors.Join(errs...)
}

// mostReceived is how many routes of each family a router may offer, none of which is taken; one that offers more loses its session.
const mostReceived = 10_000

// wire is the peer in gobgp's terms.
func (p Peer) wire() *api.Peer {
	w := &api.Peer{
		Conf:      &api.PeerConf{NeighborAddress: p.Address.String(), LocalAsn: p.LocalASN, PeerAsn: p.PeerASN, AuthPassword: p.Password, Description: p.Name},
		Transport: &api.Transport{RemotePort: uint32(p.Port)},
		Timers: &api.Timers{Config: &api.TimersConfig{HoldTime: uint64(p.HoldTime / time.Second), KeepaliveInterval: uint64(p.Keepalive / time.Second),
			ConnectRetry: uint64(p.ConnectRetry / time.Second), IdleHoldTimeAfterReset: uint64(p.ConnectRetry / time.Second)}},
	}
	if p.MultihopTTL > 0 && p.LocalASN != p.PeerASN {
		w.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: uint32(p.MultihopTTL)}
	}
	if p.TTLSecurity {
		w.TtlSecurity = &api.TtlSecurity{Enabled: true, TtlMin: 255}
	}
	if p.GracefulRestart > 0 {
		// What the speaker announces does not depend on what routers say; it has no reason to wait for them long.
		w.GracefulRestart = &api.GracefulRestart{Enabled: true, RestartTime: uint32(p.GracefulRestart / time.Second), DeferralTime: 1, LocalRestarting: true}
	}
	for _, f := range []struct {
		told bool
		afi  api.Family_Afi
	}{{p.IPv4, api.Family_AFI_IP}, {p.IPv6, api.Family_AFI_IP6}} {
		if !f.told {
			continue
		}
		family := &api.Family{Afi: f.afi, Safi: api.Family_SAFI_UNICAST}
		w.AfiSafis = append(w.AfiSafis, &api.AfiSafi{Config: &api.AfiSafiConfig{Family: family, Enabled: true},
			PrefixLimits:      &api.PrefixLimit{Family: family, MaxPrefixes: mostReceived},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: p.GracefulRestart > 0}}})
	}
	return w
}

// hear takes what the server says of a session.
func (s *Speaker) hear(event *apiutil.WatchEventMessage_PeerEvent, at time.Time) {
	if event.Type != apiutil.PEER_EVENT_STATE {
		return
	}
	is := event.Peer.State
	s.mu.Lock()
	session, there := s.sessions[is.NeighborAddress]
	if !there {
		s.mu.Unlock()
		return
	}
	before := session.Established
	session.Established = is.SessionState == wire.BGP_FSM_ESTABLISHED
	if session.Established != before || session.Since.IsZero() {
		session.Since = at
	}
	switch {
	case session.Established:
		session.Reason = ""
	case is.DisconnectMessage != "":
		session.Reason = is.DisconnectMessage
	}
	s.sessions[is.NeighborAddress] = session
	s.mu.Unlock()
	if before != session.Established {
		s.options.Log.Info("BGP session", "peer", session.Peer.Name, "router", session.Peer.Address, "established", session.Established, "reason", session.Reason)
		s.options.Changed()
	}
}

// heed is how long routers get to heed what is withdrawn, before the sessions end.
const heed = time.Second

// Run waits for ctx to end, and then ends all sessions.
func (s *Speaker) Run(ctx context.Context) error {
	<-ctx.Done()
	if !s.options.StayWhenEnded {
		time.Sleep(s.options.Notice)
	}
	s.mu.Lock()
	s.ended = true
	b := s.server
	if b != nil && !s.options.StayWhenEnded {
		s.tell(slices.Collect(maps.Keys(s.owned)), true)
	}
	s.owned, s.server = map[netip.Addr]bool{}, nil
	s.mu.Unlock()
	if b == nil {
		return nil
	}
	if !s.options.StayWhenEnded {
		time.Sleep(heed)
	}
	s.endWatch()
	defer s.bfd.Close()
	return b.StopBgp(context.WithoutCancel(ctx), &api.StopBgpRequest{AllowGracefulRestart: s.options.StayWhenEnded})
}
