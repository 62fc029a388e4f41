package corecheck

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"kubelb.k8c.io/core/explain"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
)

func TestEachOutputIsValid(t *testing.T) {
	rapid.Check(t, outputIsValid)
}

func outputIsValid(t *rapid.T) {
	in := inputs().Draw(t, "in")
	out, err := explain.Explain(in)
	require.NoError(t, err)
	require.Empty(t, violations(in, out))
}

func TestTheOrderOfTheInputDoesNotMatter(t *testing.T) {
	rapid.Check(t, orderDoesNotMatter)
}

func orderDoesNotMatter(t *rapid.T) {
	in := inputs().Draw(t, "in")
	random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
	_, first, err := answer(in)
	require.NoError(t, err)
	_, second, err := answer(shuffled(in, random))
	require.NoError(t, err)
	require.Equal(t, first, second)
}

// shuffled shuffles all lists whose order has no meaning. The order of address pools is their age, and the order of ports in an
// object has a meaning too.
func shuffled(in explain.Input, random *rand.Rand) explain.Input {
	out := in
	out.Clusters = shuffle(in.Clusters, random)
	for i := range out.Clusters {
		c := &out.Clusters[i]
		c.Services, c.Nodes = shuffle(c.Services, random), shuffle(c.Nodes, random)
		c.EndpointSlices = shuffle(c.EndpointSlices, random)
		for j := range c.Nodes {
			c.Nodes[j].Addresses = shuffle(c.Nodes[j].Addresses, random)
		}
	}
	out.Tenants, out.Forbidden = shuffle(in.Tenants, random), shuffle(in.Forbidden, random)
	out.Addresses, out.LoadBalancers, out.Health = shuffle(in.Addresses, random), shuffle(in.LoadBalancers, random), shuffle(in.Health, random)
	return out
}

func shuffle[T any](list []T, random *rand.Rand) []T {
	out := slices.Clone(list)
	random.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

func TestTranslatingTwiceChangesNothing(t *testing.T) {
	rapid.Check(t, twiceChangesNothing)
}

func twiceChangesNothing(t *rapid.T) {
	in := inputs().Draw(t, "in")
	first, err := explain.Explain(in)
	require.NoError(t, err)
	second, err := explain.Explain(withOutput(in, first))
	require.NoError(t, err)
	require.Equal(t, first.Text, second.Text)
	require.Equal(t, first.LoadBalancers, second.LoadBalancers)
}

// One LoadBalancer changes while none waits for an address: only its own frontends and endpoint pools change.
func TestAChangeOfOneLoadBalancerChangesOnlyItsRecords(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := inputs().Draw(t, "in")
		first, err := explain.Explain(in)
		require.NoError(t, err)
		before := withOutput(in, first)
		before.LoadBalancers = satisfied(first)
		first, err = explain.Explain(before)
		require.NoError(t, err)
		before = withOutput(in, first)
		if len(before.LoadBalancers) == 0 {
			return
		}
		i := rapid.IntRange(0, len(before.LoadBalancers)-1).Draw(t, "which")
		changed := loadBalancers().Draw(t, "changed")
		changed.ObjectName = before.LoadBalancers[i].ObjectName
		changed.VIPs, changed.Requested = before.LoadBalancers[i].VIPs, nil
		after := before
		after.LoadBalancers = slices.Clone(before.LoadBalancers)
		after.LoadBalancers[i] = changed
		old, err := explain.Explain(before)
		require.NoError(t, err)
		now, err := explain.Explain(after)
		require.NoError(t, err)
		requireOnlyRecordsOf(t, changed.ObjectName, old.Model, now.Model)
	})
}

