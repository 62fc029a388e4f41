package bgp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	wire "github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/ipam"
)

// causesOf returns causes with one peer, and a count of its changed reasons.
func causesOf(p Peer) (c *causes, changes *int) {
	changes = new(int)
	c = &causes{of: map[netip.Addr]*cause{}, changed: func() { *changes++ }}
	c.add(p)
	return c, changes
}

func aPeer() Peer {
	return Peer{Name: "router", Address: loopback, Port: 179, LocalASN: 64512, PeerASN: 64500, HoldTime: 9 * time.Second, Keepalive: 3 * time.Second, ConnectRetry: 5 * time.Second, IPv4: true}
}

func TestAReasonIsReportedWhenItChanges(t *testing.T) {
	c, changes := causesOf(aPeer())
	require.Empty(t, c.reason(loopback))
	require.True(t, c.isDown(loopback))
	for i, change := range []func(*cause){
		func(*cause) {},
		func(c *cause) { c.connectFailed("connection refused") },
		func(c *cause) { c.setEstablished(true) },
		func(c *cause) { c.setEstablished(false) },
	} {
		before := *changes
		c.change(loopback, change)
		reported := []int{0, 1, 1, 0}[i]
		require.Equal(t, before+reported, *changes, "change %d", i)
		c.change(loopback, change)
		require.Equal(t, before+reported, *changes, "the same once more changes nothing")
	}
	require.Empty(t, c.reason(loopback), "former reasons do not count after a session")
	unknown := netip.MustParseAddr("192.0.2.1")
	c.change(unknown, func(*cause) { t.Error("it is no peer") })
	require.Empty(t, c.reason(unknown))
	require.False(t, c.isDown(unknown))
	c.remove(loopback)
	require.False(t, c.isDown(loopback))
}

func TestTheMostExactReasonIsNamedFirst(t *testing.T) {
	shutDown := notification{code: cease, subcode: 2, communication: "until noon"}
	const shut = `administrative shutdown: an operator has shut the session down at the router, "until noon" (NOTIFICATION 6/2, sent by the router)`
	for name, c := range map[string]struct {
		happens func(*cause)
		want    string
	}{
		"nothing": {func(*cause) {}, ""},
		"a notification and then a vague end": {func(c *cause) { c.onNotification(shutDown); c.connectionLost(ended) },
			shut + "; since then: " + ended},
		"a notification and then a closed port": {func(c *cause) { c.onNotification(shutDown); c.connectFailed("connection refused") },
			"connection refused; before that: " + shut},
		"an end that follows from the notification": {func(c *cause) { c.onNotification(shutDown); c.connectionLostAfter(lost) }, shut},
		"a second end after the notification": {func(c *cause) { c.onNotification(shutDown); c.connectionLost(ended); c.connectionLostAfter(lost) },
			shut + "; since then: " + lost},
		"a later notification": {func(c *cause) { c.connectFailed("connection refused"); c.onNotification(shutDown) }, shut},
		"no route comes before all": {func(c *cause) { c.onNotification(shutDown); c.unreachable = "no route to 127.0.0.1" },
			"no route to 127.0.0.1"},
		"a vague end without the right to read": {func(c *cause) { c.connectionLost(lost); c.unreadable = "operation not permitted" },
			lost + "; messages of the router in the handshake cannot be read: operation not permitted"},
		"an exact fault without the right to read": {func(c *cause) { c.connectFailed("connection refused"); c.unreadable = "operation not permitted" }, "connection refused"},
		"an unexpected message of the router":      {func(c *cause) { c.onNotification(notification{own: true, code: fsmError}) }, unexpected},
		"this gateway's message was unexpected":    {func(c *cause) { c.onNotification(notification{code: fsmError}) }, ""},
		"two connections at once":                  {func(c *cause) { c.onNotification(notification{code: cease, subcode: collision}) }, ""},
	} {
		all, _ := causesOf(aPeer())
		all.change(loopback, c.happens)
		require.Equal(t, c.want, all.reason(loopback), name)
	}
}

