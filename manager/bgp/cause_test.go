package bgp

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/ipam"
)

// reason returns why the only peer has no session.
func reason(s *Speaker) string {
	sessions := s.Sessions()
	if len(sessions) != 1 || sessions[0].Established {
		return ""
	}
	return sessions[0].Reason
}

// comesToSay waits until the reason contains all parts, and checks it again after another attempt.
func comesToSay(t *testing.T, s *Speaker, parts ...string) {
	t.Helper()
	says := func() bool {
		for _, part := range parts {
			if !strings.Contains(reason(s), part) {
				return false
			}
		}
		return true
	}
	if !eventuallyIs(says) {
		t.Fatalf("the reason is %q, and has to say %q", reason(s), parts)
	}
	t.Log(reason(s))
	// The wait before the next attempt does not change the reason.
	time.Sleep(3 * time.Second)
	require.True(t, says(), "later the reason is %q", reason(s))
}

func eventuallyIs(is func() bool) bool {
	for end := time.Now().Add(2 * soon); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if is() {
			return true
		}
	}
	return false
}

// Each reason says more than the name of an error.
func TestTheReasonOfAFailedSessionNamesTheFaultAndTheSender(t *testing.T) {
	for name, c := range map[string]struct {
		router func(*api.Peer)
		asn    uint32
		peer   func(*Peer)
		says   []string
	}{
		"the router is of another AS": {asn: routersASN + 1,
			says: []string{"bad peer AS", "64501", "spec.peerASN is 64500", "NOTIFICATION 2/2", "sent by this gateway"}},
		"the router knows the gateway by another AS": {router: func(p *api.Peer) { p.Conf.PeerAsn = gatewaysASN + 7 },
			says: []string{"bad peer AS", "spec.localASN", "4200000001", "NOTIFICATION 2/2", "sent by the router"}},
		"both have one identifier": {asn: gatewaysASN, router: func(p *api.Peer) { p.Conf.PeerAsn = gatewaysASN },
			peer: func(p *Peer) { p.PeerASN = gatewaysASN },
			says: []string{"bad BGP identifier", "10.0.0.1", "--bgp-router-id", "NOTIFICATION 2/3"}},
		"nothing listens": {peer: func(p *Peer) { p.Port = 1 }, says: []string{"connection refused", "port 1", "spec.port"}},
		"another password": {router: func(p *api.Peer) { p.Conf.AuthPassword = "secret" }, peer: func(p *Peer) { p.Password = "guess" },
			says: []string{"no answer", "password", "without a NOTIFICATION"}},
		"no password": {router: func(p *api.Peer) { p.Conf.AuthPassword = "secret" },
			says: []string{"no answer", "password", "without a NOTIFICATION"}},
		"no route": {peer: func(p *Peer) { p.Address = netip.MustParseAddr("fe80::1") }, says: []string{"no route to fe80::1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.asn == 0 {
				c.asn = routersASN
			}
			r := newRouter(t, c.asn, c.router)
			s, _ := newSpeakerAs(t, "10.0.0.1")
			p := r.peer()
			if c.peer != nil {
				c.peer(&p)
			}
			_ = s.SetPeers(t.Context(), []Peer{p})
			comesToSay(t, s, c.says...)
		})
	}
}