// satisfied returns the LoadBalancers that would get no further address: they have all that they request, or are refused.
func satisfied(out explain.Output) []translate.LoadBalancer {
	waits := map[model.ObjectName]bool{}
	for _, p := range out.Problems {
		switch p.Reason {
		case ipam.NoMatchingPool, ipam.PoolExhausted, ipam.AddressInUse, ipam.AddressNotAvailable, translate.ReasonConflict:
			waits[p.ObjectName] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(out.LoadBalancers), func(lb translate.LoadBalancer) bool {
		wouldTakeAnother := lb.FamilyPolicy == ipam.PreferDualStack && len(lb.VIPs) < 2
		return waits[lb.ObjectName] || wouldTakeAnother
	})
}

func requireOnlyRecordsOf(t *rapid.T, name model.ObjectName, old, now model.Snapshot) {
	// A LoadBalancer whose port another one has is refused, and has a pool without a frontend. So the pools of the others count.
	own, others := map[model.PoolID]bool{}, map[model.PoolID]bool{}
	for _, s := range []model.Snapshot{old, now} {
		for _, f := range s.Frontends {
			if f.Owner == name {
				own[f.Pool] = true
			} else {
				others[f.Pool] = true
			}
		}
	}
	owners := map[model.FrontendKey]model.ObjectName{}
	for _, f := range old.Frontends {
		owners[f.FrontendKey] = f.Owner
	}
	d := model.Difference(old.Digests(), now)
	for _, f := range d.UpsertFrontends {
		require.Equal(t, name, f.Owner, "frontend %s changed", f.FrontendKey)
	}
	for _, key := range d.DeleteFrontends {
		require.Equal(t, name, owners[key], "frontend %s was deleted", key)
	}
	for _, p := range d.UpsertPools {
		require.True(t, own[p.ID] || !others[p.ID], "pool %s changed", p.ID)
	}
	for _, id := range d.DeletePools {
		require.True(t, own[id] || !others[id], "pool %s was deleted", id)
	}
}

// In the tenant cluster, a change of one Service changes only its LoadBalancer.
func TestAChangeOfOneServiceChangesOnlyItsLoadBalancer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := clusters().Draw(t, "cluster")
		if len(c.Services) == 0 {
			return
		}
		changed := c
		changed.Services = slices.Clone(c.Services)
		i := rapid.IntRange(0, len(c.Services)-1).Draw(t, "which")
		s := services().Draw(t, "changed")
		s.Name, s.UID = c.Services[i].Name, c.Services[i].UID
		changed.Services[i] = s
		old, err := explain.Explain(explain.Input{Version: explain.Version, Clusters: []explain.Cluster{c}})
		require.NoError(t, err)
		now, err := explain.Explain(explain.Input{Version: explain.Version, Clusters: []explain.Cluster{changed}})
		require.NoError(t, err)
		others := func(list []translate.LoadBalancer) []translate.LoadBalancer {
			return slices.DeleteFunc(slices.Clone(list), func(lb translate.LoadBalancer) bool { return lb.Name == s.UID })
		}
		require.Equal(t, append([]translate.LoadBalancer{}, others(old.LoadBalancers)...), append([]translate.LoadBalancer{}, others(now.LoadBalancers)...))
		require.Equal(t, old.Addresses, now.Addresses)
	})
}

// incrementalHub is a Translator that gets one event at a time, with all objects that it got and the sum of its deltas.
type incrementalHub struct {
	hub       *translate.Translator
	filter    translate.TargetFilter
	tenants   map[string]translate.Tenant
	addresses map[model.ObjectName]translate.Addresses
	lbs       map[model.ObjectName]translate.LoadBalancer
	health    map[translate.Target]translate.Health
	sum       model.Digests
	targets   map[translate.Target]bool
}

func newIncrementalHub() *incrementalHub {
	return &incrementalHub{hub: translate.NewTranslator(), tenants: map[string]translate.Tenant{}, addresses: map[model.ObjectName]translate.Addresses{},
		lbs: map[model.ObjectName]translate.LoadBalancer{}, health: map[translate.Target]translate.Health{}, sum: model.NewDigests(), targets: map[translate.Target]bool{}}
}

// addTenants adds two tenants with nodes, so that events affect existing objects.
func (w *incrementalHub) addTenants(t *rapid.T) {
	for _, name := range []string{"a", "b"} {
		namespace := "tenant-" + name
		w.tenants[name] = translate.Tenant{Name: name, BackendCIDRs: prefixes([]string{"198.51.100.0/24", "2001:db8:1::/64"})}
		w.hub.SetTenant(w.tenants[name])
		a := translate.Addresses{ObjectName: model.ObjectName{Namespace: namespace, Name: "default"}, List: targetLists().Draw(t, "list")}
		w.addresses[a.ObjectName] = a
		w.hub.SetAddresses(a)
	}
}

// flush adds the delta to the sum. It fails for deltas that a dataplane would refuse: they name a record that does not exist, or
// leave a frontend without its pool.
func (w *incrementalHub) flush(t *rapid.T) {
	c := w.hub.Flush()
	requireCanonical(t, c)
	for _, p := range c.Model.UpsertPools {
		require.NotEqual(t, w.sum.Pools[p.ID], p.Digest(), "pool %s has not changed", p.ID)
		w.sum.Pools[p.ID] = p.Digest()
	}
	for _, f := range c.Model.UpsertFrontends {
		require.NotEqual(t, w.sum.Frontends[f.FrontendKey], f.Digest(), "frontend %s has not changed", f.FrontendKey)
		require.Contains(t, w.sum.Pools, f.Pool, "frontend %s", f.FrontendKey)
		w.sum.Frontends[f.FrontendKey] = f.Digest()
	}
	for _, key := range c.Model.DeleteFrontends {
		require.Contains(t, w.sum.Frontends, key)
		delete(w.sum.Frontends, key)
	}
	for _, id := range c.Model.DeletePools {
		require.Contains(t, w.sum.Pools, id)
		delete(w.sum.Pools, id)
	}
	for _, target := range c.NewTargets {
		require.False(t, w.targets[target], "target %v exists already", target)
		w.targets[target] = true
	}
	for _, target := range c.GoneTargets {
		require.True(t, w.targets[target], "target %v does not exist", target)
		delete(w.targets, target)
		delete(w.health, target)
	}
}

