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

// Options configure a Speaker.
type Options struct {
	// Name is the gateway's name. RouterID is the BGP identifier (RFC 6286), an IPv4 address that no other speaker has. If it is not set, the identifier
	// is this host's address towards the first router, or a hash of the name if that is IPv6.
	Name     string
	RouterID netip.Addr
	// KeepRoutesOnExit: when the speaker ends, it does not withdraw its routes, so that routers with graceful restart keep them. Another process
	// follows soon, and the dataplane goes on in between.
	KeepRoutesOnExit bool
	// WithdrawDelay is how long the speaker waits at its end before it withdraws routes, so that peers are prepared for the traffic.
	WithdrawDelay time.Duration
	// Changed is called when a session is established or ends. It must not block.
	Changed func()
	Log     *slog.Logger
}

// Session is the state of the session with a peer.
type Session struct {
	Peer        Peer
	Established bool
	// Since is when the session came into this state. Reason is why it is not established, as far as known.
	Since  time.Time
	Reason string
	// Detected: the BFD session with the router is up. Undetected is why BFD cannot work on this host.
	Detected   bool
	Undetected string

	// updateError is why the announced routes could not be passed to GoBGP.
	updateError string
	// offered are the families in the router's OPEN. hops are the next hops of routes to it.
	offered map[ipam.Family]bool
	hops    nextHops
	// ended is when GoBGP ended the session for good because the router sent too many routes.
	ended time.Time
}

// SilentReason returns why addresses of a family are not announced to the router, empty if they are.
func (s Session) SilentReason(f ipam.Family) string {
	announced, hop := s.Peer.IPv4, s.hops.four
	if f == ipam.IPv6 {
		announced, hop = s.Peer.IPv6, s.hops.six
	}
	switch {
	case !announced:
		return fmt.Sprintf("spec.families does not name %s (the default is the family of spec.address)", f)
	case !s.Established:
		return cmp.Or(s.Reason, "there is no session yet")
	case s.updateError != "":
		return s.updateError
	case !s.offered[f]:
		return fmt.Sprintf("the router does not offer %[1]s in its OPEN: enable %[1]s for this neighbour at the router", f)
	case !hop.IsValid():
		return fmt.Sprintf("this gateway has no %s address on its interface to the router, which routes need as their next hop", f)
	}
	return ""
}

// Speaker announces addresses. It is safe for concurrent use.
type Speaker struct {
	options Options

	mu    sync.Mutex // guards the fields below
	owned map[netip.Addr]bool
	bfd   *bfd.Server
	// bfdError is why BFD cannot work. exportError is why the export policy could not be set, updateError why routes could not be passed to GoBGP.
	bfdError, exportError, updateError string
	// causes are updated by other goroutines. listeners has the functions that end the listener of each router.
	causes    *causes
	listeners map[netip.Addr]context.CancelFunc
	listening sync.WaitGroup
	// server is nil before the first peer and after the end.
	server *server.BgpServer
	// sessions are the wanted sessions. begun are the peers that GoBGP has.
	sessions map[netip.Addr]Session
	begun    map[netip.Addr]bool
	ended    bool
	// policyName is the name of the present policy, policies the number of policies so far, policyText its text.
	policyName, policyText string
	policies               int
	endWatch               context.CancelFunc
}

// NewSpeaker returns a speaker without peers.
func NewSpeaker(o Options) *Speaker {
	return &Speaker{options: o, bfd: bfd.New(bfd.Options{Changed: o.Changed, Log: o.Log.With("part", "bfd")}), owned: map[netip.Addr]bool{}, sessions: map[netip.Addr]Session{}, begun: map[netip.Addr]bool{},
		causes: &causes{of: map[netip.Addr]*cause{}, changed: o.Changed}, listeners: map[netip.Addr]context.CancelFunc{}}
}

// Announce announces the addresses to routers.
func (s *Speaker) Announce(addresses ...netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range addresses {
		s.owned[a] = true
	}
	s.update(addresses, false)
}

// Withdraw withdraws the addresses. Routers get the message at once, and apply it a moment later.
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
	s.update(gone, true)
}

