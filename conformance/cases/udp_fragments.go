package cases

import (
	"bytes"
	"io"
	"time"

	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func udpFragments() Case {
	return Case{
		Name:  "udp-fragments",
		Shows: "datagrams of all sizes, fragmented ones included, arrive unharmed in both directions",
		Run: func(c *C) {
			c.Serve(30053)
			c.Apply([]model.Pool{c.Pool("all", 0, 1, 2, 3)}, c.Frontend(model.UDP, 1, 53, 30053, "all"))
			flow, err := c.Lab.A.Dial("udp", c.At(1, 53), lab.From{})
			c.NoError(err)
			c.Cleanup(func() { flow.Close() })
			buffer := make([]byte, 1<<16)
			for _, size := range []int{1, 512, 1452, 1472, 1473, 3000, 9000, 40000, 60000} {
				sent := make([]byte, size)
				_, err := io.ReadFull(&lab.Pattern{}, sent)
				c.NoError(err)
				c.NoError(flow.SetDeadline(time.Now().Add(c.Patience.For(2 * time.Second))))
				_, err = flow.Write(sent)
				c.NoError(err)
				n, err := flow.Read(buffer)
				c.NoError(err, "%d bytes", size)
				c.True(bytes.Equal(sent, buffer[:n]), "%d bytes were sent, %d different bytes came back", size, n)
			}
		},
	}
}
