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

// messageBytes returns a message (RFC 4271, 4.1): marker, length, type, and body.
func messageBytes(kind byte, body []byte) []byte {
	out := bytes.Repeat([]byte{0xff}, 16)
	out = binary.BigEndian.AppendUint16(out, uint16(19+len(body)))
	return append(append(out, kind), body...)
}

// update returns the body of an UPDATE (4.3) without withdrawn routes.
func update(attributes, prefixes []byte) []byte {
	out := binary.BigEndian.AppendUint16([]byte{0, 0}, uint16(len(attributes)))
	return append(append(out, attributes...), prefixes...)
}

// attribute returns a path attribute: flags, type, length, value.
func attribute(flags, kind byte, value ...byte) []byte {
	return append([]byte{flags, kind, byte(len(value))}, value...)
}

// Flags of attributes: 0x40 transitive, 0x80 optional.
var (
	origin  = attribute(0x40, 1, 0)
	path    = attribute(0x40, 2, 2, 1, 0, 0, 0xfb, 0xf4)
	nextHop = attribute(0x40, 3, 127, 0, 0, 1)
)

// intruder is a router that sends any data in its session.
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

// up establishes a session: the speaker connects, and both sides send OPEN and KEEPALIVE.
func (i *intruder) up(t testing.TB, s *Speaker) {
	t.Helper()
	if i.conn != nil {
		return
	}
	// As a new peer: the speaker connects to it at once, not after a growing pause.
	require.NoError(t, s.SetPeers(t.Context(), []Peer{i.beside}))
	require.NoError(t, s.SetPeers(t.Context(), []Peer{i.beside, i.peer()}))
	var err error
	i.conn, err = i.listener.Accept()
	require.NoError(t, err)
	capabilities := []byte{1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 65, 4, 0, 0, 0xfb, 0xf4} // RFC 4760, 6793: both families, and AS 64500
	open := append([]byte{4, 0xfb, 0xf4, 0, 90, 10, 0, 0, 3, byte(2 + len(capabilities)), 2, byte(len(capabilities))}, capabilities...)
	_, err = i.conn.Write(append(messageBytes(1, open), messageBytes(4, nil)...))
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

// say sends data, and then a route. It returns when the route has arrived, or the session has ended.
func (i *intruder) say(t testing.TB, s *Speaker, text []byte) {
	t.Helper()
	i.sent++
	last := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i.sent >> 8), byte(i.sent)}), 32)
	nlri := append([]byte{32}, last.Addr().AsSlice()...)
	mark := messageBytes(2, update(bytes.Join([][]byte{origin, path, nextHop}, nil), nlri))
	_, _ = i.conn.Write(append(bytes.Clone(text), mark...))
	// With a length of more bytes than are sent, the speaker waits for the rest.
	waited := time.After(time.Second)
	for {
		if offered(t, s, last) {
			_, _ = i.conn.Write(messageBytes(2, append(append([]byte{0, byte(len(nlri))}, nlri...), 0, 0)))
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

// table returns the routes in the speaker's table.
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

// Whatever a router sends in its session, the process goes on, accepts no route, and keeps the sessions of other routers. This tests our code around
// GoBGP's parser, and GoBGP as far as there is time. kind is the type of a message with a valid header; an UPDATE has the right length of its
// attributes; 0 is for raw bytes.
func FuzzARouterSendsAnything(f *testing.F) {
	const updated, notified, refreshed = 2, 3, 5
	for length := range byte(4) { // GoBGP's issue 3305, with flags that make it skip the value, and with correct flags
		f.Add(byte(updated), bytes.Join([][]byte{origin, path, attribute(0, 3, make([]byte, length)...)}, nil), []byte{8, 10})
		f.Add(byte(updated), bytes.Join([][]byte{origin, path, attribute(0x40, 3, make([]byte, length)...)}, nil), []byte{8, 10})
	}
	f.Add(byte(updated), bytes.Join([][]byte{attribute(0, 1, 0), path, nextHop}, nil), []byte{8, 10})          // ORIGIN that is not transitive
	f.Add(byte(updated), bytes.Join([][]byte{origin, path, nextHop, attribute(0, 99)}, nil), []byte{8, 10})    // well-known but unknown
	f.Add(byte(updated), bytes.Join([][]byte{origin, path, nextHop}, nil), []byte{32, 203, 0, 113, 1, 0})      // the announced route, and a default route
	f.Add(byte(updated), attribute(0x80, 14, 0, 2, 1, 0, 0, 0), []byte{})                                      // MP_REACH_NLRI without a next hop
	f.Add(byte(updated), attribute(0x80, 15, 0, 2, 1), []byte{})                                               // the end of RIB
	f.Add(byte(updated), bytes.Join([][]byte{origin, path, nextHop, attribute(0xc0, 8, 1)}, nil), []byte{0})   // a part of a community
	f.Add(byte(updated), bytes.Join([][]byte{origin, attribute(0x40, 2, 2, 255, 0), nextHop}, nil), []byte{0}) // 255 ASes in one byte
	f.Add(byte(refreshed), []byte{0, 1, 0, 1}, []byte{})
	// Inputs that end the session come last: a new session takes two seconds.
	f.Add(byte(updated), append(bytes.Clone(origin), 0x50, 2, 0xff, 0xff), []byte{}) // a length beyond the message
	f.Add(byte(notified), append([]byte{6, 2, 9}, "\x1b[2J\xff\n end"...), []byte{}) // with a shutdown communication (RFC 9003)

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
			body = messageBytes(kind, body)
		}
		hostile.say(t, s, body)
		require.Equal(t, []string{own.String() + "/32"}, table(t, s), "no route is accepted")
		require.True(t, established(s, "neighbour"))
		require.Equal(t, 1, neighbour.sessions())
		require.Len(t, neighbour.routes(t, wire.RF_IPv4_UC), 1)
	})
}

// Other hosts can forge the router's address in messages to the raw socket.
func FuzzSegmentsOfHandshakes(f *testing.F) {
	segment := func(payload []byte) []byte {
		return append([]byte{0, 179, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x18, 0, 0, 0, 0, 0, 0}, payload...)
	}
	f.Add(segment(messageBytes(kindNotification, []byte{2, 2, 0xfb, 0xf4})))
	f.Add(segment(messageBytes(kindNotification, append([]byte{6, 2, 200}, "short"...))))
	f.Add(segment(messageBytes(kindOpen, []byte{4, 0xfb, 0xf4, 0, 90, 10, 0, 0, 3, 8, 2, 6, 65, 4, 0, 0, 0xfb, 0xf4})))
	f.Add(segment(messageBytes(kindOpen, []byte{4, 0xfb, 0xf4, 0, 90, 10, 0, 0, 3, 8, 2, 255, 65, 255})))
	f.Add(segment(append(messageBytes(kindOpen, make([]byte, 10)), messageBytes(kindNotification, nil)...)))
	f.Add(segment(messageBytes(4, nil)[:18]))
	f.Fuzz(func(t *testing.T, segment []byte) {
		c := &causes{of: map[netip.Addr]*cause{}, changed: func() {}}
		c.add(Peer{Address: loopback, Port: 179})
		for _, m := range messagesIn(segment, 179) {
			require.LessOrEqual(t, len(m.body)+headerLength, len(segment))
			c.receive(loopback, m)
		}
		require.Less(t, len(c.reason(loopback)), 2000)
	})
}
