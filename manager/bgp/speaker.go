package bgp

import (
	"cmp"
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

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/phrase"
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
	// Detected: BFD, if the peer does it, finds the router there. Undetected is why BFD cannot work on this host.
	Detected   bool
	Undetected string

	// untold is why what is announced could not be handed to the speaker.
	untold string
	// offered are the families that the router's OPEN named, hops the next hops that it can be told.
	offered map[ipam.Family]bool
	hops    nextHops
	// ended is when a session ended because the router offered too many routes, which GoBGP begins no more.
	ended time.Time
}

// Untold is why the router is not told of addresses of a family; it is empty if it is told.
func (s Session) Untold(f ipam.Family) string {
	told, hop := s.Peer.IPv4, s.hops.four
	if f == ipam.IPv6 {
		told, hop = s.Peer.IPv6, s.hops.six
	}
	switch {
	case !told:
		return fmt.Sprintf("spec.families does not name %s (left out, it is the family of spec.address)", f)
	case !s.Established:
		return cmp.Or(s.Reason, "there is no session yet")
	case s.untold != "":
		return s.untold
	case !s.offered[f]:
		return fmt.Sprintf("the router does not offer %[1]s in its OPEN: enable %[1]s for this neighbour there", f)
	case !hop.IsValid():
		return fmt.Sprintf("this gateway has no %s address, which routes need as their next hop, on the interface that faces the router", f)
	}
	return ""
}

// Speaker announces addresses. It is safe for concurrent use.
type Speaker struct {
	options Options

	mu    sync.Mutex // guards all below
	owned map[netip.Addr]bool
	bfd   *bfd.Server
	// undetected is why BFD cannot work, undirected and untold why what is announced, and to whom, is not as it should be.
	undetected, undirected, untold string
	// causes are told by others' goroutines, and ears are those that hear routers, by what ends them.
	causes  *causes
	ears    map[netip.Addr]context.CancelFunc
	hearing sync.WaitGroup
	// server is there from the first peer on, until the end.
	server *server.BgpServer
	// sessions are those that are wanted, begun those of them that the server knows of.
	sessions map[netip.Addr]Session
	begun    map[netip.Addr]bool
	ended    bool
	// policyName is the policy that is in force, policies how many there have been; told is what it says.
	policyName, told string
	policies         int
	endWatch         context.CancelFunc
}

// NewSpeaker returns a speaker without peers.
func NewSpeaker(o Options) *Speaker {
	return &Speaker{options: o, bfd: bfd.New(bfd.Options{Changed: o.Changed, Log: o.Log.With("part", "bfd")}), owned: map[netip.Addr]bool{}, sessions: map[netip.Addr]Session{}, begun: map[netip.Addr]bool{},
		causes: &causes{of: map[netip.Addr]*cause{}, changed: o.Changed}, ears: map[netip.Addr]context.CancelFunc{}}
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
		err = fmt.Errorf("announce %d addresses: %w", len(addresses), err)
	}
	s.untold = textOf(err)
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

// Silent is why no router is told of addresses of a family; it is empty if one is.
func (s *Speaker) Silent(f ipam.Family) string {
	sessions := s.Sessions()
	if len(sessions) == 0 {
		return "no BGPPeer names a router for this gateway"
	}
	var why []string
	for _, session := range sessions {
		untold := session.Untold(f)
		if untold == "" {
			return ""
		}
		why = append(why, fmt.Sprintf("BGPPeer %s (%s): %s", session.Peer.Name, session.Peer.Address, untold))
	}
	return phrase.Few(why, "; ")
}