// update passes routes to GoBGP. mu is held.
func (s *Speaker) update(addresses []netip.Addr, withdrawn bool) {
	if s.server == nil || len(addresses) == 0 {
		return
	}
	paths := make([]*apiutil.Path, len(addresses))
	for i, a := range addresses {
		path, err := pathTo(a)
		if err != nil {
			s.options.Log.Error("cannot make a route", "address", a, "error", err)
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
	s.updateError = textOf(err)
}

// pathTo returns the route to an address. The policy sets the next hop for each router.
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

// CanAnnounce reports whether any session is established.
func (s *Speaker) CanAnnounce() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, session := range s.sessions {
		if session.Established {
			return true
		}
	}
	return false
}

// SilentReason returns why addresses of a family are announced to no router, empty if they are announced to one.
func (s *Speaker) SilentReason(f ipam.Family) string {
	sessions := s.Sessions()
	if len(sessions) == 0 {
		return "no BGPPeer names a router for this gateway"
	}
	var why []string
	for _, session := range sessions {
		reason := session.SilentReason(f)
		if reason == "" {
			return ""
		}
		why = append(why, fmt.Sprintf("BGPPeer %s (%s): %s", session.Peer.Name, session.Peer.Address, reason))
	}
	return phrase.Few(why, "; ")
}

// Sessions returns the state of all sessions, sorted by address.
func (s *Speaker) Sessions() []Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	sessions := slices.Collect(maps.Values(s.sessions))
	for i := range sessions {
		address := sessions[i].Peer.Address
		sessions[i].Detected, sessions[i].Reason, sessions[i].updateError = s.bfd.Up(address), s.causes.reason(address), cmp.Or(s.exportError, s.updateError)
		if sessions[i].Peer.BFDInterval > 0 {
			sessions[i].Undetected = s.bfdError
		}
	}
	slices.SortFunc(sessions, func(a, b Session) int { return a.Peer.Address.Compare(b.Peer.Address) })
	return sessions
}

// SetPeers sets the routers with sessions. A session whose peer has not changed goes on. Changes that need no new session are sent in the
// present one. Each router may be listed once. If something fails for one router, that is the Reason of its session.
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
			s.causes.add(p)
		}
	}
	if s.server == nil {
		if err := s.start(ctx, peers); err != nil {
			s.setFailed(peers, err)
			return err
		}
	}
	exportErr := s.export(ctx, peers)
	s.exportError = textOf(exportErr)
	errs = append(errs, exportErr, s.detect(peers))
	for _, p := range peers {
		errs = append(errs, s.add(ctx, p))
	}
	return errors.Join(errs...)
}

// setFailed makes an error the reason why routers have no session.
func (s *Speaker) setFailed(peers []Peer, err error) {
	for _, p := range peers {
		s.causes.change(p.Address, func(c *cause) { c.connectFailed(err.Error()) })
	}
}

// add begins a session with a router if there is none, and again after GoBGP ended it for good. mu is held.
func (s *Speaker) add(ctx context.Context, p Peer) error {
	session := s.sessions[p.Address]
	if s.begun[p.Address] {
		if session.ended.IsZero() || time.Since(session.ended) < tooManyRoutesPause {
			return nil
		}
		session.ended = time.Time{}
		s.sessions[p.Address] = session
		return s.server.EnablePeer(ctx, &api.EnablePeerRequest{Address: p.Address.String()})
	}
	if err := s.server.AddPeer(ctx, &api.AddPeerRequest{Peer: p.wire()}); err != nil {
		s.setFailed([]Peer{p}, err)
		return fmt.Errorf("BGPPeer %s: %w", p.Name, err)
	}
	s.begun[p.Address] = true
	s.listen(p)
	return nil
}

// listen reads the messages of a router as long as its session is not established. mu is held.
func (s *Speaker) listen(p Peer) {
	if s.listeners[p.Address] != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.listeners[p.Address] = cancel
	s.listening.Go(func() { s.causes.listenTo(ctx, p) })
}

// stopListening ends that. mu is held.
func (s *Speaker) stopListening(address netip.Addr) {
	if end := s.listeners[address]; end != nil {
		end()
		delete(s.listeners, address)
	}
}

// start starts GoBGP, which connects to routers and does not accept connections. mu is held.
func (s *Speaker) start(ctx context.Context, peers []Peer) error {
	log := slog.New(logHandler{Handler: s.options.Log.With("part", "bgp").Handler(), causes: s.causes})
	b := server.NewBgpServer(server.LoggerOption(log, nil))
	go b.Serve()
	if err := b.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{Asn: peers[0].LocalASN, RouterId: s.routerID(peers).String(), ListenPort: -1}}); err != nil {
		return fmt.Errorf("start the BGP speaker: %w", err)
	}
	watch, end := context.WithCancel(context.WithoutCancel(ctx))
	if err := b.WatchEvent(watch, server.WatchEventMessageCallbacks{OnPeerUpdate: s.onEvent}, server.WatchPeer()); err != nil {
		end()
		b.Stop()
		return fmt.Errorf("watch BGP sessions: %w", err)
	}
	s.server, s.endWatch = b, end
	if err := s.refuse(ctx); err != nil {
		// The next attempt must not use a server that accepts routes.
		end()
		b.Stop()
		s.server, s.endWatch = nil, nil
		return fmt.Errorf("set the import policy: %w", err)
	}
	s.update(slices.Collect(maps.Keys(s.owned)), false)
	return nil
}

