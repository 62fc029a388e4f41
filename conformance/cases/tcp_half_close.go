package cases

import (
	"time"

	"kubelb.k8c.io/core/model"
)

func tcpHalfClose() Case {
	return Case{
		Name:  "tcp-half-close",
		Shows: "a client that has closed its half of a connection receives to the last byte, also seconds later",
		Run: func(c *C) {
			c.Serve(30080)
			c.Apply([]model.Pool{c.Pool("one", 0)}, c.Frontend(model.TCP, 1, 80, 30080, "one"))
			c.NoError(c.Lab.A.UploadAndWait(c.At(1, 80), 1<<20, 2*time.Second))
		},
	}
}