// Sessions are the peers with what has become of them, by name.
func (s *Speaker) Sessions() []Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	sessions := slices.Collect(maps.Values(s.sessions))
	for i := range sessions {
		address := sessions[i].Peer.Address
		sessions[i].Detected, sessions[i].Reason, sessions[i].untold = s.bfd.Up(address), s.causes.reason(address), cmp.Or(s.undirected, s.untold)
		if sessions[i].Peer.BFDInterval > 0 {
			sessions[i].Undetected = s.undetected
		}
	}
	slices.SortFunc(sessions, func(a, b Session) int { return a.Peer.Address.Compare(b.Peer.Address) })
	return sessions
}

// SetPeers has sessions with these routers and no others. A session whose peer has not changed goes on, whatever else does; what can be
// told anew without another session is told anew. Each router may be there once. What goes wrong with one router is its session's Reason.
func (s *Speaker) SetPeers(ctx context.Context, peers []Peer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.server == nil && len(peers) == 0 {
		return nil
	}
	wanted := map[netip.Addr]Peer{}
	for _, p := range peers {
		wanted[p.Address] = p
	}
	var errs []error
	for address, session := range s.sessions {
		if is, there := wanted[address]; !there || !is.equal(session.Peer) {
			errs = append(errs, s.remove(ctx, address))
		}
	}
	for _, p := range peers {
		session, there := s.sessions[p.Address]
		session.Peer = p
		if s.sessions[p.Address] = session; !there {
			s.causes.watch(p)
		}
	}
	if s.server == nil {
		if err := s.start(ctx, peers); err != nil {
			s.blame(peers, err)
			return err
		}
	}
	directed := s.direct(ctx, peers)
	s.undirected = textOf(directed)
	errs = append(errs, directed, s.detect(peers))
	for _, p := range peers {
		errs = append(errs, s.add(ctx, p))
	}
	return errors.Join(errs...)
}

// blame has an error be why there is no session with some routers.
func (s *Speaker) blame(peers []Peer, err error) {
	for _, p := range peers {
		s.causes.change(p.Address, func(c *cause) { c.failed(err.Error()) })
	}
}

// add has a session with a router, if there is none, and begins one again that has ended for good; mu is held.
func (s *Speaker) add(ctx context.Context, p Peer) error {
	session := s.sessions[p.Address]
	if s.begun[p.Address] {
		if session.ended.IsZero() || time.Since(session.ended) < offeredTooMuch {
			return nil
		}
		session.ended = time.Time{}
		s.sessions[p.Address] = session
		return s.server.EnablePeer(ctx, &api.EnablePeerRequest{Address: p.Address.String()})
	}
	if err := s.server.AddPeer(ctx, &api.AddPeerRequest{Peer: p.wire()}); err != nil {
		s.blame([]Peer{p}, err)
		return fmt.Errorf("BGPPeer %s: %w", p.Name, err)
	}
	s.begun[p.Address] = true
	s.lend(p)
	return nil
}

// lend has a router be heard as long as there is no session with it; mu is held.
func (s *Speaker) lend(p Peer) {
	if s.ears[p.Address] != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.ears[p.Address] = cancel
	s.hearing.Go(func() { s.causes.listenTo(ctx, p) })
}

// unlend ends that; mu is held.
func (s *Speaker) unlend(address netip.Addr) {
	if end := s.ears[address]; end != nil {
		end()
		delete(s.ears, address)
	}
}

// start starts the server, which connects to routers and listens for none; mu is held.
func (s *Speaker) start(ctx context.Context, peers []Peer) error {
	log := slog.New(listener{Handler: s.options.Log.With("part", "bgp").Handler(), causes: s.causes})
	b := server.NewBgpServer(server.LoggerOption(log, nil))
	go b.Serve()
	if err := b.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{Asn: peers[0].LocalASN, RouterId: s.routerID(peers).String(), ListenPort: -1}}); err != nil {
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
	err := s.bfd.SetPeers(detected)
	s.undetected = textOf(err)
	return err
}