// requireCanonical requires that the records of a delta are sorted, so that equal deltas are equal bytes.
func requireCanonical(t *rapid.T, c translate.Changes) {
	poolID := func(p model.Pool) model.PoolID { return p.ID }
	key := func(f model.Frontend) model.FrontendKey { return f.FrontendKey }
	require.True(t, ascending(c.Model.UpsertPools, poolID, cmp.Compare[model.PoolID]))
	require.True(t, ascending(c.Model.UpsertFrontends, key, model.FrontendKey.Compare))
	require.True(t, ascending(c.Model.DeleteFrontends, func(k model.FrontendKey) model.FrontendKey { return k }, model.FrontendKey.Compare))
	require.True(t, slices.IsSorted(c.Model.DeletePools))
	require.True(t, slices.IsSortedFunc(c.NewTargets, translate.Target.Compare))
	require.True(t, slices.IsSortedFunc(c.GoneTargets, translate.Target.Compare))
}

func ascending[T, K any](list []T, key func(T) K, compare func(a, b K) int) bool {
	return slices.IsSortedFunc(list, func(a, b T) int { return compare(key(a), key(b)) })
}

// full returns a new Translator that gets all objects at once.
func (w *incrementalHub) full() *translate.Translator {
	h := translate.NewTranslator()
	h.SetTargetFilter(w.filter)
	for _, t := range w.tenants {
		h.SetTenant(t)
	}
	for _, a := range w.addresses {
		h.SetAddresses(a)
	}
	for _, lb := range w.lbs {
		h.SetLoadBalancer(lb)
	}
	h.Flush()
	for target, health := range w.health {
		h.SetHealth(target, health)
	}
	h.Flush()
	return h
}

func (w *incrementalHub) loadBalancer(t *rapid.T) {
	lb := loadBalancers().Draw(t, "lb")
	if oneIn(t, 5, "delete") {
		delete(w.lbs, lb.ObjectName)
		w.hub.DeleteLoadBalancer(lb.ObjectName)
		return
	}
	w.lbs[lb.ObjectName] = lb
	w.hub.SetLoadBalancer(lb)
}

func (w *incrementalHub) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"filter": func(t *rapid.T) {
			w.filter = translate.TargetFilter{Forbidden: forbidden(t)}
			w.hub.SetTargetFilter(w.filter)
		},
		"tenant": func(t *rapid.T) {
			changed := tenants().Draw(t, "tenant")
			if oneIn(t, 5, "delete") {
				delete(w.tenants, changed.Name)
				w.hub.DeleteTenant(changed.Name)
				return
			}
			w.tenants[changed.Name] = changed
			w.hub.SetTenant(changed)
		},
		"addresses": func(t *rapid.T) {
			a := addressesObjects().Draw(t, "addresses")
			if oneIn(t, 5, "delete") {
				delete(w.addresses, a.ObjectName)
				w.hub.DeleteAddresses(a.ObjectName)
				return
			}
			w.addresses[a.ObjectName] = a
			w.hub.SetAddresses(a)
		},
		"load balancer":         w.loadBalancer,
		"another load balancer": w.loadBalancer,
		"health": func(t *rapid.T) {
			if len(w.targets) == 0 {
				return
			}
			target := rapid.SampledFrom(slices.SortedFunc(maps.Keys(w.targets), translate.Target.Compare)).Draw(t, "target")
			if !w.hub.HasTarget(target) {
				return
			}
			health := translate.Health{State: rapid.SampledFrom([]model.EndpointState{model.Active, model.Draining, model.Unhealthy}).Draw(t, "state"), Weight: uint16(rapid.IntRange(0, 3).Draw(t, "weight"))}
			w.health[target] = health
			w.hub.SetHealth(target, health)
		},
		"flush": w.flush,
	}
}

// Single events in any order, with a flush at any time, lead to the same model as all objects at once. The deltas add up to the
// model, and the targets are those of its pools.
func TestIncrementalAndFullTranslationAreEqual(t *testing.T) {
	rapid.Check(t, incrementalEqualsFull)
}

func incrementalEqualsFull(t *rapid.T) {
	w := newIncrementalHub()
	w.addTenants(t)
	t.Repeat(w.actions())
	w.flush(t)
	full := w.full()
	require.Equal(t, full.Snapshot().Text(), w.hub.Snapshot().Text())
	for name := range w.lbs {
		require.Equal(t, full.Problems(name), w.hub.Problems(name), "problems of %s", name)
	}
	require.True(t, model.Difference(w.sum, w.hub.Snapshot()).Empty(), "the deltas do not add up to the model")
	for target := range w.targets {
		require.True(t, full.HasTarget(target), "target %v", target)
	}
}
