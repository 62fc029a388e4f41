package bgp

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	wire "github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/stretchr/testify/require"
)

// message is one of RFC 4271, 4.1: a marker, the length, the type, and the rest.
func message(kind byte, body []byte) []byte {
	out := bytes.Repeat([]byte{0xff}, 16)
	out = binary.BigEndian.AppendUint16(out, uint16(19+len(body)))
	return append(append(out, kind), body...)
}

// update is the rest of an UPDATE (4.3) that withdraws nothing.
func update(attributes, prefixes []byte) []byte {
	out := binary.BigEndian.AppendUint16([]byte{0, 0}, uint16(len(attributes)))
	return append(append(out, attributes...), prefixes...)
}

// attribute is a path attribute: flags, type, length, value.
func attribute(flags, kind byte, value ...byte) []byte {
	return append([]byte{flags, kind, byte(len(value))}, value...)
}

// Flags of attributes: 0x40 transitive, 0x80 optional.
var (
	origin  = attribute(0x40, 1, 0)
	path    = attribute(0x40, 2, 2, 1, 0, 0, 0xfb, 0xf4)
	nextHop = attribute(0x40, 3, 127, 0, 0, 1)
)

// intruder is a router that has a session and sends what it likes.
type intruder struct {
	listener net.Listener
	// beside is another router.
	beside Peer
	conn   net.Conn
	ended  chan struct{}
	sent   uint16
}

func newIntruder(t testing.TB, beside Peer) *intruder {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { listener.Close() })
	return &intruder{listener: listener, beside: beside}
}

func (i *intruder) peer() Peer {
	r := router{at: loopback, port: uint16(i.listener.Addr().(*net.TCPAddr).Port)}
	p := r.peer()
	p.Name, p.IPv6 = "intruder", true
	return p
}

// up is a session: the speaker connects, and both say OPEN and KEEPALIVE.
func (i *intruder) up(t testing.TB, s *Speaker) {
	t.Helper()
	if i.conn != nil {
		return
	}
	// As a peer that is new it is connected to at once, and not after a pause that grows.
	require.NoError(t, s.SetPeers(t.Context(), []Peer{i.beside}))
	require.NoError(t, s.SetPeers(t.Context(), []Peer{i.beside, i.peer()}))
	var err error
	i.conn, err = i.listener.Accept()
	require.NoError(t, err)
	capabilities := []byte{1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 65, 4, 0, 0, 0xfb, 0xf4} // RFC 4760, 6793: both families, and AS 64500
	open := append([]byte{4, 0xfb, 0xf4, 0, 90, 10, 0, 0, 3, byte(2 + len(capabilities)), 2, byte(len(capabilities))}, capabilities...)
	_, err = i.conn.Write(append(message(1, open), message(4, nil)...))
	require.NoError(t, err)
	ended := make(chan struct{})
	i.ended = ended
	go func(conn net.Conn) {
		defer close(ended)
		_, _ = io.Copy(io.Discard, conn)
	}(i.conn)
	eventually(t, "a session", func() bool { return established(s, "intruder") || i.over() })
}

func (i *intruder) over() bool {
	select {
	case <-i.ended:
		return true
	default:
		return false
	}
}

// say sends, and after that a route. It returns when that has come, or the session is over.
func (i *intruder) say(t testing.TB, s *Speaker, text []byte) {
	t.Helper()
	i.sent++
	last := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i.sent >> 8), byte(i.sent)}), 32)
	nlri := append([]byte{32}, last.Addr().AsSlice()...)
	mark := message(2, update(bytes.Join([][]byte{origin, path, nextHop}, nil), nlri))
	_, _ = i.conn.Write(append(bytes.Clone(text), mark...))
	// A length that promises more than comes keeps the speaker waiting for the rest.
	waited := time.After(time.Second)
	for {
		if offered(t, s, last) {
			_, _ = i.conn.Write(message(2, append(append([]byte{0, byte(len(nlri))}, nlri...), 0, 0)))
			return
		}
		select {
		case <-i.ended:
		case <-waited:
		case <-time.After(time.Millisecond):
			continue
		}
		i.conn.Close()
		<-i.ended
		i.conn = nil
		return
	}
}

func offered(t testing.TB, s *Speaker, prefix netip.Prefix) (is bool) {
	t.Helper()
	err := s.server.ListPath(apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_ADJ_IN, Name: loopback.String(), Family: wire.RF_IPv4_UC,
		Prefixes: []*apiutil.LookupPrefix{{Prefix: prefix.String()}}}, func(nlri wire.NLRI, _ []*apiutil.Path) { is = is || nlri.String() == prefix.String() })
	require.NoError(t, err)
	return is
}

// table is what the speaker holds for true.
func table(t testing.TB, s *Speaker) (all []string) {
	t.Helper()
	for _, family := range []wire.Family{wire.RF_IPv4_UC, wire.RF_IPv6_UC} {
		require.NoError(t, s.server.ListPath(apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_GLOBAL, Family: family},
			func(prefix wire.NLRI, _ []*apiutil.Path) { all = append(all, prefix.String()) }))
	}
	return all
}

func established(s *Speaker, name string) bool {
	for _, session := range s.Sessions() {
		if session.Peer.Name == name {
			return session.Established
		}
	}
	return false
}

