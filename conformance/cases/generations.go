package cases

import (
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

func generations() Case {
	return Case{
		Name:      "generations",
		Shows:     "a change whose base is not the held generation is answered with resync and changes nothing; numbers of generations may be skipped",
		OneFamily: true,
		Run: func(c *C) {
			c.Serve(30080)
			c.Apply([]model.Pool{c.Pool("all", 0)}, c.Frontend(model.TCP, 1, 80, 30080, "all"))
			process := c.Gateway.Process
			held, err := process.Applied(c.ctx)
			c.NoError(err)
			at := held.Generation
			later := dataplane.Generation{Epoch: at.Epoch, Number: at.Number + 10}
			wipe := model.Difference(held.Digests, model.Snapshot{})
			for name, base := range map[string]dataplane.Generation{
				"former": {Epoch: at.Epoch, Number: at.Number - 1}, "later": later, "of another epoch": {Epoch: dataplane.NewEpoch(time.Now()), Number: at.Number}, "empty": {},
			} {
				_, err := process.Apply(c.ctx, dataplane.Change{Base: base, Next: later, Delta: wipe})
				c.ErrorIs(err, dataplane.ErrResync, name)
			}
			c.Equal(map[int]int{0: 3}, c.Request(3, "tcp", c.At(1, 80)))
			skip := dataplane.Change{Base: at, Next: later}
			result, err := process.Apply(c.ctx, skip)
			c.NoError(err)
			c.Equal(later, result.Generation)
			_, err = process.Apply(c.ctx, skip)
			c.ErrorIs(err, dataplane.ErrResync, "the same change again")
			held, err = process.Applied(c.ctx)
			c.NoError(err)
			c.Equal(later, held.Generation)
			_, err = process.Apply(c.ctx, dataplane.Change{Base: later, Next: dataplane.Generation{Epoch: dataplane.NewEpoch(time.Now()), Number: 1}, Delta: wipe})
			c.NoError(err)
			_, err = c.Lab.A.Request("tcp", c.At(1, 80), from(0))
			c.Error(err)
		},
	}
}