func TestTheReasonOfAnEndedSessionNamesTheSender(t *testing.T) {
	for name, c := range map[string]struct {
		router func(*api.Peer)
		ends   func(*testing.T, *router, *Speaker)
		says   []string
	}{
		"the router is shut down": {ends: func(t *testing.T, r *router, _ *Speaker) {
			require.NoError(t, r.DisablePeer(t.Context(), &api.DisablePeerRequest{Address: loopback.String(), Communication: "maintenance until noon"}))
		}, says: []string{"administrative shutdown", "maintenance until noon", "NOTIFICATION 6/2", "sent by the router"}},
		"the router does not know the gateway any more": {ends: func(t *testing.T, r *router, _ *Speaker) {
			require.NoError(t, r.DeletePeer(t.Context(), &api.DeletePeerRequest{Address: loopback.String()}))
		}, says: []string{"peer deconfigured", "NOTIFICATION 6/3", "sent by the router"}},
		"more addresses than the router takes": {router: func(p *api.Peer) {
			for _, f := range p.AfiSafis {
				f.PrefixLimits = &api.PrefixLimit{Family: f.Config.Family, MaxPrefixes: 2}
			}
		}, ends: func(_ *testing.T, _ *router, s *Speaker) { s.Announce(addresses(3)...) },
			says: []string{"maximum number of prefixes", "NOTIFICATION 6/1", "sent by the router"}},
		"more routes than the gateway takes": {ends: func(t *testing.T, r *router, _ *Speaker) {
			var paths []*apiutil.Path
			for _, a := range addresses(maxReceivedRoutes + 1) {
				path, err := pathTo(a)
				require.NoError(t, err)
				paths = append(paths, path)
			}
			_, err := r.AddPath(apiutil.AddPathRequest{Paths: paths})
			require.NoError(t, err)
		}, says: []string{"maximum number of prefixes", "10000", "NOTIFICATION 6/1", "sent by this gateway"}},
		"the router is gone": {ends: func(_ *testing.T, r *router, _ *Speaker) { r.Stop() }, says: []string{"connection refused"}},
		"the router is shut down, and closes its port": {ends: func(t *testing.T, r *router, _ *Speaker) {
			require.NoError(t, r.DisablePeer(t.Context(), &api.DisablePeerRequest{Address: loopback.String(), Communication: "maintenance"}))
			time.Sleep(time.Second)
			r.Stop()
		}, says: []string{"connection refused", "before that: administrative shutdown", "maintenance"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRouter(t, routersASN, c.router)
			s, _ := newSpeaker(t)
			require.NoError(t, s.SetPeers(t.Context(), []Peer{r.peer()}))
			eventually(t, "a session", s.CanAnnounce)
			require.Empty(t, reason(s))
			c.ends(t, r, s)
			comesToSay(t, s, c.says...)
		})
	}
}

// The test plays the router: first it is silent for longer than the hold time, and then it ends each connection.
func TestTheReasonNamesWhyARouterDoesNotAnswer(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { listener.Close() })
	go func() {
		first := true
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if !first {
				conn.Close()
				continue
			}
			first = false
			open := binary.BigEndian.AppendUint16([]byte{4}, routersASN)
			open = append(binary.BigEndian.AppendUint16(open, 3), 10, 0, 0, 9, 0)
			conn.Write(append(messageBytes(1, open), messageBytes(4, nil)...))
			go io.Copy(io.Discard, conn)
		}
	}()
	s, _ := newSpeaker(t)
	p := Peer{Name: "router", Address: loopback, Port: uint16(listener.Addr().(*net.TCPAddr).Port), LocalASN: gatewaysASN, PeerASN: routersASN,
		HoldTime: 90 * time.Second, Keepalive: 30 * time.Second, ConnectRetry: time.Second, IPv4: true}
	require.NoError(t, s.SetPeers(t.Context(), []Peer{p}))
	eventually(t, "a session", s.CanAnnounce)
	comesToSay(t, s, "hold timer expired", "NOTIFICATION 4/0", "sent by this gateway")
	eventually(t, "that it ends connections now", func() bool { return strings.Contains(reason(s), "without a NOTIFICATION") })
	require.Contains(t, reason(s), "hold timer expired", "the former NOTIFICATION is more exact")
}