// Whatever a router sends that has a session, the process goes on, nothing is taken, and another router's session stays. GoBGP parses; this
// is about what stands around it, and about GoBGP as far as there is time. kind is the type of a message with the right header, an UPDATE
// has the right length of its attributes, and 0 is for bytes as they are.
func FuzzARouterSendsAnything(f *testing.F) {
	const updated, notified, refreshed = 2, 3, 5
	for length := range byte(4) { // gobgp's issue 3305, with flags that make it skip the value, and with right ones
		f.Add(byte(updated), bytes.Join([][]byte{origin, path, attribute(0, 3, make([]byte, length)...)}, nil), []byte{8, 10})
		f.Add(byte(updated), bytes.Join([][]byte{origin, path, attribute(0x40, 3, make([]byte, length)...)}, nil), []byte{8, 10})
	}
	f.Add(byte(updated), bytes.Join([][]byte{attribute(0, 1, 0), path, nextHop}, nil), []byte{8, 10})          // ORIGIN that is not transitive
	f.Add(byte(updated), bytes.Join([][]byte{origin, path, nextHop, attribute(0, 99)}, nil), []byte{8, 10})    // well-known and not known
	f.Add(byte(updated), bytes.Join([][]byte{origin, path, nextHop}, nil), []byte{32, 203, 0, 113, 1, 0})      // what is announced, and a default route
	f.Add(byte(updated), attribute(0x80, 14, 0, 2, 1, 0, 0, 0), []byte{})                                      // MP_REACH_NLRI without a next hop
	f.Add(byte(updated), attribute(0x80, 15, 0, 2, 1), []byte{})                                               // the end of RIB
	f.Add(byte(updated), bytes.Join([][]byte{origin, path, nextHop, attribute(0xc0, 8, 1)}, nil), []byte{0})   // a part of a community
	f.Add(byte(updated), bytes.Join([][]byte{origin, attribute(0x40, 2, 2, 255, 0), nextHop}, nil), []byte{0}) // 255 ASes in one byte
	f.Add(byte(refreshed), []byte{0, 1, 0, 1}, []byte{})
	// What ends the session stands last: another one takes two seconds.
	f.Add(byte(updated), append(bytes.Clone(origin), 0x50, 2, 0xff, 0xff), []byte{}) // longer than there is
	f.Add(byte(notified), append([]byte{6, 2, 9}, "\x1b[2J\xff\n end"...), []byte{}) // with a text for people (RFC 9003)

	neighbour := newRouterAt(f, netip.MustParseAddr("127.0.0.2"), routersASN, nil)
	p := neighbour.peer()
	p.Name = "neighbour"
	hostile := newIntruder(f, p)
	s, _ := newSpeaker(f)
	own := netip.MustParseAddr("203.0.113.1")
	s.Announce(own)
	hostile.up(f, s)
	eventually(f, "the neighbour's session", func() bool { return established(s, "neighbour") && len(neighbour.routes(f, wire.RF_IPv4_UC)) == 1 })
	f.Fuzz(func(t *testing.T, kind byte, attributes, rest []byte) {
		hostile.up(t, s)
		if hostile.over() {
			hostile.conn.Close()
			hostile.conn = nil
			return
		}
		body := slices.Concat(attributes, rest)
		if kind %= 6; kind != 0 && len(body) < 4000 {
			if kind == updated {
				body = update(attributes, rest)
			}
			body = message(kind, body)
		}
		hostile.say(t, s, body)
		require.Equal(t, []string{own.String() + "/32"}, table(t, s), "nothing is taken")
		require.True(t, established(s, "neighbour"))
		require.Equal(t, 1, neighbour.sessions())
		require.Len(t, neighbour.routes(t, wire.RF_IPv4_UC), 1)
	})
}

// Whoever can send with the router's address reaches what hears its messages.
func FuzzSegmentsOfHandshakes(f *testing.F) {
	segment := func(payload []byte) []byte {
		return append([]byte{0, 179, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x18, 0, 0, 0, 0, 0, 0}, payload...)
	}
	f.Add(segment(message(kindNotification, []byte{2, 2, 0xfb, 0xf4})))
	f.Add(segment(message(kindNotification, append([]byte{6, 2, 200}, "short"...))))
	f.Add(segment(message(kindOpen, []byte{4, 0xfb, 0xf4, 0, 90, 10, 0, 0, 3, 8, 2, 6, 65, 4, 0, 0, 0xfb, 0xf4})))
	f.Add(segment(message(kindOpen, []byte{4, 0xfb, 0xf4, 0, 90, 10, 0, 0, 3, 8, 2, 255, 65, 255})))
	f.Add(segment(append(message(kindOpen, make([]byte, 10)), message(kindNotification, nil)...)))
	f.Add(segment(message(4, nil)[:18]))
	f.Fuzz(func(t *testing.T, segment []byte) {
		c := &causes{of: map[netip.Addr]*cause{}, changed: func() {}}
		c.watch(Peer{Address: loopback, Port: 179})
		for _, m := range messagesIn(segment, 179) {
			require.LessOrEqual(t, len(m.body)+headerLength, len(segment))
			c.hear(loopback, m)
		}
		require.Less(t, len(c.reason(loopback)), 2000)
	})
}
