package example

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
)

// at returns an endpoint at 127.0.0.x.
func at(last byte, state model.EndpointState) model.Endpoint {
	a := netip.AddrFrom4([4]byte{127, 0, 0, last})
	return model.Endpoint{ID: a.String(), Address: a, Weight: 1, State: state}
}

func active(last ...byte) (out []model.Endpoint) {
	for _, l := range last {
		out = append(out, at(l, model.Active))
	}
	return out
}

func poolWith(endpoints ...model.Endpoint) *pool {
	p := &pool{}
	p.set(model.Pool{ID: "t/p", Tenant: "t", Endpoints: endpoints})
	return p
}

// clients returns n clients with different ports.
func clients(n int) (out []netip.AddrPort) {
	for i := range n {
		out = append(out, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(10000+i)))
	}
	return out
}

// chosen counts the clients of each endpoint, by the last byte of its address.
func (p *pool) chosen(of []netip.AddrPort) map[byte]int {
	out := map[byte]int{}
	for _, c := range of {
		if e, found := p.choose(c); found {
			out[e.Address.As4()[3]]++
		}
	}
	return out
}

func TestFlowsOfOneClientAreSpreadOverTheEndpoints(t *testing.T) {
	p := poolWith(active(11, 12, 13)...)
	shares := p.chosen(clients(3000))
	require.Len(t, shares, 3)
	for endpoint, n := range shares {
		require.InDelta(t, 1000, n, 150, "endpoint %d", endpoint)
	}
	require.Equal(t, shares, poolWith(active(11, 12, 13)...).chosen(clients(3000)), "the same on each gateway")
}

func TestAnEndpointWithTwiceTheWeightGetsTwiceTheFlows(t *testing.T) {
	heavy := at(11, model.Active)
	heavy.Weight = 2
	shares := poolWith(heavy, at(12, model.Active)).chosen(clients(3000))
	require.InDelta(t, 2000, shares[11], 200)
	require.InDelta(t, 1000, shares[12], 200)
}

func TestFlowsKeepTheirEndpointWhenAnotherOneJoins(t *testing.T) {
	before, after := poolWith(active(11, 12, 13)...), poolWith(active(11, 12, 13, 14)...)
	moved := 0
	for _, c := range clients(1000) {
		was, _ := before.choose(c)
		if is, _ := after.choose(c); is.ID != was.ID && is.ID != "127.0.0.14" {
			moved++
		}
	}
	require.Less(t, moved, 150, "flows move to the new endpoint, and few others move")
}

func TestNewFlowsGoToActiveEndpointsIfThereAreSome(t *testing.T) {
	for what, c := range map[string]struct {
		endpoints []model.Endpoint
		want      []byte
	}{
		"active only":           {[]model.Endpoint{at(11, model.Active), at(12, model.Unhealthy), at(13, model.Draining)}, []byte{11}},
		"unhealthy if no other": {[]model.Endpoint{at(12, model.Unhealthy)}, []byte{12}},
		"none":                  {nil, nil},
	} {
		p := poolWith(c.endpoints...)
		shares := p.chosen(clients(200))
		require.Len(t, shares, len(c.want), what)
		for _, endpoint := range c.want {
			require.Equal(t, 200/len(c.want), shares[endpoint], what)
		}
		require.Equal(t, len(c.want) == 0, p.empty(), what)
	}
}

func TestAUDPFlowMayStayUnlessItsEndpointIsGoneOrUnhealthyBesideOthers(t *testing.T) {
	p := poolWith(at(11, model.Active), at(12, model.Unhealthy), at(13, model.Draining))
	require.True(t, p.keeps(at(11, 0).Address))
	require.False(t, p.keeps(at(12, 0).Address), "there is an active one")
	require.True(t, p.keeps(at(13, 0).Address), "its flows go on")
	require.False(t, p.keeps(at(14, 0).Address), "it has left the pool")
	require.True(t, poolWith(at(12, model.Unhealthy)).keeps(at(12, 0).Address), "unhealthy ones get new flows")
}

