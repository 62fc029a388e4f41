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
		Shows: "a client that reuses a port meets an endpoint of the pool, however and whenever its former connection from that port ended, if the former endpoint has left",
		Run:   func(c *C) { c.portsAgain(model.NAT) },
	}
}

func portsAgainTransparent() Case {
	return Case{
		Name:  "ports-again-transparent",
		Shows: "like ports-again, for a transparent frontend",
		Needs: []dataplane.Feature{dataplane.Transparent},
		Run: func(c *C) {
			c.NoError(c.Lab.RouteNodesVia(0))
			c.portsAgain(model.Transparent)
		},
	}
}

func portsAgainDirect() Case {
	return Case{
		Name:  "ports-again-direct",
		Shows: "like ports-again, for a direct frontend, of whose connections the gateway sees only the client's packets; a connection continues after the client has closed its half",
		Needs: []dataplane.Feature{dataplane.Direct},
		Run: func(c *C) {
			c.NoError(c.Lab.ServeVIPOnNodes(c.At(1, 80), 30080))
			c.portsAgain(model.Direct)
			c.requireHalfClosedContinues()
		},
	}
}

// ending is a way in which a connection ends.
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
			return fmt.Errorf("the server did not reset the connection: %w", err)
		}
		return t.Close()
	}},
	{"the client vanished", func(t *net.TCPConn) error { return (&lab.Stream{Conn: t}).Vanish() }},
}

// portsAgain ends connections before and after their endpoint leaves the pool, and then reuses their ports. The endpoint's
// node drops packets meanwhile.
func (c *C) portsAgain(mode model.Forwarding) {
	c.Serve(30080)
	frontend := c.Frontend(model.TCP, 1, 80, 30080, "all")
	frontend.Forwarding = mode
	c.NoError(c.Lab.A.AllowPortReuse())
	const before, later = 21300, 21400
	c.Apply([]model.Pool{c.Pool("all", 0)}, frontend)
	early, late := c.openConnections(before), c.openConnections(later)
	c.endConnections(early)
	c.Apply([]model.Pool{c.Pool("all", 1)}, frontend)
	c.reusePorts(before, "before its endpoint left")
	c.endConnections(late)
	c.reusePorts(later, "after its endpoint had left")
}

// openConnections opens one connection for each ending, from consecutive ports.
func (c *C) openConnections(port uint16) (out []*net.TCPConn) {
	for i := range endings {
		conn, err := c.Lab.A.Dial("tcp", c.At(1, 80), from(port+uint16(i)))
		c.NoError(err)
		c.Cleanup(func() { conn.Close() })
		c.NoError(conn.SetDeadline(time.Now().Add(c.Patience.For(limit))))
		out = append(out, conn.(*net.TCPConn))
	}
	return out
}

// endConnections ends each connection in the way of its ending, and waits until the client's host can reuse their ports.
func (c *C) endConnections(connections []*net.TCPConn) {
	for i, t := range connections {
		c.NoError(endings[i].end(t), endings[i].name)
	}
	time.Sleep(lab.PortReuseDelay)
}

// reusePorts opens connections from the ports of ended ones, and requires that endpoint 1 answers.
func (c *C) reusePorts(port uint16, when string) {
	c.NoError(c.Lab.Nodes[0].DropIncoming(true))
	for i, e := range endings {
		answer, err := c.Lab.A.Request("tcp", c.At(1, 80), from(port+uint16(i)))
		if err != nil {
			c.Errorf("a new connection from the port of an ended one (%s, %s): %v", e.name, when, err)
			continue
		}
		c.Equal(1, c.Number(answer.Endpoint), "%s, %s", e.name, when)
	}
	c.NoError(c.Lab.Nodes[0].DropIncoming(false))
}

// requireHalfClosedContinues requires that a client that has closed its half of a connection to endpoint 1 receives until long after
// the endpoint has left the pool.
func (c *C) requireHalfClosedContinues() {
	frontend := c.Frontend(model.TCP, 1, 80, 30080, "all")
	frontend.Forwarding = model.Direct
	received := make(chan error, 1)
	go func() { received <- c.Lab.A.Trickle(c.At(1, 80), 10*time.Second) }()
	time.Sleep(c.Patience.For(time.Second))
	c.Apply([]model.Pool{c.Pool("all", 2)}, frontend)
	c.NoError(<-received, "a connection whose client has closed its half")
}
