package example

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"kubelb.k8c.io/core/maglev"
	"kubelb.k8c.io/core/model"
)

// udpIdle is how long a UDP flow without packets is kept.
const udpIdle = 30 * time.Second

// pool chooses endpoints. Its content is replaced as a whole.
type pool struct {
	content atomic.Pointer[content]

	mu    sync.Mutex
	begun map[string]uint64 // connections and UDP flows by endpoint
}

// count counts a connection or UDP flow of an endpoint.
func (p *pool) count(endpoint string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.begun == nil {
		p.begun = map[string]uint64{}
	}
	p.begun[endpoint]++
}

func (p *pool) counted() map[string]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.begun)
}

type content struct {
	endpoints []model.Endpoint
	table     []uint32
}

func (p *pool) set(m model.Pool) {
	p.content.Store(&content{m.Endpoints, maglev.Table(m.Endpoints)})
}

func (p *pool) empty() bool { return len(p.content.Load().table) == 0 }

// choose returns the endpoint of the flow's row.
func (p *pool) choose(client netip.AddrPort) (model.Endpoint, bool) {
	c := p.content.Load()
	if len(c.table) == 0 {
		return model.Endpoint{}, false
	}
	return c.endpoints[c.table[flowHash(client)%uint64(len(c.table))]], true
}

// keeps reports whether a UDP flow may stay with the endpoint. It may stay with an unhealthy endpoint only while no endpoint
// is active, so that unhealthy ones get new flows.
func (p *pool) keeps(address netip.Addr) bool {
	c := p.content.Load()
	for i, e := range c.endpoints {
		if e.Address == address {
			return e.State != model.Unhealthy || slices.Contains(c.table, uint32(i))
		}
	}
	return false
}

// flowHash is the same on all gateways: FNV-1a over address and port, mixed.
func flowHash(client netip.AddrPort) uint64 {
	bytes, _ := client.MarshalBinary()
	h := uint64(14695981039346656037)
	for _, b := range bytes {
		h = (h ^ uint64(b)) * 1099511628211
	}
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	return h ^ h>>33
}

// frontend listens while its pool is not empty, whichever pool that is: a new flow is never refused while the pool changes. While it does not listen, the kernel refuses connections.
type frontend struct {
	key   model.FrontendKey
	owner model.ObjectName
	// pool and target change while flows begin.
	pool   atomic.Pointer[pool]
	target atomic.Uint32
	// begun counts connections and UDP flows.
	begun atomic.Uint64
	open  *connections

	listener net.Listener
	packets  *net.UDPConn
}

// connections are the open TCP connections of clients.
type connections struct {
	mu  sync.Mutex
	all map[*net.TCPConn]bool
}

func newConnections() *connections { return &connections{all: map[*net.TCPConn]bool{}} }

func (c *connections) set(client *net.TCPConn, open bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if open {
		c.all[client] = true
	} else {
		delete(c.all, client)
	}
}

func (c *connections) count() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return uint64(len(c.all))
}

// end resets all of them.
func (c *connections) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for client := range c.all {
		reset(client)
	}
}

func (f *frontend) sync() error {
	if f.pool.Load().empty() {
		f.close()
		return nil
	}
	if f.listener != nil || f.packets != nil {
		return nil
	}
	at := netip.AddrPortFrom(f.key.VIP, f.key.Port)
	if f.key.Protocol == model.UDP {
		packets, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return err
		}
		f.packets = packets
		go f.forwardDatagrams(packets)
		return nil
	}
	listener, err := net.Listen("tcp", at.String())
	if err != nil {
		return err
	}
	f.listener = listener
	go f.accept(listener)
	return nil
}

func (f *frontend) close() {
	if f.listener != nil {
		f.listener.Close()
	}
	if f.packets != nil {
		f.packets.Close()
	}
	f.listener, f.packets = nil, nil
}

