package cases

import (
	"errors"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func frontendUpdates() Case {
	return Case{
		Name: "frontend-updates-under-load",
		Shows: "while each field of a frontend changes, and changes back, no new connection or UDP flow is refused, no SYN is lost, " +
			"and established connections continue",
		Run: func(c *C) {
			c.Serve(30080)
			c.Serve(30081)
			c.NoError(c.Lab.RouteNodesVia(0)) // for the forwarding mode transparent
			pools := []model.Pool{c.Pool("all", 0, 1, 2, 3), c.Pool("same", 0, 1, 2, 3)}
			frontends := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all")}
			c.Apply(pools, frontends...)
			streams := c.openStreams(5)
			lost := c.lostSYNs(c.At(1, 80))
			loads := []*Load{c.strictLoad("tcp", c.At(1, 80)), c.strictLoad("udp", c.At(1, 80))}
			for _, update := range c.frontendUpdates() {
				updated := slices.Clone(frontends)
				for i := range updated {
					update.change(&updated[i])
				}
				c.Apply(pools, updated...)
				c.requireServed(loads, "the frontend's "+update.field+" changes")
				c.Apply(pools, frontends...)
				c.requireServed(loads, "the frontend's "+update.field+" changes back")
				c.requireAlive(streams, nil)
			}
			for _, load := range loads {
				load.Stop()
			}
			// A busy machine may be late with the answer to a SYN, once or twice.
			c.LessOrEqual(lost(), 2, "SYNs without an answer while the frontend changes")
		},
	}
}

// frontendUpdate is a change of one field. A client of the frontend stays served.
type frontendUpdate struct {
	field   string
	feature dataplane.Feature // that the change needs
	change  func(*model.Frontend)
}

// frontendUpdates returns the changes that the backend supports.
func (c *C) frontendUpdates() []frontendUpdate {
	everybody := c.network("0.0.0.0/0", "::/0")
	clients := c.network("198.18.0.0/15", "2001:db8::/32")
	all := []frontendUpdate{
		{field: "pool", change: func(f *model.Frontend) { f.Pool = c.PoolID(tenant, "same") }},
		{field: "target port", change: func(f *model.Frontend) { f.TargetPort = 30081 }},
		{"source ranges", dataplane.SourceRanges, func(f *model.Frontend) { f.Restricted, f.SourceRanges = true, []netip.Prefix{clients} }},
		{"source ranges", dataplane.SourceRanges, func(f *model.Frontend) { f.Restricted, f.SourceRanges = true, []netip.Prefix{everybody} }},
		{"affinity", dataplane.Affinity, func(f *model.Frontend) { f.AffinityTimeout = time.Hour }},
		{"idle timeout", dataplane.IdleTimeout, func(f *model.Frontend) { f.IdleTimeout = time.Hour }},
		{"limit of connections", dataplane.Limits, func(f *model.Frontend) { f.MaxConnections = 1 << 20 }},
		{"limit of new flows", dataplane.RateLimits, func(f *model.Frontend) { f.MaxNewPerSecond = 1 << 20 }},
		{"forwarding", dataplane.Transparent, func(f *model.Frontend) { f.Forwarding = model.Transparent }},
		{"redirect", dataplane.Redirects, func(f *model.Frontend) {
			if f.Protocol == model.TCP {
				f.Redirect = model.Redirect{Next: c.Lab.GatewayAddress(c.V4, 1), Limit: 1}
			}
		}},
	}
	return slices.DeleteFunc(all, func(u frontendUpdate) bool {
		return u.feature != "" && !slices.Contains(c.Description.Features, u.feature)
	})
}

// requireServed requires that each load makes more flows, and that none has failed yet.
func (c *C) requireServed(loads []*Load, while string) {
	for i, load := range loads {
		// The flow that is under way may have begun before the change.
		enough := load.made.Load() + 3
		for begin := time.Now(); load.made.Load() < enough && load.failure() == nil && time.Since(begin) < c.Patience.For(10*time.Second); {
			time.Sleep(time.Millisecond)
		}
		c.NoError(load.failure(), "%s: a new flow while %s", networks[i], while)
		c.GreaterOrEqual(load.made.Load(), enough, "%s flows of the load while %s", networks[i], while)
	}
}

// strictLoad starts a load whose flows must not be refused. Each flow has another port. A datagram may be lost that is under way while its flow
// gets another endpoint, and is sent again.
func (c *C) strictLoad(network string, to netip.AddrPort) *Load {
	const first, ports = 20000, 40000
	made := 0
	return c.startLoad(&Load{c: c}, func() error {
		source := from(uint16(first + made%ports))
		made++
		if network == "tcp" {
			_, err := c.Lab.B.Request(network, to, source)
			return err
		}
		flow, err := c.Lab.B.Dial(network, to, source)
		if err != nil {
			return err
		}
		defer flow.Close()
		for range maxSends {
			if err = lab.AnsweredOnce(flow, c.Patience.For(shortWait)); err == nil || errors.Is(err, syscall.ECONNREFUSED) {
				return err
			}
		}
		return err
	})
}

// lostSYNs counts SYNs of connections from client B to the port that B sent again. The function that it returns ends the count.
func (c *C) lostSYNs(to netip.AddrPort) func() int {
	seen := map[netip.AddrPort]int{}
	capture, err := c.Lab.B.Capture(func(p lab.Packet) bool {
		if p.Out && p.IsSYN() && p.Target == to {
			seen[p.Source]++
			if seen[p.Source] > 1 {
				c.Logf("sent again: %s", p)
			}
		}
		return false
	})
	c.NoError(err)
	return func() (lost int) {
		capture.Close()
		for _, n := range seen {
			lost += n - 1
		}
		return lost
	}
}
