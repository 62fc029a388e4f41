package cases

import (
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func tcpEcho() Case {
	return Case{
		Name:  "tcp-echo",
		Shows: "a TCP connection from either client reaches the frontend's endpoint at its target port, and bytes come back",
		Run: func(c *C) {
			c.Serve(30080)
			c.Apply([]model.Pool{c.Pool("one", 1)}, c.Frontend(model.TCP, 1, 80, 30080, "one"))
			for _, client := range []*lab.Host{c.Lab.A, c.Lab.B} {
				answer, err := client.Request("tcp", c.At(1, 80), lab.From{})
				c.NoError(err)
				c.Equal(1, c.Number(answer.Endpoint))
				stream, err := client.Stream(c.At(1, 80), lab.From{})
				c.NoError(err)
				for range 100 {
					c.NoError(stream.Alive())
				}
				c.NoError(stream.Close())
			}
		},
	}
}
