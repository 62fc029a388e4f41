package cases

import (
	"fmt"
	"net/netip"
	"sync"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// narrowMTU is the MTU of narrow links. All other links carry 1500 bytes.
const narrowMTU = 1300

// narrowing makes one link between a client and its endpoint narrow.
type narrowing struct {
	link   string
	narrow func() error
	// answers means that only answers pass the narrow link, so that clients learn nothing.
	answers bool
	// notDirect means that the way has a router between gateway and nodes, so that it is none for the mode direct.
	notDirect bool
}

func (c *C) narrowings() []narrowing {
	return []narrowing{
		{link: "from the router to the client", narrow: func() error { return c.Lab.NarrowPathToB(narrowMTU) }, answers: true},
		{link: "from the gateway to the client", narrow: func() error { return c.Lab.NarrowGatewayToB(narrowMTU) }, answers: true},
		{link: "from the gateway to the nodes", narrow: func() error { return c.Lab.NarrowGatewayToNodes(narrowMTU) }},
		{link: "from a router to the nodes", notDirect: true, narrow: func() error {
			router, err := c.Lab.NodesRouter()
			if err != nil {
				return err
			}
			return c.Lab.NarrowRouterToNodes(router, narrowMTU)
		}},
	}
}

func pathMTU() Case {
	return Case{
		Name:  "path-mtu",
		Shows: "if a link on either side of the gateway is narrow, the sender learns its MTU by an ICMP error, or the packets are made to fit: large transfers and datagrams arrive in every forwarding mode",
		Needs: []dataplane.Feature{dataplane.PathMTU},
		Run: func(c *C) {
			c.Serve(30080)
			c.NoError(c.Lab.RouteNodesVia(0))
			for i := range c.narrowings() {
				// Hosts keep what they have learned about a path. So each narrow link has external addresses of its own, and TCP and UDP have
				// other endpoints.
				c.requireFit(c.narrowings()[i], 1+6*i)
			}
		},
	}
}

// requireFit narrows the link and requires that all packets arrive. It uses external addresses from the number vip on.
func (c *C) requireFit(n narrowing, vip int) {
	pools := []model.Pool{c.Pool("tcp", 0), c.Pool("udp", 1), c.Pool("direct-tcp", 2), c.Pool("direct-udp", 3)}
	var frontends []model.Frontend
	for _, mode := range c.forwardingModes() {
		prefix := ""
		if mode == model.Direct {
			prefix = "direct-"
		}
		if mode == model.Direct && n.notDirect {
			continue
		}
		frontends = append(frontends, c.frontendIn(mode, model.TCP, vip, prefix+"tcp"), c.frontendIn(mode, model.UDP, vip+1, prefix+"udp"))
		vip += 2
	}
	c.Apply(pools, frontends...)
	c.NoError(n.narrow())
	problems := make([]error, len(frontends))
	var all sync.WaitGroup
	for i, f := range frontends {
		all.Go(func() { problems[i] = c.fits(f, n.answers) })
	}
	all.Wait()
	for i, f := range frontends {
		c.NoError(problems[i], "%s in mode %s, a narrow link %s", f.Protocol, f.Forwarding, n.link)
	}
}

// linkMTU is the MTU of all other links.
const linkMTU = 1500

// fits returns an error if packets of client b do not fit, or if it learns a wrong MTU.
func (c *C) fits(f model.Frontend, onlyAnswers bool) error {
	to := netip.AddrPortFrom(f.VIP, f.Port)
	if f.Protocol == model.TCP {
		return c.Lab.B.Transfer(to, 256<<10)
	}
	if err := c.Lab.B.FittingFragments(to); err != nil {
		return err
	}
	mtu, err := c.Lab.B.FittingDatagrams(to)
	if err == nil && mtu != linkMTU && (onlyAnswers || mtu != narrowMTU) {
		return fmt.Errorf("the client learned an MTU of %d", mtu)
	}
	return err
}