// proxied is a frontend at 127.0.0.1 with servers.
type proxied struct {
	*testing.T
	*frontend
	port uint16 // of the servers
}

func newProxied(t *testing.T, protocol model.Protocol, endpoints ...model.Endpoint) *proxied {
	f := &frontend{key: model.FrontendKey{VIP: netip.MustParseAddr("127.0.0.1"), Protocol: protocol}, open: newConnections()}
	f.pool.Store(poolWith(endpoints...))
	p := &proxied{t, f, 0}
	t.Cleanup(func() {
		f.close()
		f.open.end()
	})
	return p
}

// listen starts the frontend with the servers' port as target.
func (p *proxied) listen() {
	p.target.Store(uint32(p.port))
	require.NoError(p, p.sync())
}

// serveTCP calls handle for each connection to 127.0.0.x.
func (p *proxied) serveTCP(last byte, handle func(*net.TCPConn)) {
	l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(at(last, 0).Address, p.port)))
	require.NoError(p, err)
	p.port = l.Addr().(*net.TCPAddr).AddrPort().Port()
	p.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			go handle(c)
		}
	}()
}

// serveUDP answers each datagram to 127.0.0.x with the address.
func (p *proxied) serveUDP(last byte) {
	l, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at(last, 0).Address, p.port)))
	require.NoError(p, err)
	p.port = l.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	p.Cleanup(func() { l.Close() })
	go func() {
		buffer := make([]byte, 100)
		for {
			_, from, err := l.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			_, _ = l.WriteToUDPAddrPort([]byte(at(last, 0).ID), from)
		}
	}()
}

func (p *proxied) dialTCP() *net.TCPConn {
	p.Helper()
	c, err := net.Dial("tcp", p.listener.Addr().String())
	require.NoError(p, err)
	require.NoError(p, c.SetDeadline(time.Now().Add(30*time.Second)))
	p.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

func (p *proxied) dialUDP() net.Conn {
	p.Helper()
	c, err := net.Dial("udp", p.packets.LocalAddr().String())
	require.NoError(p, err)
	require.NoError(p, c.SetDeadline(time.Now().Add(30*time.Second)))
	p.Cleanup(func() { c.Close() })
	return c
}

// ask sends a datagram and returns the answer.
func (p *proxied) ask(c net.Conn) string {
	p.Helper()
	_, err := c.Write([]byte("who"))
	require.NoError(p, err)
	buffer := make([]byte, 100)
	n, err := c.Read(buffer)
	require.NoError(p, err)
	return string(buffer[:n])
}

// answerAll reads until the client has ended, and answers in capitals.
func answerAll(c *net.TCPConn) {
	text, _ := io.ReadAll(c)
	_, _ = c.Write([]byte(strings.ToUpper(string(text))))
	_ = c.Close()
}

// echo answers with what it reads.
func echo(c *net.TCPConn) {
	_, _ = io.Copy(c, c)
	_ = c.Close()
}

func TestEachDirectionOfAConnectionEndsOnItsOwn(t *testing.T) {
	p := newProxied(t, model.TCP, active(11)...)
	p.serveTCP(11, answerAll)
	p.listen()
	c := p.dialTCP()
	_, err := c.Write([]byte("hello"))
	require.NoError(t, err)
	require.NoError(t, c.CloseWrite())
	text, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "HELLO", string(text))
}

func TestAResetOfTheEndpointReachesTheClient(t *testing.T) {
	p := newProxied(t, model.TCP, active(11)...)
	p.serveTCP(11, func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 1))
		reset(c)
	})
	p.listen()
	c := p.dialTCP()
	_, err := c.Write([]byte("x"))
	require.NoError(t, err)
	_, err = c.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

