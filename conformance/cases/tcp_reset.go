package cases

import (
	"net"

	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func tcpReset() Case {
	return Case{
		Name:  "tcp-reset",
		Shows: "a reset by either end reaches the other one",
		Run: func(c *C) {
			server := c.ServeOn(0, 30080)
			c.Apply([]model.Pool{c.Pool("one", 0)}, c.Frontend(model.TCP, 1, 80, 30080, "one"))
			c.NoError(c.Lab.A.AskForReset(c.At(1, 80)))
			stream, err := c.Lab.A.Stream(c.At(1, 80), lab.From{})
			c.NoError(err)
			c.NoError(stream.Conn.(*net.TCPConn).SetLinger(0))
			c.NoError(stream.Close())
			c.Eventually(func() bool { return server.Open() == 0 }, "the server has not seen the client's reset")
		},
	}
}
