package cases

import (
	"sync"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func rateLimits() Case {
	return Case{
		Name: "rate-limits",
		Shows: "a frontend gets as many new connections and UDP flows in a second as its limit, within 12 %, with limits of 25 and of 150 at once; existing connections and other frontends " +
			"are not affected",
		Needs:     []dataplane.Feature{dataplane.RateLimits},
		Exclusive: true,
		Run: func(c *C) {
			servers := c.Serve(30080)
			t := c.limitedFrontends(25, 150)
			other := c.Frontend(model.TCP, 1, 81, 30080, "other")
			c.Apply(append(t.pools, c.Pool("other", 20)), append(t.frontends, other)...)
			existing, err := c.Lab.A.Stream(c.At(1, t.frontends[0].Port), lab.From{})
			c.NoError(err)
			c.Cleanup(func() { existing.Close() })
			t.requireRates(servers)
			c.NoError(existing.Alive())
			c.Equal(300, total(c.Request(300, "tcp", c.At(1, 81))))
			unlimited := t.frontends[0]
			unlimited.MaxNewPerSecond = 0
			c.mustChange(model.Delta{UpsertFrontends: []model.Frontend{unlimited}})
			c.Equal(100, total(c.Request(100, "tcp", c.At(1, unlimited.Port))), "without a limit")
		},
	}
}

// rateTrial has frontends with limits of new flows. The i-th has its own pool, which has the endpoint i.
type rateTrial struct {
	*C
	pools     []model.Pool
	frontends []model.Frontend
}

// limitedFrontends returns a frontend for TCP and one for UDP with each limit.
func (c *C) limitedFrontends(limits ...uint32) *rateTrial {
	t := &rateTrial{C: c}
	for _, limit := range limits {
		for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
			i := len(t.pools)
			name := string(rune('a' + i))
			f := c.Frontend(protocol, 1, uint16(1000+i), 30080, name)
			f.MaxNewPerSecond = limit
			t.pools, t.frontends = append(t.pools, c.Pool(name, i)), append(t.frontends, f)
		}
	}
	return t
}

// requireRates offers each frontend four times what it may get. In the first second it may get more, since it had nothing before.
func (t *rateTrial) requireRates(servers []*lab.Server) {
	const seconds = 4
	stop := make(chan struct{})
	errs := make([]error, len(t.frontends))
	var offers sync.WaitGroup
	for i, f := range t.frontends {
		network := networks[i%2]
		offers.Go(func() {
			errs[i] = t.Lab.A.Offer(network, t.At(1, f.Port), 5000+10000*i, 4*int(f.MaxNewPerSecond), stop)
		})
	}
	served := func() (at time.Time, counts []int) {
		for i := range t.frontends {
			address := lab.EndpointAddress(t.V4, i)
			counts = append(counts, servers[i%lab.Nodes].Counts()[address])
		}
		return time.Now(), counts
	}
	time.Sleep(time.Second)
	begin, before := served()
	time.Sleep(seconds * time.Second)
	end, after := served()
	close(stop)
	offers.Wait()
	for i, f := range t.frontends {
		t.NoError(errs[i])
		want := float64(f.MaxNewPerSecond) * end.Sub(begin).Seconds()
		t.InDelta(want, after[i]-before[i], 0.12*want+2, "new flows of %s in %s, at most %d in a second", f.FrontendKey, end.Sub(begin), f.MaxNewPerSecond)
	}
}

func total(counts map[int]int) (n int) {
	for _, count := range counts {
		n += count
	}
	return n
}