func TestTheEndOfASessionIsVagueWithoutANotification(t *testing.T) {
	for because, want := range map[api.PeerState_DisconnectReason]string{
		api.PeerState_DISCONNECT_REASON_READ_FAILED:      lost,
		api.PeerState_DISCONNECT_REASON_WRITE_FAILED:     lost,
		api.PeerState_DISCONNECT_REASON_GRACEFUL_RESTART: lost,
		api.PeerState_DISCONNECT_REASON_INVALID_MSG:      unexpected,
		api.PeerState_DISCONNECT_REASON_ADMIN_DOWN:       "",
	} {
		c, _ := causesOf(aPeer())
		c.change(loopback, func(c *cause) { c.onSessionEnd(because) })
		require.Equal(t, want, c.reason(loopback), because)
		c.change(loopback, func(c *cause) { c.setEstablished(true); c.onSessionEnd(because); c.setEstablished(false) })
		require.Empty(t, c.reason(loopback), "the event is late: there is a new session")
	}
}

func TestAFailedConnectionHasTheAdviceForItsError(t *testing.T) {
	p := aPeer()
	for failure, want := range map[string]string{
		"dial tcp 127.0.0.1:179: connect: connection refused":     "connection refused at port 179: no BGP daemon listens there for this gateway; check spec.port and the router",
		"dial tcp 127.0.0.1:179: connect: no route to host":       "127.0.0.1 does not answer on its link (no route to host): check that it is up and on this segment",
		"dial tcp 127.0.0.1:179: connect: network is unreachable": "no route to 127.0.0.1",
		"dial tcp 127.0.0.1:179: i/o timeout":                     "spec.passwordSecret is not set",
		"dial tcp 127.0.0.1:179: connect: connection timed out":   "no answer at port 179: the router is down, or a filter drops packets, or the passwords differ",
		"the moon is full": "no connection: the moon is full",
	} {
		require.Contains(t, dialReason(p, failure), want, failure)
	}
	p.Password = "secret"
	text := dialReason(p, "i/o timeout")
	require.Contains(t, text, "compare the password in spec.passwordSecret")
	require.NotContains(t, text, `"secret"`)
}

func TestANotificationSaysWhatToChangeAtEitherSide(t *testing.T) {
	p, open := aPeer(), &openMessage{asn: 64999, id: netip.MustParseAddr("10.0.0.9"), holdTime: 1}
	for want, c := range map[string]struct {
		n notification
		o *openMessage
	}{
		"the router is of AS 64999, and spec.peerASN is 64500":                                          {notification{own: true, code: openError, subcode: 2}, open},
		"the router is of another AS than spec.peerASN, which is 64500":                                 {notification{own: true, code: openError, subcode: 2}, nil},
		"the router expects another AS than spec.localASN, which is 64512":                              {notification{code: openError, subcode: 2}, open},
		"the same identifier as this gateway, 10.0.0.9: set --bgp-router-id":                            {notification{own: true, code: openError, subcode: 3}, open},
		"the same identifier as this gateway: set --bgp-router-id":                                      {notification{own: true, code: openError, subcode: 3}, nil},
		"or does not accept this gateway's: set --bgp-router-id":                                        {notification{code: openError, subcode: 3}, nil},
		"the router's hold time is 1s, and at least 3s is required":                                     {notification{own: true, code: openError, subcode: 6}, open},
		"the router's hold time is shorter than 3s":                                                     {notification{own: true, code: openError, subcode: 6}, nil},
		"the router does not accept a hold time of 9s: change spec.holdTime":                            {notification{code: openError, subcode: 6}, open},
		"compare spec.families, spec.gracefulRestartTime and the router's settings":                     {notification{code: openError, subcode: 7}, nil},
		"the router sent nothing for the hold time (9s at most)":                                        {notification{own: true, code: holdExpired}, nil},
		"the router received nothing from this gateway for the hold time":                               {notification{code: holdExpired}, nil},
		"more than 10000 routes of a family: configure it to send none. The next attempt is after 5m0s": {notification{own: true, code: cease, subcode: 1}, nil},
		"fewer routes than there are addresses: raise its limit for this neighbour":                     {notification{code: cease, subcode: 1}, nil},
		"the router does not have this gateway's address as a neighbour any more":                       {notification{code: cease, subcode: 3}, nil},
		"check that it has this gateway's address as a neighbour":                                       {notification{code: cease, subcode: 5}, nil},
	} {
		text := c.n.text(p, c.o)
		require.Contains(t, text, want)
		by := map[bool]string{true: "this gateway", false: "the router"}[c.n.own]
		require.Contains(t, text, fmt.Sprintf("(NOTIFICATION %d/%d, sent by %s)", c.n.code, c.n.subcode, by))
	}
}

