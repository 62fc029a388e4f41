package cases

import (
	"fmt"
	"math/rand/v2"
	"time"

	"kubelb.k8c.io/core/model"
)

func applied() Case {
	return Case{
		Name:  "applied",
		Shows: "what the backend says that it holds is what it serves, record by record: after refused records, and after it was killed during a change",
		Run: func(c *C) {
			c.Serve(30080)
			before, after := c.movingFrontends(0), c.movingFrontends(1)
			g := c.Gateway
			// Half of the frontends exist, and move to another pool; the others are new.
			first := before
			first.Frontends = before.Frontends[:moving/2]
			g.Apply(first)
			c.requireServedAsApplied(first, after)

			bad := after
			bad.Frontends = append([]model.Frontend{}, after.Frontends...)
			for i := 0; i < moving; i += 3 {
				bad.Frontends[i].Pool = c.PoolID(tenant, "missing")
			}
			result, _, err := g.TryApply(bad)
			c.NoError(err)
			c.Len(result.Failed, (moving+2)/3)
			c.requireServedAsApplied(first, after)

			for range 3 {
				g.Apply(first)
				killed := make(chan error, 1)
				process := g.Process
				time.AfterFunc(time.Duration(rand.Int64N(int64(c.Patience.For(killWithin)))), func() { killed <- process.Kill() })
				_, _, _ = g.TryApply(after)
				c.NoError(<-killed)
				g.Start()
				c.requireServedAsApplied(first, after)
			}
			g.Apply(after)
			c.Equal(moving, c.requireServedAsApplied(first, after))
		},
	}
}

// moving is the number of frontends of the case applied, killWithin the time in which a change of them is interrupted.
const (
	moving     = 24
	killWithin = 40 * time.Millisecond
)

// movingFrontends returns frontends whose pool has one endpoint.
func (c *C) movingFrontends(endpoint int) model.Snapshot {
	out := model.Snapshot{Pools: []model.Pool{c.Pool("pool0", 0), c.Pool("pool1", 1)}}
	for i := range moving {
		protocol := []model.Protocol{model.TCP, model.UDP}[i%2]
		out.Frontends = append(out.Frontends, c.Frontend(protocol, 1+i%3, uint16(1000+i), 30080, fmt.Sprint("pool", endpoint)))
	}
	return out
}

// requireServedAsApplied requires that each frontend is served by the pool of the record that the backend says that it holds, and is not served if it
// holds none. Of a record in an unknown state it requires nothing: the next change sends it. It returns how many frontends are of the later snapshot.
func (c *C) requireServedAsApplied(former, later model.Snapshot) (moved int) {
	held, err := c.Gateway.Process.Applied(c.ctx)
	c.NoError(err)
	old, new := former.Digests(), later.Digests()
	for _, f := range later.Frontends {
		digest, isHeld := held.Frontends[f.FrontendKey]
		answer, err := c.Lab.A.Request(networkOf(f), addressOf(f), from(0))
		switch {
		case isHeld && digest == "": // in an unknown state
		case !isHeld:
			c.Error(err, "%s is served, and Applied does not have it", f.FrontendKey)
		case digest == new.Frontends[f.FrontendKey]:
			c.NoError(err, "%s, of which Applied says that it moved", f.FrontendKey)
			c.Equal(1, c.Number(answer.Endpoint), "%s, of which Applied says that it moved", f.FrontendKey)
			moved++
		default:
			c.Equal(old.Frontends[f.FrontendKey], digest, "%s is neither old nor new", f.FrontendKey)
			c.NoError(err, "%s, of which Applied says that it has not moved", f.FrontendKey)
			c.Equal(0, c.Number(answer.Endpoint), "%s, of which Applied says that it has not moved", f.FrontendKey)
		}
	}
	return moved
}
