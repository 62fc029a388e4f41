package cases

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func portsAgain() Case {
	return Case{
		Name:  "ports-again",
		Shows: "a client that takes a port again meets an endpoint of the pool, however and whenever its former connection from there ended with an endpoint that has left",
		Run:   func(c *C) { c.portsAgain(model.NAT) },
	}
}

func portsAgainTransparent() Case {
	return Case{
		Name:  "ports-again-transparent",
		Shows: "the same of a transparent frontend",
		Needs: []dataplane.Feature{dataplane.Transparent},
		Run: func(c *C) {
			c.NoError(c.Lab.NodesAnswerBy(0))
			c.portsAgain(model.Transparent)
		},
	}
}

func portsAgainDirect() Case {
	return Case{
		Name:  "ports-again-direct",
		Shows: "the same of a direct frontend, of whose connections the gateway sees the client's half; a connection of which the client has ended its half goes on",
		Needs: []dataplane.Feature{dataplane.Direct},
		Run: func(c *C) {
			c.NoError(c.Lab.NodesTake(c.At(1, 80), 30080))
			c.portsAgain(model.Direct)
			c.halfClosedGoesOn()
		},
	}
}

// ending is a way for a connection to end.
type ending struct {
	name string
	end  func(*net.TCPConn) error
}

var endings = []ending{
	{"the endpoint ended it first", func(t *net.TCPConn) error {
		if _, err := fmt.Fprintln(t, "who"); err != nil {
			return err
		}
		_, err := io.ReadAll(t)
		return errors.Join(err, t.Close())
	}},
	{"the client ended it first", func(t *net.TCPConn) error {
		err := t.CloseWrite()
		_, late := io.ReadAll(t)
		return errors.Join(err, late, t.Close())
	}},
	{"the client reset it", func(t *net.TCPConn) error { return (&lab.Stream{Conn: t}).Reset() }},
	{"the endpoint reset it", func(t *net.TCPConn) error {
		if _, err := fmt.Fprintln(t, "reset"); err != nil {
			return err
		}
		if _, err := io.ReadAll(t); !errors.Is(err, syscall.ECONNRESET) {
			return fmt.Errorf("the server was to reset the connection: %w", err)
		}
		return t.Close()
	}},
	{"the client vanished", func(t *net.TCPConn) error { return (&lab.Stream{Conn: t}).Vanish() }},
}

// portsAgain has connections end before and after their endpoint leaves the pool. The endpoint's node is silent when their ports are taken again.
func (c *C) portsAgain(mode model.Forwarding) {
	c.Serve(30080)
	frontend := c.Frontend(model.TCP, 1, 80, 30080, "all")
	frontend.Forwarding = mode
	c.NoError(c.Lab.A.AllowPortReuse())
	const before, later = 21300, 21400
	c.Apply([]model.Pool{c.Pool("all", 0)}, frontend)
	ended, ends := c.connections(before), c.connections(later)
	c.end(ended)
	c.Apply([]model.Pool{c.Pool("all", 1)}, frontend)
	c.askAgain(before, "and its endpoint left then")
	c.end(ends)
	c.askAgain(later, "after its endpoint had left")
}

// connections opens one for each ending, from this port on.
func (c *C) connections(port uint16) (out []*net.TCPConn) {
	for i := range endings {
		conn, err := c.Lab.A.Dial("tcp", c.At(1, 80), from(port+uint16(i)))
		c.NoError(err)
		c.Cleanup(func() { conn.Close() })
		c.NoError(conn.SetDeadline(time.Now().Add(c.Patience.For(limit))))
		out = append(out, conn.(*net.TCPConn))
	}
	return out
}

// end ends each in its way, and waits until the client's host lets their ports be taken again.
func (c *C) end(connections []*net.TCPConn) {
	for i, t := range connections {
		c.NoError(endings[i].end(t), endings[i].name)
	}
	time.Sleep(lab.PortReuseDelay)
}

// askAgain opens connections from the ports of those that have ended. Endpoint 1 is to answer.
func (c *C) askAgain(port uint16, when string) {
	c.NoError(c.Lab.Nodes[0].Mute(true))
	for i, e := range endings {
		answer, err := c.Lab.A.Ask("tcp", c.At(1, 80), from(port+uint16(i)))
		if err != nil {
			c.Errorf("a new connection between the ports of one that has ended (%s, %s): %v", e.name, when, err)
			continue
		}
		c.Equal(1, c.Number(answer.Endpoint), "%s, %s", e.name, when)
	}
	c.NoError(c.Lab.Nodes[0].Mute(false))
}

// halfClosedGoesOn has a client end its half of a connection to endpoint 1, and receive until long after that has left the pool.
func (c *C) halfClosedGoesOn() {
	frontend := c.Frontend(model.TCP, 1, 80, 30080, "all")
	frontend.Forwarding = model.Direct
	received := make(chan error, 1)
	go func() { received <- c.Lab.A.Trickle(c.At(1, 80), 10*time.Second) }()
	time.Sleep(c.Patience.For(time.Second))
	c.Apply([]model.Pool{c.Pool("all", 2)}, frontend)
	c.NoError(<-received, "a connection of which the client has ended its half")
}
