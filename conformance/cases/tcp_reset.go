package cases

import (
	"net"

	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func tcpReset() Case {
	return Case{
		Name:  "tcp-reset",
		Shows: "a reset by either end reaches the other end; a new connection from the freed port meets an endpoint of the pool",
		Run: func(c *C) {
			server := c.ServeOn(0, 30080)
			c.Apply([]model.Pool{c.Pool("one", 0)}, c.Frontend(model.TCP, 1, 80, 30080, "one"))
			c.NoError(c.Lab.A.RequestReset(c.At(1, 80)))
			stream, err := c.Lab.A.Stream(c.At(1, 80), lab.From{})
			c.NoError(err)
			c.NoError(stream.Conn.(*net.TCPConn).SetLinger(0))
			c.NoError(stream.Close())
			c.Eventually(func() bool { return server.Open() == 0 }, "the client's reset has not reached the server")

			c.ServeOn(1, 30080)
			c.Apply([]model.Pool{c.Pool("one", 1)}, c.Frontend(model.TCP, 1, 80, 30080, "one"))
			freed := stream.Conn.LocalAddr().(*net.TCPAddr).AddrPort()
			answer, err := c.Lab.A.Request("tcp", c.At(1, 80), lab.From{Address: freed.Addr().Unmap(), Port: freed.Port()})
			c.NoError(err)
			c.Equal(1, c.Number(answer.Endpoint))
		},
	}
}