func TestATextOfARouterIsQuoted(t *testing.T) {
	text := notification{code: cease, subcode: 2, communication: "\x1b[2Jbye"}.text(aPeer(), nil)
	require.Contains(t, text, `"\x1b[2Jbye"`)
	require.NotContains(t, text, "\x1b", "control characters do not reach a terminal")
}

func TestTheCommunicationOfANotificationHasTheLengthThatItSays(t *testing.T) {
	for name, c := range map[string]struct {
		body []byte
		want string
		is   bool
	}{
		"a text":                     {append([]byte{cease, 2, 5}, "hello and more"...), "hello", true},
		"a text that is cut short":   {append([]byte{cease, 4, 200}, "hello"...), "hello", true},
		"an empty text":              {[]byte{cease, 2, 0}, "", true},
		"no text":                    {[]byte{cease, 2}, "", true},
		"data of another subcode":    {append([]byte{cease, 1, 5}, "hello"...), "", true},
		"data of another code":       {append([]byte{openError, 2, 5}, "hello"...), "", true},
		"less than code and subcode": {[]byte{cease}, "", false},
	} {
		n, is := readNotification(c.body)
		require.Equal(t, c.is, is, name)
		require.Equal(t, c.want, n.communication, name)
	}
}

func TestAnOpenOfOldRoutersHasAnASOfTwoBytes(t *testing.T) {
	o, is := readOpen([]byte{4, 0xfb, 0xf4, 0, 180, 10, 0, 0, 9, 0})
	require.True(t, is)
	require.Equal(t, openMessage{asn: 64500, id: netip.MustParseAddr("10.0.0.9"), holdTime: 180}, o)
	_, is = readOpen(make([]byte, 9))
	require.False(t, is)
	o, _ = readOpen([]byte{4, 0xfb, 0xf4, 0, 180, 10, 0, 0, 9, 6, 1, 4, 65, 4, 0, 1})
	require.EqualValues(t, 64500, o.asn, "a parameter of another type, and one that is cut short")
}

func TestSegmentsThatAreNoHandshakeHaveNoMessages(t *testing.T) {
	message := messageBytes(kindNotification, []byte{6, 2})
	segment := func(offset byte, payload []byte) []byte {
		return append([]byte{0, 179, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, offset << 4, 0x18, 0, 0, 0, 0, 0, 0}, payload...)
	}
	require.Len(t, messagesIn(segment(5, message), 179), 1)
	long := bytes.Clone(message)
	long[17]++
	short := bytes.Clone(message)
	short[17] = 18
	for name, s := range map[string][]byte{
		"no header of TCP":              segment(5, message)[:19],
		"a header shorter than TCP's":   segment(4, message),
		"a header beyond the segment":   segment(15, message),
		"a message that goes on":        segment(5, long),
		"a message shorter than itself": segment(5, short),
		"no marker":                     segment(5, message[1:]),
	} {
		require.Empty(t, messagesIn(s, 179), name)
	}
	require.Len(t, messagesIn(segment(5, slices.Concat(message, long)), 179), 1, "what came whole before it")
}

