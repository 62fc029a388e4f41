package cases

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func purge() Case {
	return Case{
		Name:     "purge",
		Gateways: 2,
		Shows:    "rules of other programs stay in the kernel and see no packet with a mark of the backend; after a purge the host is as before, and connections of clients and of endpoints have ended",
		Run: func(c *C) {
			servers := c.serveForPurge()
			g := c.spare(2)
			c.NoError(g.AddForeignRules())
			before := g.footprint()
			g.Start()
			frontends := c.frontendsForPurge(1)
			pools := c.poolsForPurge()
			c.Gateways[1].Apply(model.Snapshot{Pools: pools, Frontends: c.frontendsForPurge(2)})
			g.Apply(model.Snapshot{Pools: pools, Frontends: frontends})
			c.routeVIPsTo(1)
			unknown := c.openStreams(5)
			c.routeVIPsTo(2)
			for _, s := range unknown {
				_ = s.Alive() // the other gateway knows it, if this one redirects
				c.NoError(s.Reset())
			}
			others := openConnections(servers) // of the other gateway, which may not see the resets
			// A direct flow may keep its mark until the interface, since its address does not say where it goes.
			isDirect := func(f model.Frontend) bool { return f.Forwarding == model.Direct }
			streams := c.trafficForPurge(slices.DeleteFunc(slices.Clone(frontends), isDirect))
			marked, err := g.MarkedPackets()
			c.NoError(err)
			c.Zero(marked, "packets with a mark came to rules of other programs")
			streams = append(streams, c.trafficForPurge(slices.DeleteFunc(slices.Clone(frontends), func(f model.Frontend) bool { return !isDirect(f) }))...)
			c.NoError(g.Process.Close(c.ctx, true))
			g.Process.Stop()
			c.requireEnded(streams, servers, others)
			g.requireNothingLeft(before)
			c.requireUnserved(frontends)
		},
	}
}

func purgeBySuccessor() Case {
	return Case{
		Name:  "purge-by-successor",
		Shows: "a process that was given no change purges what a killed one has left: the host is as before, and connections have ended; a purge before Configure is an error and changes nothing",
		Run: func(c *C) {
			servers := c.serveForPurge()
			g := c.spare(2)
			before := g.footprint()
			g.Start()
			frontends := c.frontendsForPurge(-1)
			g.Apply(model.Snapshot{Pools: c.poolsForPurge(), Frontends: frontends})
			streams := c.trafficForPurge(frontends)
			c.NoError(g.Process.Kill())
			alive := c.countAlive(streams)
			other, err := g.load(c.backends.Tested)
			c.NoError(err)
			c.Error(other.Close(c.ctx, true), "a purge before Configure")
			other.Stop()
			c.Equal(alive, c.countAlive(streams), "connections after a purge that was refused")
			g.Start()
			c.NoError(g.Process.Close(c.ctx, true))
			g.Process.Stop()
			c.requireEnded(streams, servers, 0)
			g.requireNothingLeft(before)
			c.requireUnserved(frontends)
		},
	}
}

// serveForPurge starts servers on the nodes, and returns those whose connections end with a purge. An endpoint of a direct frontend has its connection
// with the client alone, and learns of the end when it sends something. Transparent frontends need nodes that answer by the gateway.
func (c *C) serveForPurge() []*lab.Server {
	c.NoError(c.Lab.RouteNodesVia(2))
	if c.has(dataplane.Direct) {
		c.NoError(c.Lab.ServeVIPOnNodes(c.At(3, 80), 30080))
		c.ServeOn(2, 30080)
	}
	return []*lab.Server{c.ServeOn(0, 30080), c.ServeOn(1, 30080)}
}

func (c *C) poolsForPurge() []model.Pool {
	return []model.Pool{c.Pool("all", 0, 1), c.Pool("direct", 2), c.Pool("none")}
}

// has reports whether the backend declares the feature.
func (c *C) has(f dataplane.Feature) bool { return slices.Contains(c.Description.Features, f) }

