package cases

import (
	"bytes"
	"io"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func directPath() Case {
	return Case{
		Name:  "direct-path",
		Shows: "large datagrams reach the endpoint of a direct frontend unharmed, and so do ICMP errors that say that a packet is too large for the path to the client",
		Needs: []dataplane.Feature{dataplane.Direct, dataplane.PathMTU},
		Run: func(c *C) {
			pools, frontends := c.directFrontends()
			c.Apply(pools, frontends...)
			flow, err := c.Lab.A.Dial("udp", c.At(1, 80), lab.From{})
			c.NoError(err)
			c.Cleanup(func() { flow.Close() })
			sent, buffer := make([]byte, 9000), make([]byte, 1<<16)
			_, err = io.ReadFull(&lab.Pattern{}, sent)
			c.NoError(err)
			c.NoError(flow.SetDeadline(time.Now().Add(c.Patience.For(2 * time.Second))))
			_, err = flow.Write(sent)
			c.NoError(err)
			n, err := flow.Read(buffer)
			c.NoError(err)
			c.True(bytes.Equal(sent, buffer[:n]), "9000 bytes were sent, %d different bytes came back", n)

			c.NoError(c.Lab.NarrowPathToB(1300))
			for range 8 {
				c.NoError(c.Lab.B.Transfer(c.At(1, 80), 1<<20))
			}
			c.Apply([]model.Pool{c.Pool("all", 2)}, frontends...)
			c.NoError(c.Lab.B.Transfer(c.At(2, 80), 1<<20))
		},
	}
}