// textOf is that of an error, empty for none.
func textOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// routerID is the speaker's BGP identifier: the own address towards the first router that has a route, and is reached by IPv4.
func (s *Speaker) routerID(peers []Peer) netip.Addr {
	if s.options.RouterID.Is4() {
		return s.options.RouterID
	}
	for _, p := range peers {
		if own, err := sourceTowards(p.Address); err == nil && own.Is4() {
			return own
		}
	}
	h := fnv.New32a()
	h.Write([]byte(s.options.Name))
	var id [4]byte
	binary.BigEndian.PutUint32(id[:], max(1, h.Sum32()))
	return netip.AddrFrom4(id)
}

// remove ends what there is with a router; mu is held.
func (s *Speaker) remove(ctx context.Context, address netip.Addr) error {
	begun := s.begun[address]
	delete(s.begun, address)
	delete(s.sessions, address)
	s.causes.forget(address)
	s.unlend(address)
	if !begun {
		return nil
	}
	return s.server.DeletePeer(ctx, &api.DeletePeerRequest{Address: address.String()})
}

// direct says what goes out to whom. Where that differs from before, routers that have a session are told anew; mu is held.
func (s *Speaker) direct(ctx context.Context, peers []Peer) error {
	hops := map[netip.Addr]nextHops{}
	for _, p := range peers {
		session := s.sessions[p.Address]
		found, err := nextHopsTowards(p.Address)
		if err == nil { // otherwise what was found before stays
			session.hops = found
			s.sessions[p.Address] = session
		}
		s.causes.change(p.Address, func(c *cause) {
			if c.unreachable = ""; err != nil {
				c.unreachable = err.Error()
			}
		})
		hops[p.Address] = session.hops
	}
	next := policyFor(peers, hops)
	told := fmt.Sprint(next.sets, next.rules)
	if told == s.told {
		return nil
	}
	if err := s.enact(ctx, next); err != nil {
		return err
	}
	s.told = told
	var errs []error
	for address := range s.begun {
		errs = append(errs, s.server.ResetPeer(ctx, &api.ResetPeerRequest{Address: address.String(), Soft: true, Direction: api.ResetPeerRequest_DIRECTION_OUT}))
	}
	return errors.Join(errs...)
}

// mostReceived is how many routes of each family a router may offer, none of which is taken; one that offers more loses its session.
const mostReceived = 10_000

// offeredTooMuch is for how long there is no session then.
const offeredTooMuch = 5 * time.Minute

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
		session.offered = familiesIn(is.RemoteCap)
		s.unlend(is.NeighborAddress)
	case s.begun[is.NeighborAddress]:
		s.lend(session.Peer)
	}
	if is.AdminState == api.PeerState_ADMIN_STATE_PFX_CT && session.ended.IsZero() {
		session.ended = at
	}
	s.sessions[is.NeighborAddress] = session
	s.mu.Unlock()
	s.causes.change(is.NeighborAddress, func(c *cause) { c.ended(is.DisconnectReason) })
	if before != session.Established {
		s.options.Log.Info("BGP session", "peer", session.Peer.Name, "router", session.Peer.Address, "established", session.Established, "reason", s.causes.reason(is.NeighborAddress))
		s.options.Changed()
	}
}

// familiesIn are those that a router's OPEN names. One that names none speaks IPv4 alone (RFC 4760, section 8).
func familiesIn(capabilities []wire.ParameterCapabilityInterface) map[ipam.Family]bool {
	families, named := map[ipam.Family]bool{}, false
	for _, c := range capabilities {
		if family, is := c.(*wire.CapMultiProtocol); is {
			named = true
			families[ipam.IPv4] = families[ipam.IPv4] || family.CapValue == wire.RF_IPv4_UC
			families[ipam.IPv6] = families[ipam.IPv6] || family.CapValue == wire.RF_IPv6_UC
		}
	}
	if !named {
		families[ipam.IPv4] = true
	}
	return families
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
	for address := range s.ears {
		s.unlend(address)
	}
	s.mu.Unlock()
	s.hearing.Wait()
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
