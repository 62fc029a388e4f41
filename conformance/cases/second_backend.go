package cases

import "kubelb.k8c.io/core/model"

func secondBackend() Case {
	return Case{
		Name:      "second-backend",
		Shows:     "a second process with the same state is refused, and the first one continues to work",
		OneFamily: true,
		Run: func(c *C) {
			c.Serve(30080)
			c.Apply([]model.Pool{c.Pool("all", 0)}, c.Frontend(model.TCP, 1, 80, 30080, "all"))
			second, err := c.Gateway.load(c.backends.Tested)
			c.NoError(err)
			c.Error(c.Gateway.configure(second))
			second.Stop()
			c.Apply([]model.Pool{c.Pool("all", 1)}, c.Frontend(model.TCP, 1, 80, 30080, "all"))
			c.Equal(map[int]int{1: 3}, c.Request(3, "tcp", c.At(1, 80)))
		},
	}
}