func TestTheLogOfASessionUpdatesItsReason(t *testing.T) {
	c, _ := causesOf(aPeer())
	var written bytes.Buffer
	log := slog.New(logHandler{Handler: slog.NewTextHandler(&written, &slog.HandlerOptions{Level: slog.LevelWarn}), causes: c})
	session := log.With("Topic", "Peer", "Key", loopback.String())
	session.Debug("failed to connect", "Error", "connect: connection refused")
	require.Contains(t, c.reason(loopback), "connection refused at port 179")
	session.Debug("outgoing connection IO error")
	require.Equal(t, ended, c.reason(loopback))
	session.Info("sent notification", "Code", 2, "Subcode", 2)
	require.Contains(t, c.reason(loopback), "NOTIFICATION 2/2, sent by this gateway")
	session.Info("received notification", "Code", 6, "Subcode", 2, "Communicated-Reason", "until noon")
	require.Contains(t, c.reason(loopback), `"until noon" (NOTIFICATION 6/2, sent by the router)`)
	session.Info("Peer Up")
	require.False(t, c.isDown(loopback))
	require.False(t, session.Enabled(t.Context(), slog.LevelDebug), "much is logged during a session")
	require.True(t, session.Enabled(t.Context(), slog.LevelInfo))
	session.Info("Peer Down")
	require.True(t, c.isDown(loopback))
	require.True(t, session.Enabled(t.Context(), slog.LevelDebug))
	require.Empty(t, c.reason(loopback))
	require.Empty(t, written.String(), "the log has its own level")
	session.Warn("something else")
	require.Contains(t, written.String(), "something else")
	other := log.WithGroup("g").With("Key", "not an address")
	require.False(t, other.Enabled(t.Context(), slog.LevelInfo), "it is of no router")
	other.Warn("sent notification", "Code", 6, "Subcode", 2)
	require.Empty(t, c.reason(loopback))
}

func TestAnAttributeOfAnotherTypeCountsAsAbsent(t *testing.T) {
	r := slog.NewRecord(time.Now(), slog.LevelInfo, "sent notification", 0)
	r.Add("Code", "six", "Subcode", 2)
	require.Zero(t, number(r, "Code"))
	require.EqualValues(t, 2, number(r, "Subcode"))
	require.Zero(t, number(r, "absent"))
	require.Empty(t, valueOf(r, "absent").String())
}

func TestASessionSaysWhyAFamilyIsSilent(t *testing.T) {
	hops := nextHops{four: netip.MustParseAddr("192.0.2.1")}
	up := Session{Peer: Peer{IPv4: true, IPv6: true}, Established: true, offered: map[ipam.Family]bool{ipam.IPv4: true, ipam.IPv6: true}, hops: hops}
	require.Empty(t, up.SilentReason(ipam.IPv4))
	require.Contains(t, up.SilentReason(ipam.IPv6), "this gateway has no IPv6 address on its interface to the router")
	up.offered[ipam.IPv4] = false
	require.Equal(t, "the router does not offer IPv4 in its OPEN: enable IPv4 for this neighbour at the router", up.SilentReason(ipam.IPv4))
	up.updateError = "announce 3 addresses: out of memory"
	require.Equal(t, up.updateError, up.SilentReason(ipam.IPv4))
	up.Established = false
	require.Equal(t, "there is no session yet", up.SilentReason(ipam.IPv4))
	up.Reason = "connection refused"
	require.Equal(t, up.Reason, up.SilentReason(ipam.IPv4))
	up.Peer.IPv4 = false
	require.Contains(t, up.SilentReason(ipam.IPv4), "spec.families does not name IPv4")
}

func TestOneRouterThatListensIsEnough(t *testing.T) {
	s := NewSpeaker(Options{Changed: func() {}, Log: discarded()})
	require.Contains(t, s.SilentReason(ipam.IPv4), "no BGPPeer")
	for i := range 7 {
		a := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
		s.sessions[a] = Session{Peer: Peer{Name: fmt.Sprint("p", i), Address: a, IPv4: true}}
	}
	require.False(t, s.CanAnnounce())
	silent := s.SilentReason(ipam.IPv4)
	require.True(t, strings.HasPrefix(silent, "BGPPeer p0 (192.0.2.0): there is no session yet; BGPPeer p1 (192.0.2.1): "), silent)
	require.True(t, strings.HasSuffix(silent, "; and 2 more"), silent)
	last := netip.MustParseAddr("192.0.2.6")
	s.sessions[last] = Session{Peer: s.sessions[last].Peer, Established: true, offered: map[ipam.Family]bool{ipam.IPv4: true}, hops: nextHops{four: last}}
	require.True(t, s.CanAnnounce())
	require.Empty(t, s.SilentReason(ipam.IPv4))
}

