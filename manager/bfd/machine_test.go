package bfd

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/manager/descriptor"
)

func TestAPacketHasTheBytesOfRFC5880(t *testing.T) {
	p := packet{state: Init, diagnostic: timeExpired, poll: true, multiplier: 5, mine: 0x01020304, yours: 0x0a0b0c0d, minTx: 300 * time.Millisecond, minRx: time.Second}
	require.Equal(t, []byte{
		1<<5 | 1,    // version and diagnostic
		2<<6 | 0x20, // state and Poll
		5, 24,       // multiplier and length
		1, 2, 3, 4, // the sender's discriminator
		10, 11, 12, 13, // the receiver's
		0, 0x04, 0x93, 0xe0, // microseconds
		0, 0x0f, 0x42, 0x40,
		0, 0, 0, 0, // no echo packets
	}, p.bytes())
	p.poll, p.final = false, true
	require.EqualValues(t, 2<<6|0x10, p.bytes()[1], "Final")
}

func TestBytesBehindAPacketAreIgnored(t *testing.T) {
	got, err := parse(append(heard(Up).bytes(), 1, 2, 3))
	require.NoError(t, err)
	require.Equal(t, heard(Up), got)
}

func TestANeighbourThatIsDownNeedsNoDiscriminator(t *testing.T) {
	for _, s := range []State{Down, AdminDown} {
		p := heard(s)
		p.yours = 0
		got, err := parse(p.bytes())
		require.NoError(t, err, s)
		require.Equal(t, p, got)
	}
}

func TestADiscardedPacketHasTheReason(t *testing.T) {
	for want, change := range map[string]func([]byte) []byte{
		"10 bytes":                      func(b []byte) []byte { return b[:10] },
		"version 2":                     func(b []byte) []byte { b[0] = 2 << 5; return b },
		"length 40 in 24 bytes":         func(b []byte) []byte { b[3] = 40; return b },
		"which is not supported":        func(b []byte) []byte { b[1] |= flagAuthentication; return b },
		"detection multiplier 0":        func(b []byte) []byte { b[2] = 0; return b },
		"discriminator 0":               func(b []byte) []byte { clear(b[4:8]); return b },
		"state Up with discriminator 0": func(b []byte) []byte { clear(b[8:12]); return b },
	} {
		_, err := parse(change(heard(Up).bytes()))
		require.ErrorContains(t, err, want)
	}
}

func TestStatesHaveTheNamesOfRFC5880(t *testing.T) {
	for s, want := range map[State]string{AdminDown: "AdminDown", Down: "Down", Init: "Init", Up: "Up", 9: "state 9"} {
		require.Equal(t, want, s.String())
	}
}

func TestAPollIsAnsweredAtOnceWithFinal(t *testing.T) {
	m := newMachine(fast, 1)
	m.state, m.polling = Up, true
	p := heard(Up)
	p.poll = true
	answer, accepted := m.receive(p)
	require.True(t, accepted)
	require.NotNil(t, answer)
	require.True(t, answer.final)
	require.False(t, answer.poll, "no packet has both (RFC 5880, section 6.5)")
	require.Equal(t, p.mine, answer.yours)
	require.True(t, m.polling, "the neighbour has not confirmed this side's interval")
	p.poll, p.final = false, true
	answer, _ = m.receive(p)
	require.Nil(t, answer)
	require.False(t, m.polling)
}

func TestASessionThatComesUpPollsWithItsOwnInterval(t *testing.T) {
	m := newMachine(fast, 1)
	require.Equal(t, slowInterval, m.next().minTx)
	require.False(t, m.next().poll)
	m.state = Init
	m.receive(heard(Up))
	next := m.next()
	require.True(t, next.poll)
	require.Equal(t, fast.Interval, next.minTx)
	require.Equal(t, fast.Multiplier, next.multiplier)
	m.receive(heard(Down))
	require.Equal(t, slowInterval, m.next().minTx, "it is slow again")
	require.False(t, m.next().poll)
}