// detect sets the BFD sessions. They are for the routers: no announcement depends on them.
func (s *Speaker) detect(peers []Peer) error {
	detected := map[netip.Addr]bfd.Timers{}
	for _, p := range peers {
		if p.BFDInterval > 0 {
			detected[p.Address] = bfd.Timers{Interval: p.BFDInterval, Multiplier: p.BFDMultiplier}
		}
	}
	err := s.bfd.SetPeers(detected)
	s.bfdError = textOf(err)
	return err
}

// textOf returns the text of an error, empty for nil.
func textOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// routerID returns the BGP identifier: this host's address towards the first router that is reached by IPv4.
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

// remove ends the session with a router. mu is held.
func (s *Speaker) remove(ctx context.Context, address netip.Addr) error {
	begun := s.begun[address]
	delete(s.begun, address)
	delete(s.sessions, address)
	s.causes.remove(address)
	s.stopListening(address)
	if !begun {
		return nil
	}
	return s.server.DeletePeer(ctx, &api.DeletePeerRequest{Address: address.String()})
}

// export sets the export policy. If it has changed, GoBGP sends the routes again. mu is held.
func (s *Speaker) export(ctx context.Context, peers []Peer) error {
	hops := map[netip.Addr]nextHops{}
	for _, p := range peers {
		session := s.sessions[p.Address]
		found, err := nextHopsTowards(p.Address)
		if err == nil { // otherwise the former next hops stay
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
	text := fmt.Sprint(next.sets, next.rules)
	if text == s.policyText {
		return nil
	}
	if err := s.apply(ctx, next); err != nil {
		return err
	}
	s.policyText = text
	var errs []error
	for address := range s.begun {
		errs = append(errs, s.server.ResetPeer(ctx, &api.ResetPeerRequest{Address: address.String(), Soft: true, Direction: api.ResetPeerRequest_DIRECTION_OUT}))
	}
	return errors.Join(errs...)
}

// maxReceivedRoutes is how many routes of each family a router may send, which are ignored. With more, its session ends.
const maxReceivedRoutes = 10_000

// tooManyRoutesPause is the pause after such a session.
const tooManyRoutesPause = 5 * time.Minute

// wire returns the peer in GoBGP's types.
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
		// The routes do not depend on those of routers, so there is no reason to defer them long.
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
			PrefixLimits:      &api.PrefixLimit{Family: family, MaxPrefixes: maxReceivedRoutes},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: p.GracefulRestart > 0}}})
	}
	return w
}

// onEvent handles an event of a session from GoBGP.
func (s *Speaker) onEvent(event *apiutil.WatchEventMessage_PeerEvent, at time.Time) {
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
		s.stopListening(is.NeighborAddress)
	case s.begun[is.NeighborAddress]:
		s.listen(session.Peer)
	}
	if is.AdminState == api.PeerState_ADMIN_STATE_PFX_CT && session.ended.IsZero() {
		session.ended = at
	}
	s.sessions[is.NeighborAddress] = session
	s.mu.Unlock()
	s.causes.change(is.NeighborAddress, func(c *cause) { c.onSessionEnd(is.DisconnectReason) })
	if before != session.Established {
		s.options.Log.Info("BGP session", "peer", session.Peer.Name, "router", session.Peer.Address, "established", session.Established, "reason", s.causes.reason(is.NeighborAddress))
		s.options.Changed()
	}
}

// familiesIn returns the families in a router's OPEN. Without any, it is IPv4 (RFC 4760, section 8).
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

// withdrawalPause is the time for routers to apply withdrawals before the sessions end.
const withdrawalPause = time.Second

// Run waits for ctx to end, and then ends all sessions.
func (s *Speaker) Run(ctx context.Context) error {
	<-ctx.Done()
	if !s.options.KeepRoutesOnExit {
		time.Sleep(s.options.WithdrawDelay)
	}
	s.mu.Lock()
	s.ended = true
	b := s.server
	if b != nil && !s.options.KeepRoutesOnExit {
		s.update(slices.Collect(maps.Keys(s.owned)), true)
	}
	s.owned, s.server = map[netip.Addr]bool{}, nil
	for address := range s.listeners {
		s.stopListening(address)
	}
	s.mu.Unlock()
	s.listening.Wait()
	if b == nil {
		return nil
	}
	if !s.options.KeepRoutesOnExit {
		time.Sleep(withdrawalPause)
	}
	s.endWatch()
	defer s.bfd.Close()
	return b.StopBgp(context.WithoutCancel(ctx), &api.StopBgpRequest{AllowGracefulRestart: s.options.KeepRoutesOnExit})
}