func TestEachRouterGetsRoutesOfItsFamiliesWithItsNextHops(t *testing.T) {
	one, two := netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8::9")
	hops := map[netip.Addr]nextHops{one: {four: netip.MustParseAddr("192.0.2.1")}, two: {four: netip.MustParseAddr("198.51.100.1"), six: netip.MustParseAddr("2001:db8::1")}}
	preference := uint32(50)
	p := policyFor([]Peer{{Address: one, IPv4: true, IPv6: true, Communities: []string{"64512:100", "64512:1:2", "no-export"}}, {Address: two, IPv6: true, LocalPreference: &preference}}, hops)
	require.Len(t, p.sets, 2)
	require.Equal(t, []string{"192.0.2.9/32"}, p.sets[0].List)
	require.Equal(t, []string{"2001:db8::9/128"}, p.sets[1].List)
	require.Len(t, p.rules, 2, "the first has no next hop of IPv6, the second is not told IPv4")
	require.Equal(t, "192.0.2.1", p.rules[0].Actions.Nexthop.Address)
	require.Equal(t, []string{"64512:100", "no-export"}, p.rules[0].Actions.Community.Communities)
	require.Equal(t, []string{"64512:1:2"}, p.rules[0].Actions.LargeCommunity.Communities)
	require.Nil(t, p.rules[0].Actions.LocalPref)
	require.Equal(t, "2001:db8::9", p.rules[1].Conditions.NeighborSet.Name)
	require.Equal(t, api.Family_AFI_IP6, p.rules[1].Conditions.AfiSafiIn[0].Afi)
	require.Equal(t, "2001:db8::1", p.rules[1].Actions.Nexthop.Address)
	require.EqualValues(t, 50, p.rules[1].Actions.LocalPref.Value)
	require.Nil(t, p.rules[1].Actions.Community)
}

func TestAPeersSettingsAreThoseOfItsSession(t *testing.T) {
	p := aPeer()
	w := p.wire()
	require.Nil(t, w.EbgpMultihop)
	require.Nil(t, w.TtlSecurity)
	require.Nil(t, w.GracefulRestart)
	require.EqualValues(t, []uint64{9, 3, 5}, []uint64{w.Timers.Config.HoldTime, w.Timers.Config.KeepaliveInterval, w.Timers.Config.ConnectRetry})
	require.Len(t, w.AfiSafis, 1)
	require.False(t, w.AfiSafis[0].MpGracefulRestart.Config.Enabled)
	require.EqualValues(t, maxReceivedRoutes, w.AfiSafis[0].PrefixLimits.MaxPrefixes)
	p.MultihopTTL, p.TTLSecurity, p.GracefulRestart, p.IPv6 = 5, true, 90*time.Second, true
	w = p.wire()
	require.EqualValues(t, 5, w.EbgpMultihop.MultihopTtl)
	require.EqualValues(t, 255, w.TtlSecurity.TtlMin)
	require.EqualValues(t, 90, w.GracefulRestart.RestartTime)
	require.Len(t, w.AfiSafis, 2)
	require.True(t, w.AfiSafis[1].MpGracefulRestart.Config.Enabled)
	p.PeerASN = p.LocalASN
	require.Nil(t, p.wire().EbgpMultihop, "a session within an AS may have hops anyway")
}