func TestAnEndpointThatRefusesResetsTheClient(t *testing.T) {
	p := newProxied(t, model.TCP, active(11)...)
	p.serveTCP(12, echo) // nobody listens at its port on 127.0.0.11
	p.listen()
	c, err := net.Dial("tcp", p.listener.Addr().String())
	if err == nil { // otherwise the reset was quicker
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

func TestAFrontendListensOnlyWhileItsPoolHasEndpoints(t *testing.T) {
	p := newProxied(t, model.TCP)
	p.listen()
	require.Nil(t, p.listener)
	p.serveTCP(11, echo)
	p.pool.Load().set(model.Pool{Endpoints: active(11)})
	p.listen()
	address := p.listener.Addr().String()
	same := p.listener
	p.listen()
	require.Same(t, same, p.listener, "it listens once")
	p.pool.Load().set(model.Pool{})
	p.listen()
	require.Nil(t, p.listener)
	_, err := net.Dial("tcp", address)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}

// echoes requires that the connection works.
func (p *proxied) echoes(c net.Conn) {
	p.Helper()
	_, err := c.Write([]byte("x"))
	require.NoError(p, err)
	_, err = io.ReadFull(c, make([]byte, 1))
	require.NoError(p, err)
}

func TestConnectionsGoOnWithoutTheirListenerAndEndWithTheirOwner(t *testing.T) {
	p := newProxied(t, model.TCP, active(11)...)
	p.serveTCP(11, echo)
	p.listen()
	c := p.dialTCP()
	p.echoes(c)
	p.close()
	p.echoes(c)
	p.open.end()
	_, err := c.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

func TestAConnectionIsForgottenWhenItHasEnded(t *testing.T) {
	p := newProxied(t, model.TCP, active(11)...)
	p.serveTCP(11, echo)
	p.listen()
	c := p.dialTCP()
	p.echoes(c)
	open := func() int {
		p.open.mu.Lock()
		defer p.open.mu.Unlock()
		return len(p.open.all)
	}
	require.Equal(t, 1, open())
	require.NoError(t, c.Close())
	require.Eventually(t, func() bool { return open() == 0 }, 30*time.Second, time.Millisecond)
}

func TestAUDPFlowKeepsItsEndpointWhileItIsInThePool(t *testing.T) {
	p := newProxied(t, model.UDP, active(11)...)
	for _, last := range []byte{11, 12} {
		p.serveUDP(last)
	}
	p.listen()
	c := p.dialUDP()
	require.Equal(t, "127.0.0.11", p.ask(c))
	p.pool.Load().set(model.Pool{Endpoints: []model.Endpoint{at(11, model.Draining), at(12, model.Active)}})
	require.Equal(t, "127.0.0.11", p.ask(c), "a draining endpoint keeps its flows")
	require.Equal(t, "127.0.0.12", p.ask(p.dialUDP()), "and gets no new ones")
	p.pool.Load().set(model.Pool{Endpoints: active(12)})
	require.Equal(t, "127.0.0.12", p.ask(c))
}

func TestAUDPFlowFollowsTheTargetPort(t *testing.T) {
	p := newProxied(t, model.UDP, active(11)...)
	p.serveUDP(11)
	p.listen()
	c := p.dialUDP()
	require.Equal(t, "127.0.0.11", p.ask(c))
	before := p.port
	p.port = 0
	p.serveUDP(11)
	require.NotEqual(t, before, p.port)
	p.listen()
	require.Equal(t, "127.0.0.11", p.ask(c), "the former port does not have to answer")
	p.serveUDP(12)
	p.pool.Load().set(model.Pool{Endpoints: active(12)})
	require.Equal(t, "127.0.0.12", p.ask(c))
}

func TestADatagramWithoutAnEndpointIsDropped(t *testing.T) {
	p := newProxied(t, model.UDP, active(11)...)
	p.serveUDP(11)
	p.listen()
	p.pool.Load().set(model.Pool{}) // before the frontend is synced
	c := p.dialUDP()
	_, err := c.Write([]byte("who"))
	require.NoError(t, err)
	p.pool.Load().set(model.Pool{Endpoints: active(11)})
	require.Equal(t, "127.0.0.11", p.ask(c), "the next one is answered")
}
