package bfd

import (
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/manager/descriptor"
)

var fast = Timers{Interval: 100 * time.Millisecond, Multiplier: 3}

// heard returns a packet of a neighbour that knows our discriminator.
func heard(s State) packet {
	return packet{state: s, multiplier: 3, mine: 7, yours: 1, minTx: 100 * time.Millisecond, minRx: 100 * time.Millisecond}
}

func TestStatesFollowThePacketsOfTheNeighbour(t *testing.T) {
	for _, c := range []struct {
		is, says, becomes State
		diagnostic        uint8
	}{
		{Down, Down, Init, noDiagnostic},
		{Down, Init, Up, noDiagnostic},
		{Down, Up, Down, noDiagnostic},
		{Down, AdminDown, Down, noDiagnostic},
		{Init, Down, Init, noDiagnostic},
		{Init, Init, Up, noDiagnostic},
		{Init, Up, Up, noDiagnostic},
		{Init, AdminDown, Down, neighborSaysDown},
		{Up, Down, Down, neighborSaysDown},
		{Up, Init, Up, noDiagnostic},
		{Up, Up, Up, noDiagnostic},
		{Up, AdminDown, Down, neighborSaysDown},
	} {
		m := newMachine(fast, 1)
		m.state = c.is
		m.receive(heard(c.says))
		require.Equal(t, c.becomes, m.state, "%s hears %s", c.is, c.says)
		require.Equal(t, c.diagnostic, m.diagnostic, "%s hears %s", c.is, c.says)
	}
}

func TestTheDetectionTimeEndsASession(t *testing.T) {
	m := newMachine(fast, 1)
	m.state = Init
	m.receive(heard(Up))
	require.Equal(t, 300*time.Millisecond, m.detectionTime())
	m.expire()
	require.Equal(t, Down, m.state)
	require.EqualValues(t, timeExpired, m.diagnostic)
	require.Zero(t, m.next().yours, "it may be another one that comes back")
	m.expire()
	require.Equal(t, Down, m.state)
}

func TestASessionStartsAgainAfterARestartOfTheNeighbour(t *testing.T) {
	m := newMachine(fast, 1)
	m.state = Init
	m.receive(heard(Up))
	anew := packet{state: Down, multiplier: 3, mine: 8, minTx: slowInterval, minRx: 100 * time.Millisecond}
	_, heeded := m.receive(anew)
	require.False(t, heeded, "anybody on the link can say that")
	require.Equal(t, Up, m.state)
	require.EqualValues(t, 7, m.next().yours)
	m.expire() // the neighbour does not send our discriminator any more
	require.Equal(t, Down, m.state)
	m.receive(anew)
	require.Equal(t, Init, m.state)
	require.EqualValues(t, 8, m.next().yours)
	anew.state, anew.yours = Init, 1
	m.receive(anew)
	require.Equal(t, Up, m.state)
}

func TestAPacketWithoutTheDiscriminatorDoesNotEndASession(t *testing.T) {
	for _, says := range []State{Down, AdminDown} {
		m := newMachine(fast, 1)
		m.state = Init
		m.receive(heard(Up))
		before := *m
		forged := packet{state: says, poll: true, final: true, multiplier: 1, mine: 9, minTx: time.Hour}
		answer, heeded := m.receive(forged)
		require.Nil(t, answer)
		require.False(t, heeded)
		require.Equal(t, before, *m, "%s changes nothing", says)
		forged.yours = 1
		_, heeded = m.receive(forged)
		require.True(t, heeded, "who knows the discriminator is the neighbour")
		require.Equal(t, Down, m.state)
	}
}

// neighbour is a host on the link, with an address of its own and packets with the greatest TTL.
func neighbour(t *testing.T, address netip.Addr, server netip.Addr) *net.UDPConn {
	t.Helper()
	conn, err := net.DialUDP("udp4", &net.UDPAddr{IP: address.AsSlice()}, net.UDPAddrFromAddrPort(netip.AddrPortFrom(server, Port)))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, descriptor.With(conn, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, maxTTL) }))
	return conn
}