func TestOnlyAChangeOfTheSessionNeedsANewOne(t *testing.T) {
	preference := uint32(1)
	for name, change := range map[string]func(*Peer){
		"communities": func(p *Peer) { p.Communities = []string{"64512:1"} }, "the preference": func(p *Peer) { p.LocalPreference = &preference },
		"BFD": func(p *Peer) { p.BFDInterval, p.BFDMultiplier = time.Second, 3 },
	} {
		p := aPeer()
		change(&p)
		require.True(t, p.equal(aPeer()), name)
	}
	for name, change := range map[string]func(*Peer){
		"the password": func(p *Peer) { p.Password = "x" }, "the port": func(p *Peer) { p.Port++ }, "the AS": func(p *Peer) { p.PeerASN++ }, "the hold time": func(p *Peer) { p.HoldTime++ },
		"the families": func(p *Peer) { p.IPv6 = true }, "graceful restart": func(p *Peer) { p.GracefulRestart = time.Minute }, "GTSM": func(p *Peer) { p.TTLSecurity = true },
	} {
		p := aPeer()
		change(&p)
		require.False(t, p.equal(aPeer()), name)
	}
}

func TestARouterWithoutFamiliesInItsOpenTakesIPv4(t *testing.T) {
	four, six, other := wire.NewCapMultiProtocol(wire.RF_IPv4_UC), wire.NewCapMultiProtocol(wire.RF_IPv6_UC), wire.NewCapMultiProtocol(wire.RF_IPv4_VPN)
	for name, c := range map[string]struct {
		says      []wire.ParameterCapabilityInterface
		four, six bool
	}{
		"nothing":        {nil, true, false},
		"another one":    {[]wire.ParameterCapabilityInterface{wire.NewCapRouteRefresh()}, true, false},
		"IPv6":           {[]wire.ParameterCapabilityInterface{six}, false, true},
		"both":           {[]wire.ParameterCapabilityInterface{four, six}, true, true},
		"another family": {[]wire.ParameterCapabilityInterface{other}, false, false},
	} {
		got := familiesIn(c.says)
		require.Equal(t, [2]bool{c.four, c.six}, [2]bool{got[ipam.IPv4], got[ipam.IPv6]}, name)
	}
}

func TestTheIdentifierIsSetOrThatOfTheRouteOrOfTheName(t *testing.T) {
	set := NewSpeaker(Options{Name: "g", RouterID: netip.MustParseAddr("10.0.0.7"), Changed: func() {}, Log: discarded()})
	require.Equal(t, "10.0.0.7", set.routerID([]Peer{aPeer()}).String())
	s := NewSpeaker(Options{Name: "g", Changed: func() {}, Log: discarded()})
	away := aPeer()
	away.Address = netip.MustParseAddr("fe80::1")
	require.Equal(t, loopback, s.routerID([]Peer{away, aPeer()}), "the first router that is reached by IPv4")
	hashed := s.routerID([]Peer{away})
	require.True(t, hashed.Is4() && !hashed.IsUnspecified())
	require.Equal(t, hashed, s.routerID([]Peer{away}), "it stays the same after a restart")
	require.NotEqual(t, hashed, NewSpeaker(Options{Name: "h", Changed: func() {}, Log: discarded()}).routerID([]Peer{away}))
}

func TestNextHopsAreTheFirstOfEachFamily(t *testing.T) {
	var h nextHops
	for _, text := range []string{"::ffff:192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"} {
		h.add(netip.MustParseAddr(text))
	}
	require.Equal(t, nextHops{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}, h)
	found, err := nextHopsTowards(loopback)
	require.NoError(t, err)
	require.Equal(t, loopback, found.four)
	require.False(t, found.six.IsValid(), "::1 is no next hop")
	_, err = nextHopsTowards(netip.MustParseAddr("fe80::1"))
	require.ErrorContains(t, err, "no route to fe80::1: ")
	_, err = deviceOf(netip.MustParseAddr("203.0.113.254"))
	require.ErrorContains(t, err, "no interface has the address 203.0.113.254")
}