// accept returns when the listener is closed. Connections go on until their owner loses the frontend.
func (f *frontend) accept(listener net.Listener) {
	for {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		go f.forward(c.(*net.TCPConn))
	}
}

func (f *frontend) forward(client *net.TCPConn) {
	f.open.set(client, true)
	defer f.open.set(client, false)
	server, err := f.dial(addrPort(client.RemoteAddr()))
	if err != nil {
		reset(client)
		return
	}
	var both sync.WaitGroup
	both.Go(func() { pipe(server, client) })
	both.Go(func() { pipe(client, server) })
	both.Wait()
	client.Close()
	server.Close()
}

// dial connects to an endpoint. After a timeout it chooses again, since the endpoint may be known to be unhealthy by then.
func (f *frontend) dial(client netip.AddrPort) (*net.TCPConn, error) {
	for attempt := 1; ; attempt++ {
		pool := f.pool.Load()
		endpoint, ok := pool.choose(client)
		if !ok {
			return nil, errors.New("no endpoint")
		}
		to := netip.AddrPortFrom(endpoint.Address, uint16(f.target.Load()))
		server, err := net.DialTimeout("tcp", to.String(), time.Second)
		if err == nil {
			f.count(pool, endpoint)
			return server.(*net.TCPConn), nil
		}
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() || attempt == 5 {
			return nil, err
		}
	}
}

func (f *frontend) count(from *pool, endpoint model.Endpoint) {
	f.begun.Add(1)
	from.count(endpoint.ID)
}

// pipe copies one direction, and forwards its end or reset.
func pipe(to, from *net.TCPConn) {
	_, err := io.Copy(to, from)
	if errors.Is(err, syscall.ECONNRESET) {
		reset(to)
		reset(from)
		return
	}
	_ = to.CloseWrite()
}

func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

func addrPort(a net.Addr) netip.AddrPort {
	at, _ := netip.ParseAddrPort(a.String())
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// session is a UDP flow.
type session struct {
	endpoint netip.AddrPort
	server   *net.UDPConn
}

// forwardDatagrams returns when the socket is closed, and then ends all sessions.
func (f *frontend) forwardDatagrams(packets *net.UDPConn) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	sessions := map[netip.AddrPort]*session{}
	buffer := make([]byte, 1<<16)
	for {
		n, client, err := packets.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			for _, s := range sessions {
				s.server.Close()
			}
			return
		}
		if err != nil {
			continue // such as an ICMP error for an earlier datagram
		}
		client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
		s := sessions[client]
		if s == nil || !f.pool.Load().keeps(s.endpoint.Addr()) || s.endpoint.Port() != uint16(f.target.Load()) {
			if s != nil {
				s.server.Close()
			}
			if s = f.begin(ctx, packets, client); s == nil {
				delete(sessions, client)
				continue
			}
			sessions[client] = s
		}
		if _, err := s.server.Write(buffer[:n]); err != nil {
			s.server.Close()
			delete(sessions, client)
		}
	}
}

func (f *frontend) begin(ctx context.Context, packets *net.UDPConn, client netip.AddrPort) *session {
	pool := f.pool.Load()
	endpoint, ok := pool.choose(client)
	if !ok {
		return nil
	}
	to := netip.AddrPortFrom(endpoint.Address, uint16(f.target.Load()))
	server, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return nil
	}
	f.count(pool, endpoint)
	go answer(ctx, packets, client, server)
	return &session{to, server}
}

// answer forwards replies to the client until the flow is idle or closed.
func answer(ctx context.Context, packets *net.UDPConn, client netip.AddrPort, server *net.UDPConn) {
	defer server.Close()
	buffer := make([]byte, 1<<16)
	for ctx.Err() == nil {
		if err := server.SetReadDeadline(time.Now().Add(udpIdle)); err != nil {
			return
		}
		n, err := server.Read(buffer)
		if err != nil {
			return
		}
		_, _ = packets.WriteToUDPAddrPort(buffer[:n], client)
	}
}