func TestASlowSessionStaysSlowWhileItIsDown(t *testing.T) {
	m := newMachine(Timers{Interval: 5 * time.Second, Multiplier: 3}, 1)
	require.Equal(t, 5*time.Second, m.interval())
	m.state = Up
	require.Equal(t, 5*time.Second, m.interval())
}

func TestASinglePacketThatCountsIsSentEarly(t *testing.T) {
	m := newMachine(Timers{Interval: time.Second, Multiplier: 1}, 1)
	m.state = Init
	m.receive(heard(Up))
	for range 200 {
		pause := m.pause()
		require.GreaterOrEqual(t, pause, 750*time.Millisecond)
		require.LessOrEqual(t, pause, 900*time.Millisecond, "the neighbour waits for one interval only (RFC 5880, section 6.8.7)")
	}
}

func TestTheDetectionTimeIsThatOfTheSlowerSide(t *testing.T) {
	for name, c := range map[string]struct {
		own, sends time.Duration
		multiplier uint8
		want       time.Duration
	}{
		"the neighbour sends slower than this side wants": {100 * time.Millisecond, time.Second, 3, 3 * time.Second},
		"this side wants slower than the neighbour sends": {time.Second, 100 * time.Millisecond, 5, 5 * time.Second},
		"the multiplier is the neighbour's":               {time.Second, time.Second, 2, 2 * time.Second},
	} {
		m := newMachine(Timers{Interval: c.own, Multiplier: 9}, 1)
		p := heard(Init)
		p.minTx, p.multiplier = c.sends, c.multiplier
		m.receive(p)
		require.Equal(t, c.want, m.detectionTime(), name)
	}
}

func TestASessionThatIsUpAcceptsOnlyPacketsThatNameIt(t *testing.T) {
	for _, c := range []struct {
		yours uint32
		state State
		want  bool
	}{{1, Down, true}, {1, Init, true}, {1, Up, true}, {0, Down, true}, {0, Init, true}, {0, Up, false}, {2, Down, false}, {2, Init, false}, {2, Up, false}} {
		require.Equal(t, c.want, accepts(packet{yours: c.yours}, 1, c.state), "%d in state %s", c.yours, c.state)
	}
}

func quiet() Options { return Options{Changed: func() {}, Log: slog.New(slog.DiscardHandler)} }

// Two daemons cannot have the port of RFC 5881.
func TestAPortThatAnotherDaemonHasIsAnErrorWithTheFix(t *testing.T) {
	other, err := net.ListenUDP("udp4", &net.UDPAddr{Port: Port})
	require.NoError(t, err)
	s, peer := New(quiet()), netip.MustParseAddr("127.0.0.1")
	defer s.Close()
	err = s.SetPeers(map[netip.Addr]Timers{peer: fast})
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	require.ErrorContains(t, err, "if another BFD daemon runs on this host, stop it")
	require.False(t, s.Up(peer))
	require.NoError(t, s.SetPeers(nil), "no neighbours need no port")
	other.Close()
	require.NoError(t, s.SetPeers(map[netip.Addr]Timers{peer: fast}), "the next attempt succeeds")
	require.NotNil(t, s.of(peer))
}

func TestThePortIsFreeWhileThereAreNoNeighbours(t *testing.T) {
	s := New(quiet())
	free := func() bool {
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{Port: Port})
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	require.True(t, free())
	require.NoError(t, s.SetPeers(map[netip.Addr]Timers{netip.MustParseAddr("127.0.0.1"): fast}))
	require.False(t, free())
	s.Close()
	require.True(t, free())
	s.Close() // a second time has no effect
}

func TestANeighbourWithoutARouteAffectsNoOther(t *testing.T) {
	s, near, far := New(quiet()), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("fe80::1")
	defer s.Close()
	err := s.SetPeers(map[netip.Addr]Timers{near: fast, far: fast})
	require.ErrorContains(t, err, "BFD with fe80::1: ")
	require.NotContains(t, err.Error(), "127.0.0.1")
	require.NotNil(t, s.of(near))
	require.Nil(t, s.of(far))
	require.False(t, s.Up(far))
}