func TestASpeakerWithoutPeersStartsAndEndsWithoutAServer(t *testing.T) {
	s := NewSpeaker(Options{Name: "g", Changed: func() {}, Log: discarded()})
	s.Announce(netip.MustParseAddr("203.0.113.1"))
	s.Withdraw(netip.MustParseAddr("203.0.113.9"))
	require.NoError(t, s.SetPeers(t.Context(), nil))
	require.Nil(t, s.server)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, s.Run(ctx))
	require.NoError(t, s.SetPeers(t.Context(), []Peer{aPeer()}), "it has ended")
	require.Empty(t, s.Sessions())
}

func TestOnlyASessionWithBFDSaysWhyBFDCannotWork(t *testing.T) {
	s := NewSpeaker(Options{Name: "g", Changed: func() {}, Log: discarded()})
	p, plain := aPeer(), aPeer()
	p.BFDInterval, p.BFDMultiplier = time.Second, 3
	plain.Address = netip.MustParseAddr("127.0.0.2")
	for _, peer := range []Peer{plain, p} {
		s.sessions[peer.Address] = Session{Peer: peer}
	}
	s.bfdError = "port 3784 is in use"
	sessions := s.Sessions()
	require.Equal(t, []netip.Addr{p.Address, plain.Address}, []netip.Addr{sessions[0].Peer.Address, sessions[1].Peer.Address}, "sorted")
	require.Equal(t, "port 3784 is in use", sessions[0].Undetected)
	require.False(t, sessions[0].Detected)
	require.Empty(t, sessions[1].Undetected)
	require.NoError(t, s.detect([]Peer{plain}), "without such sessions nobody needs the port")
	require.Empty(t, s.Sessions()[0].Undetected)
}

func TestAnEventOfAFormerPeerChangesNothing(t *testing.T) {
	changes := 0
	s := NewSpeaker(Options{Name: "g", Changed: func() { changes++ }, Log: discarded()})
	event := func(address netip.Addr, state wire.FSMState, kind apiutil.PeerEventType) *apiutil.WatchEventMessage_PeerEvent {
		return &apiutil.WatchEventMessage_PeerEvent{Type: kind, Peer: apiutil.Peer{State: apiutil.PeerState{NeighborAddress: address, SessionState: state}}}
	}
	s.onEvent(event(loopback, wire.BGP_FSM_ESTABLISHED, apiutil.PEER_EVENT_STATE), time.Unix(1, 0))
	require.Empty(t, s.Sessions())
	s.sessions[loopback] = Session{Peer: aPeer()}
	s.causes.add(aPeer())
	s.onEvent(event(loopback, wire.BGP_FSM_ESTABLISHED, apiutil.PEER_EVENT_INIT), time.Unix(1, 0))
	require.False(t, s.CanAnnounce(), "it is no change of a state")
	s.onEvent(event(loopback, wire.BGP_FSM_ESTABLISHED, apiutil.PEER_EVENT_STATE), time.Unix(2, 0))
	s.onEvent(event(loopback, wire.BGP_FSM_ESTABLISHED, apiutil.PEER_EVENT_STATE), time.Unix(3, 0))
	require.Equal(t, 1, changes)
	require.Equal(t, time.Unix(2, 0), s.Sessions()[0].Since)
	s.onEvent(event(loopback, wire.BGP_FSM_IDLE, apiutil.PEER_EVENT_STATE), time.Unix(4, 0))
	require.Equal(t, 2, changes)
	require.Equal(t, time.Unix(4, 0), s.Sessions()[0].Since)
	require.False(t, s.CanAnnounce())
}

func TestAnErrorForAllRoutersIsTheReasonOfEach(t *testing.T) {
	s := NewSpeaker(Options{Name: "g", Changed: func() {}, Log: discarded()})
	other := aPeer()
	other.Address = netip.MustParseAddr("192.0.2.9")
	for _, p := range []Peer{aPeer(), other} {
		s.causes.add(p)
		s.sessions[p.Address] = Session{Peer: p}
	}
	s.setFailed([]Peer{aPeer(), other}, errors.New("start the BGP speaker: no memory"))
	for _, session := range s.Sessions() {
		require.Equal(t, "start the BGP speaker: no memory", session.Reason)
	}
}