// Each host on the link can send any number of packets from the neighbour's address, but does not see the packets of the two sides.
func TestForgedPacketsNeitherEndNorProlongASession(t *testing.T) {
	peer := netip.MustParseAddr("127.0.0.77")
	changes := make(chan struct{}, 100)
	s := New(Options{Changed: func() { changes <- struct{}{} }, Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, s.SetPeers(map[netip.Addr]Timers{peer: {Interval: 100 * time.Millisecond, Multiplier: 3}}))
	defer s.Close()
	conn := neighbour(t, peer, netip.MustParseAddr("127.0.0.1"))
	say := func(p packet) {
		_, err := conn.Write(p.bytes())
		require.NoError(t, err)
	}
	own := packet{multiplier: 20, mine: 7, yours: s.of(peer).mine, minTx: 100 * time.Millisecond, minRx: time.Second}
	own.state, own.yours = Down, 0
	say(own)
	own.state, own.yours = Init, s.of(peer).mine
	require.Eventually(t, func() bool { say(own); return s.Up(peer) }, 10*time.Second, 10*time.Millisecond)
	<-changes
	forge := func() {
		for range 50 {
			say(packet{state: Down, multiplier: 255, mine: 9, minTx: time.Second, minRx: time.Second})
			say(packet{state: AdminDown, multiplier: 255, mine: 9, minTx: time.Second, minRx: time.Second})
		}
	}
	own.state = Up
	for range 30 {
		forge()
		say(own)
		time.Sleep(10 * time.Millisecond)
	}
	require.Empty(t, changes)
	require.True(t, s.Up(peer))
	// The neighbour dies; the forger goes on.
	require.Eventually(t, func() bool { forge(); return !s.Up(peer) }, 20*time.Second, 20*time.Millisecond)
}

func TestTwoSidesComeUpAndAgreeOnTheSlowerInterval(t *testing.T) {
	a, b := newMachine(fast, 1), newMachine(Timers{Interval: 300 * time.Millisecond, Multiplier: 2}, 2)
	require.Equal(t, slowInterval, a.next().minTx, "slow until the session is up")
	for range 4 {
		for _, side := range [][2]*machine{{a, b}, {b, a}} {
			if answer, _ := side[1].receive(side[0].next()); answer != nil {
				require.True(t, answer.final)
				side[0].receive(*answer)
			}
		}
	}
	require.Equal(t, [2]State{Up, Up}, [2]State{a.state, b.state})
	require.False(t, a.polling || b.polling, "each knows the other's interval")
	require.Equal(t, 600*time.Millisecond, a.detectionTime())
	require.Equal(t, 900*time.Millisecond, b.detectionTime())
	for range 100 {
		pause := a.pause()
		require.True(t, pause >= 225*time.Millisecond && pause <= 300*time.Millisecond, pause)
	}
}

func TestNoPacketsAreSentToANeighbourThatWantsNone(t *testing.T) {
	m := newMachine(fast, 1)
	p := heard(Down)
	p.minRx = 0
	m.receive(p)
	require.Zero(t, m.pause())
}

func TestPacketsAreDecodedAsEncoded(t *testing.T) {
	p := packet{state: Up, diagnostic: neighborSaysDown, poll: true, multiplier: 3, mine: 0xdeadbeef, yours: 42, minTx: 300 * time.Millisecond, minRx: time.Second}
	got, err := parse(p.bytes())
	require.NoError(t, err)
	require.Equal(t, p, got)
}

func TestInvalidPacketsAreDiscarded(t *testing.T) {
	good := heard(Up).bytes()
	for name, change := range map[string]func([]byte) []byte{
		"cut short":              func(b []byte) []byte { return b[:23] },
		"version 0":              func(b []byte) []byte { b[0] &= 0x1f; return b },
		"longer than the packet": func(b []byte) []byte { b[3] = 25; return b },
		"too short":              func(b []byte) []byte { b[3] = 23; return b },
		"authenticated":          func(b []byte) []byte { b[1] |= flagAuthentication; return b },
		"multipoint":             func(b []byte) []byte { b[1] |= flagMultipoint; return b },
		"no multiplier":          func(b []byte) []byte { b[2] = 0; return b },
		"no discriminator":       func(b []byte) []byte { clear(b[4:8]); return b },
		"up and knows noone":     func(b []byte) []byte { clear(b[8:12]); return b },
	} {
		_, err := parse(change(append([]byte{}, good...)))
		require.Error(t, err, name)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(heard(Up).bytes())
	f.Add(heard(Down).bytes()[:20])
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parse(b)
		if err != nil {
			return
		}
		again, err := parse(p.bytes())
		if err != nil || again != p {
			t.Fatalf("%+v became %+v: %v", p, again, err)
		}
		m := newMachine(fast, 1)
		for range 3 {
			_, _ = m.receive(p)
			m.next()
			if pause := m.pause(); pause < 0 || m.detectionTime() < 0 {
				t.Fatalf("%+v: pause %s, patience %s", p, pause, m.detectionTime())
			}
		}
	})
}

// Here a server has a session with itself, at its own address.
func TestASessionComesUpAndEndsWithItsPeer(t *testing.T) {
	self := netip.MustParseAddr("127.0.0.1")
	changes := make(chan struct{}, 100)
	s := New(Options{Changed: func() { changes <- struct{}{} }, Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, s.SetPeers(map[netip.Addr]Timers{self: fast}))
	defer s.Close()
	require.Eventually(t, func() bool { return s.Up(self) }, 10*time.Second, 10*time.Millisecond)
	<-changes
	require.NoError(t, s.SetPeers(map[netip.Addr]Timers{self: fast}), "the same once more changes nothing")
	require.True(t, s.Up(self))
	require.NoError(t, s.SetPeers(nil))
	require.False(t, s.Up(self))
}
