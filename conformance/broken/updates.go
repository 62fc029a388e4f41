package broken

import (
	"errors"
	"slices"
	"strings"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// inUpdates returns faults in changes of records that are held, and in changes that are unusual.
func inUpdates() []Mutation {
	unusual := func(name string, change func(*memory, *dataplane.Change)) Mutation {
		return Mutation{Name: name, CaughtBy: []string{"unusual-changes"}, change: change}
	}
	return []Mutation{
		{Name: "updates-by-delete-and-add", CaughtBy: []string{"frontend-updates-under-load"}, pause: 50 * time.Millisecond, before: func(former records, c dataplane.Change) (d model.Delta) {
			for _, f := range c.UpsertFrontends {
				if _, had := former.frontends[f.FrontendKey]; had {
					d.DeleteFrontends = append(d.DeleteFrontends, f.FrontendKey)
				}
			}
			return d
		}},
		{Name: "loses-new-connections-for-50-ms-at-each-change", CaughtBy: []string{"frontend-updates-under-load"}, applied: loseSYNs},
		{Name: "empties-pools-for-50-ms-at-each-change", CaughtBy: []string{"frontend-updates-under-load"}, pause: 50 * time.Millisecond,
			before: func(former records, c dataplane.Change) (d model.Delta) {
				for _, f := range c.UpsertFrontends {
					if p, had := former.pools[f.Pool]; had {
						d.UpsertPools = append(d.UpsertPools, model.Pool{ID: p.ID, Tenant: p.Tenant})
					}
				}
				return d
			}, change: restorePools},
		unusual("deletes-both-protocols-of-a-port", func(m *memory, c *dataplane.Change) {
			for _, key := range slices.Clone(c.DeleteFrontends) {
				key.Protocol = model.TCP + model.UDP - key.Protocol
				if _, held := m.frontends[key]; held {
					c.DeleteFrontends = append(c.DeleteFrontends, key)
				}
			}
		}),
		unusual("deletes-the-pool-of-a-similar-name", func(m *memory, c *dataplane.Change) {
			for _, id := range slices.Clone(c.DeletePools) {
				for held := range m.pools {
					if strings.HasPrefix(string(held), string(id)) {
						c.DeletePools = append(slices.Clip(c.DeletePools), held)
					}
				}
			}
		}),
		unusual("keeps-what-is-upserted-and-deleted", func(_ *memory, c *dataplane.Change) {
			c.DeleteFrontends = slices.DeleteFunc(slices.Clone(c.DeleteFrontends), func(key model.FrontendKey) bool {
				return slices.ContainsFunc(c.UpsertFrontends, func(f model.Frontend) bool { return f.FrontendKey == key })
			})
			c.DeletePools = slices.DeleteFunc(slices.Clone(c.DeletePools), func(id model.PoolID) bool {
				return slices.ContainsFunc(c.UpsertPools, func(p model.Pool) bool { return p.ID == id })
			})
		}),
		unusual("the-first-upsert-of-a-frontend-counts", func(_ *memory, c *dataplane.Change) { slices.Reverse(c.UpsertFrontends) }),
		unusual("the-first-upsert-of-a-pool-counts", func(_ *memory, c *dataplane.Change) { slices.Reverse(c.UpsertPools) }),
		{Name: "fails-at-deletes-of-absent-records", CaughtBy: []string{"unusual-changes"}, refuse: func(m records, c dataplane.Change) error {
			for _, key := range c.DeleteFrontends {
				if _, held := m.frontends[key]; !held {
					return errors.New("no such frontend")
				}
			}
			return nil
		}},
		{Name: "fails-at-deletes-of-absent-pools", CaughtBy: []string{"unusual-changes"}, refuse: func(m records, c dataplane.Change) error {
			for _, id := range c.DeletePools {
				if _, held := m.pools[id]; !held {
					return errors.New("no such pool")
				}
			}
			return nil
		}},
	}
}

// loseSYNs drops SYNs for 50 ms.
func loseSYNs(*memory) error {
	err := nft("add table inet gap; add chain inet gap in { type filter hook prerouting priority -450; }; add rule inet gap in tcp flags & (syn | ack) == syn drop")
	time.Sleep(50 * time.Millisecond)
	return errors.Join(err, nft("delete table inet gap"))
}

// restorePools adds the pools of changed frontends to the change.
func restorePools(m *memory, c *dataplane.Change) {
	for _, f := range c.UpsertFrontends {
		p, had := m.pools[f.Pool]
		if had && !slices.ContainsFunc(c.UpsertPools, func(o model.Pool) bool { return o.ID == p.ID }) {
			c.UpsertPools = append(c.UpsertPools, p)
		}
	}
}
