package cases

import "kubelb.k8c.io/core/model"

// transferSize is the number of bytes in each direction.
const transferSize = 512 << 20

func tcpTransfer() Case {
	return Case{
		Name:      "tcp-transfer",
		Shows:     "a gigabyte, half of it in each direction, arrives as it was sent",
		Untraced:  true,
		Exclusive: true,
		Run: func(c *C) {
			c.Serve(30080)
			c.Apply([]model.Pool{c.Pool("one", 0)}, c.Frontend(model.TCP, 1, 80, 30080, "one"))
			c.NoError(c.Lab.A.Transfer(c.At(1, 80), transferSize))
		},
	}
}