// frontendsForPurge returns frontends with every feature that the backend declares, so that it has every kind of state. next is the number of
// the gateway to which they redirect, -1 for none.
func (c *C) frontendsForPurge(next int) []model.Frontend {
	tcp := c.Frontend(model.TCP, 1, 80, 30080, "all")
	if next >= 0 && c.has(dataplane.Redirects) {
		tcp.Redirect = model.Redirect{Next: c.frontAddress(next), Limit: 1}
	}
	out := []model.Frontend{tcp, c.Frontend(model.UDP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 81, 30081, "all"), c.Frontend(model.TCP, 1, 82, 30080, "none")}
	for i, o := range []struct {
		needs dataplane.Feature
		set   func(*model.Frontend)
	}{
		{dataplane.SourceRanges, func(f *model.Frontend) {
			f.Restricted = true
			f.SourceRanges = append(f.SourceRanges, netip.PrefixFrom(c.Lab.A.Address(c.V4), c.Lab.A.Address(c.V4).BitLen()))
		}},
		{dataplane.Affinity, func(f *model.Frontend) { f.AffinityTimeout = time.Hour }},
		{dataplane.Limits, func(f *model.Frontend) { f.MaxConnections = 100 }},
		{dataplane.RateLimits, func(f *model.Frontend) { f.MaxNewPerSecond = 100 }},
		{dataplane.IdleTimeout, func(f *model.Frontend) { f.IdleTimeout = time.Hour }},
		{dataplane.Transparent, func(f *model.Frontend) { f.Forwarding = model.Transparent }},
		{dataplane.Direct, func(f *model.Frontend) {
			f.VIP, f.Port, f.TargetPort, f.Forwarding, f.Pool = c.VIP(3), 80, 80, model.Direct, c.PoolID(tenant, "direct")
		}},
	} {
		if c.has(o.needs) {
			f := c.Frontend(model.TCP, 2, uint16(80+i), 30080, "all")
			o.set(&f)
			out = append(out, f)
		}
	}
	return out
}

// trafficForPurge opens two connections to each frontend that has endpoints, and sends datagrams and short connections.
func (c *C) trafficForPurge(to []model.Frontend) []*lab.Stream {
	var streams []*lab.Stream
	for _, f := range to {
		if f.Protocol == model.TCP && f.Pool != c.PoolID(tenant, "none") {
			streams = append(streams, c.openStreamsTo(2, addressOf(f))...)
		}
	}
	for _, network := range networks {
		c.Request(20, network, c.At(1, 80))
	}
	// For connection tracking, each datagram without an answer is new.
	unanswered, err := c.Lab.A.Dial("udp", c.At(1, 81), from(0))
	c.NoError(err)
	for range 5 {
		_, _ = unanswered.Write([]byte("?"))
	}
	c.NoError(unanswered.Close())
	return streams
}

// networkOf returns the protocol as package net names it.
func networkOf(f model.Frontend) string { return strings.ToLower(f.Protocol.String()) }

func addressOf(f model.Frontend) netip.AddrPort { return netip.AddrPortFrom(f.VIP, f.Port) }

// endTime is how long an end of a connection takes to reach client and endpoint after a purge.
const endTime = 2 * time.Second

func openConnections(servers []*lab.Server) (n int) {
	for _, s := range servers {
		n += s.Open()
	}
	return n
}

// requireEnded requires that connections have ended, also for clients and endpoints that send nothing. Endpoints may have others.
func (c *C) requireEnded(streams []*lab.Stream, servers []*lab.Server, others int) {
	errs := make([]error, len(streams))
	var all sync.WaitGroup
	for i, s := range streams {
		all.Go(func() {
			errs[i] = s.SetReadDeadline(time.Now().Add(c.Patience.For(endTime)))
			if errs[i] == nil {
				_, errs[i] = s.Read(make([]byte, 1))
			}
		})
	}
	all.Wait()
	for i, err := range errs {
		c.Error(err, "%s still receives", streams[i].RemoteAddr())
		c.False(errors.Is(err, os.ErrDeadlineExceeded), "a connection to %s hangs", streams[i].RemoteAddr())
	}
	c.Eventually(func() bool { return openConnections(servers) <= others }, "connections of endpoints hang")
}

// requireUnserved requires that no frontend answers.
func (c *C) requireUnserved(frontends []model.Frontend) {
	for _, f := range frontends[:2] {
		c.False(c.Lab.A.AnsweredWithin(c.Patience.For(shortWait), networkOf(f), addressOf(f)), "%s is served", f.FrontendKey)
	}
}