// A family is announced if both sides have negotiated it and the gateway has a next hop.
func TestAFamilyThatIsAnnouncedToNoRouterIsSilent(t *testing.T) {
	r := newRouter(t, routersASN, func(p *api.Peer) { p.AfiSafis = p.AfiSafis[:1] })
	s, _ := newSpeaker(t)
	require.Contains(t, s.SilentReason(ipam.IPv4), "no BGPPeer")
	p := r.peer()
	require.NoError(t, s.SetPeers(t.Context(), []Peer{p}))
	eventually(t, "a session", s.CanAnnounce)
	require.Empty(t, s.SilentReason(ipam.IPv4))
	require.Contains(t, s.SilentReason(ipam.IPv6), "BGPPeer router (127.0.0.1): spec.families does not name IPv6")
	p.IPv6 = true
	require.NoError(t, s.SetPeers(t.Context(), []Peer{p}))
	eventually(t, "a session that was negotiated anew", func() bool { return r.sessions() == 2 && s.CanAnnounce() })
	require.Empty(t, s.SilentReason(ipam.IPv4))
	require.Contains(t, s.SilentReason(ipam.IPv6), "BGPPeer router (127.0.0.1): the router does not offer IPv6 in its OPEN")
	both := newRouterAt(t, netip.MustParseAddr("127.0.0.2"), routersASN, nil)
	other := both.peer()
	other.Name, other.IPv6 = "other", true
	require.NoError(t, s.SetPeers(t.Context(), []Peer{p, other}))
	eventually(t, "another session", func() bool { return both.sessions() == 1 })
	eventually(t, "the loopback has ::1, which is no next hop", func() bool { return strings.Contains(s.SilentReason(ipam.IPv6), "no IPv6 address") })
}

// The first router has no route, the others do.
func TestARouterWithoutARouteDoesNotAffectOtherSessions(t *testing.T) {
	r := newRouter(t, routersASN, nil)
	s := NewSpeaker(Options{Name: "g", Changed: func() {}, Log: discarded()})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() { cancel(); require.NoError(t, <-ended) })
	away := r.peer()
	away.Name, away.Address = "away", netip.MustParseAddr("fe80::1")
	_ = s.SetPeers(t.Context(), []Peer{away, r.peer()})
	eventually(t, "the other one's session", s.CanAnnounce)
	for _, session := range s.Sessions() {
		if session.Peer.Name == "away" {
			require.Contains(t, session.Reason, "no route to fe80::1")
		}
	}
}

func TestMessagesInAHandshakeAreRead(t *testing.T) {
	segment := func(payload []byte) []byte {
		return append([]byte{0, 179, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x60, 0x18, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0}, payload...) // with four bytes of options
	}
	open := messageBytes(kindOpen, []byte{4, 0x5b, 0xa0, 0, 90, 10, 0, 0, 9, 14, 2, 6, 1, 4, 0, 1, 0, 1, 2, 6, 65, 4, 0, 1, 0, 2})
	all := messagesIn(segment(slices.Concat(open, messageBytes(kindNotification, []byte{2, 2, 0xfb, 0xf4}))), 179)
	require.Len(t, all, 2)
	said, is := readOpen(all[0].body)
	require.True(t, is)
	require.Equal(t, openMessage{asn: 65538, id: netip.MustParseAddr("10.0.0.9"), holdTime: 90}, said, "AS_TRANS stands for a number of four bytes")
	n, is := readNotification(all[1].body)
	require.True(t, is)
	require.Equal(t, notification{code: 2, subcode: 2}, n)
	require.Empty(t, messagesIn(segment(open), 1790), "of another port")
	require.Empty(t, messagesIn(segment([]byte("GET / HTTP/1.1\r\nHost: of another protocol\r\n")), 179))
}

func TestANotificationWithoutAdviceHasItsName(t *testing.T) {
	p := Peer{}
	require.Equal(t, "cease, out of resources (NOTIFICATION 6/8, sent by the router)", notification{code: 6, subcode: 8}.text(p, nil))
	require.Equal(t, "open, unsupported version number (NOTIFICATION 2/1, sent by this gateway)", notification{own: true, code: 2, subcode: 1}.text(p, nil))
	require.Equal(t, "an error without a name (NOTIFICATION 99/1, sent by the router)", notification{code: 99, subcode: 1}.text(p, nil))
}
