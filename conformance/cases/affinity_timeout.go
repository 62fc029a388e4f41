package cases

import (
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

func affinityTimeout() Case {
	return Case{
		Name:      "affinity-timeout",
		Shows:     "a client keeps its endpoint while endpoints join the pool, until the timeout has passed without a new flow, or the endpoint is gone",
		Needs:     []dataplane.Feature{dataplane.Affinity, dataplane.AffinityTimeout},
		Exclusive: true,
		Run: func(c *C) {
			c.Serve(30080)
			timeout := c.Patience.For(2 * time.Second)
			sticky := c.stickyFrontends(timeout)
			// The hash of the backend selects an endpoint for the client. The client has to keep another one.
			c.Apply([]model.Pool{c.Pool("all", 0, 1, 2, 3)}, sticky...)
			byHash := c.onlyEndpoint(c.Request(5, "tcp", c.At(1, 80)))
			other := (byHash + 1) % 4
			for _, network := range networks {
				inTime := false
				for range 5 { // a loaded machine may be late
					if inTime = c.requireFlowsRestartTimeout(network, other, timeout, sticky); inTime {
						break
					}
				}
				c.True(inTime, "%s: in no try did all flows begin before the timeout", network)
				time.Sleep(c.Patience.For(3 * time.Second))
				c.NotEqual(other, c.onlyEndpoint(c.Request(5, network, c.At(1, 80))), "%s: the timeout has passed", network)
			}
		},
	}
}

// requireFlowsRestartTimeout requires that a client whose flows begin before the timeout keeps its endpoint for longer
// than the timeout. It returns false if a flow began too late, which shows nothing.
func (c *C) requireFlowsRestartTimeout(network string, endpoint int, timeout time.Duration, sticky []model.Frontend) (inTime bool) {
	time.Sleep(timeout * 3 / 2)
	c.Apply([]model.Pool{c.Pool("all", endpoint)}, sticky...)
	last := time.Now()
	c.Equal(endpoint, c.onlyEndpoint(c.Request(5, network, c.At(1, 80))))
	c.Apply([]model.Pool{c.Pool("all", 0, 1, 2, 3)}, sticky...)
	for range 4 {
		time.Sleep(timeout / 2)
		begin := time.Now()
		met := c.Request(5, network, c.At(1, 80))
		if time.Since(last) >= timeout {
			return false
		}
		c.Equal(endpoint, c.onlyEndpoint(met), "%s: a new flow did not restart the timeout", network)
		last = begin
	}
	return true
}

// stickyFrontends returns a TCP and a UDP frontend with affinity.
func (c *C) stickyFrontends(timeout time.Duration) []model.Frontend {
	var sticky []model.Frontend
	for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
		f := c.Frontend(protocol, 1, 80, 30080, "all")
		f.AffinityTimeout = timeout
		sticky = append(sticky, f)
	}
	return sticky
}