func TestOnlyASessionWithOtherTimersStartsAgain(t *testing.T) {
	s, a, b := New(quiet()), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	defer s.Close()
	require.NoError(t, s.SetPeers(map[netip.Addr]Timers{a: fast, b: fast}))
	sameA, beforeB := s.of(a), s.of(b)
	require.NoError(t, s.SetPeers(map[netip.Addr]Timers{a: fast, b: {Interval: fast.Interval, Multiplier: 9}}))
	require.Same(t, sameA, s.of(a))
	require.NotSame(t, beforeB, s.of(b))
	require.NotZero(t, s.of(b).mine)
}

func TestPacketsHaveTheGreatestTTLAndAPortOfTheRange(t *testing.T) {
	for address, option := range map[string][2]int{"127.0.0.1": {unix.IPPROTO_IP, unix.IP_TTL}, "::1": {unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS}} {
		conn, err := dial(netip.MustParseAddr(address))
		if address == "::1" && err != nil {
			continue // this host has no IPv6
		}
		require.NoError(t, err)
		port := conn.LocalAddr().(*net.UDPAddr).Port
		require.True(t, port >= 49152 && port <= 65535, port)
		require.EqualValues(t, Port, conn.RemoteAddr().(*net.UDPAddr).Port)
		require.NoError(t, descriptor.With(conn, func(fd int) error {
			ttl, err := unix.GetsockoptInt(fd, option[0], option[1])
			require.Equal(t, 255, ttl)
			return err
		}))
		conn.Close()
	}
}

func TestASenderWithoutARouteTriesAgainWithTheNextPacket(t *testing.T) {
	v := &sender{address: netip.MustParseAddr("fe80::1")}
	v.send(heard(Down), time.Now())
	require.Nil(t, v.conn)
	v.address = netip.MustParseAddr("127.0.0.1")
	v.send(heard(Down), time.Now())
	require.NotNil(t, v.conn)
	require.True(t, v.isOwn())
	v.close()
	require.Nil(t, v.conn)
	v.close()
}

func TestASocketThatFailsIsReplaced(t *testing.T) {
	v := &sender{address: netip.MustParseAddr("127.0.0.1")}
	v.send(heard(Down), time.Now())
	broken := v.conn
	require.NoError(t, broken.Close())
	v.send(heard(Down), v.checked)
	require.NotNil(t, v.conn)
	require.NotSame(t, broken, v.conn)
	v.close()
}

// The neighbour knows at once that the session ends on purpose, and need not wait for the detection time.
func TestASessionThatEndsSaysAdminDown(t *testing.T) {
	peer := netip.MustParseAddr("127.0.0.78")
	router, err := net.ListenUDP("udp4", &net.UDPAddr{IP: peer.AsSlice(), Port: Port})
	require.NoError(t, err)
	defer router.Close()
	require.NoError(t, router.SetReadDeadline(time.Now().Add(5*time.Second)))
	k := &session{timers: fast, received: make(chan packet, 8), mine: 5}
	conn, err := dial(peer)
	require.NoError(t, err)
	v := &sender{address: peer, conn: conn, checked: time.Now()}
	defer v.close()
	read := func() packet {
		buffer := make([]byte, 64)
		n, err := router.Read(buffer)
		require.NoError(t, err)
		p, err := parse(buffer[:n])
		require.NoError(t, err)
		return p
	}
	ctx, end := context.WithCancel(t.Context())
	defer end()
	k.running.Go(func() { k.run(ctx, v, func() {}) })
	first := read()
	require.Equal(t, Down, first.state)
	require.EqualValues(t, 5, first.mine)
	end()
	k.running.Wait()
	last := read()
	require.Equal(t, AdminDown, last.state)
	require.EqualValues(t, administrative, last.diagnostic)
}
