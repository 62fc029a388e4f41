package probe

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
)

// fleet are targets that answer as a test says, in a time that passes at once.
type fleet struct {
	t       *testing.T
	found   map[translate.Target]chan translate.Health
	mu      sync.Mutex // guards behaves
	behaves map[translate.Target]behaviour
	// tells is what a target says at a time; weight 1 if it is not there.
	tells map[translate.Target]func(now time.Time) translate.Health
}

// behaviour is how long a target takes for its nth answer; longer than the timeout is none.
type behaviour func(nth int) time.Duration

func prompt(int) time.Duration { return 2 * time.Millisecond }

func silent(int) time.Duration { return time.Hour }

// hangs answers promptly, hangs once, and so on.
func hangs(nth int) time.Duration {
	if nth%2 == 1 {
		return time.Hour
	}
	return time.Millisecond
}

func targetOf(tenant string, n int) translate.Target {
	return translate.Target{Tenant: tenant, Address: netip.AddrFrom4([4]byte{10, tenant[0], byte(n >> 8), byte(n)}), Kind: translate.CheckLocal, Port: 30000}
}

// run has the prober check the fleet while the test goes on.
func (f *fleet) run(test func()) {
	config := DefaultConfig()
	ctx, cancel := context.WithCancel(f.t.Context())
	f.found = map[translate.Target]chan translate.Health{}
	prober := New(config, func(r Result) { f.found[r.Target] <- r.Health })
	done, ended, times := make(chan outcome, 1<<16), make(chan struct{}), map[translate.Target]int{}
	for target := range f.behaves {
		f.found[target] = make(chan translate.Health, 1<<12)
		prober.Watch(target)
	}
	go func() {
		defer close(ended)
		prober.schedule(ctx, done, func(j *job) {
			takes := f.behaviour(j.target)(times[j.target])
			times[j.target]++
			go func() {
				o := outcome{job: j, health: translate.Health{Weight: 1}, took: min(takes, config.Timeout)}
				time.Sleep(o.took)
				if tell := f.tells[j.target]; tell != nil {
					o.health = tell(time.Now())
				}
				if takes > config.Timeout {
					o.health, o.err = translate.Health{}, errors.New("timeout")
				}
				done <- o
			}()
		})
	}()
	test()
	cancel()
	<-ended
	time.Sleep(time.Minute)
}

func (f *fleet) behaviour(target translate.Target) behaviour {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.behaves[target]
}

func (f *fleet) behave(target translate.Target, b behaviour) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.behaves[target] = b
}

// dies has a target be silent, and returns how long it takes until that is found.
func (f *fleet) dies(target translate.Target) time.Duration {
	began := time.Now()
	f.behave(target, silent)
	for health := range f.found[target] {
		if health.State == model.Unhealthy {
			break
		}
	}
	took := time.Since(began)
	f.behave(target, prompt)
	for health := range f.found[target] {
		if health.State == model.Active {
			break
		}
	}
	return took
}

// slowest is the 99th percentile.
func slowest(times []time.Duration) time.Duration {
	slices.Sort(times)
	return times[len(times)*99/100]
}

// finding is how long it takes to find a dead node of a tenant with 50 nodes beside another tenant.
func finding(t *testing.T, nodes int, other behaviour) (p99 time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{t: t, behaves: map[translate.Target]behaviour{}}
		for n := range 50 {
			f.behaves[targetOf("good", n)] = prompt
		}
		for n := range nodes {
			f.behaves[targetOf("hostile", n)] = other
		}
		random, times := rand.New(rand.NewPCG(1, 2)), []time.Duration{}
		f.run(func() {
			time.Sleep(20 * time.Second)
			for range 40 {
				time.Sleep(time.Duration(random.Int64N(int64(3 * time.Second))))
				times = append(times, f.dies(targetOf("good", random.IntN(50))))
			}
		})
		p99 = slowest(times)
	})
	return p99
}

// A tenant has its share of the checks that there may be at once, and no more, whatever its targets do.
func TestADeadNodeIsFoundAsSoonBesideAHostileTenant(t *testing.T) {
	without := finding(t, 0, nil)
	require.Less(t, without, 3*time.Second)
	for name, behaves := range map[string]behaviour{"hang in turn": hangs, "are silent": silent, "are late": func(int) time.Duration { return 790 * time.Millisecond },
		"are late in turn": func(nth int) time.Duration { return time.Duration(nth%3) * 399 * time.Millisecond }} {
		t.Run(name, func(t *testing.T) {
			with := finding(t, 2000, behaves)
			t.Logf("a dead node is found after %s at the 99th percentile, and %s beside 2000 targets that %s", without, with, name)
			require.LessOrEqual(t, with, without*3/2)
		})
	}
}

// Half of a tenant's nodes die at once, as with their rack.
func TestManyNodesThatDieAtOnceAreAllFoundWithinFiveSeconds(t *testing.T) {
	for tenants, nodes := range map[string]int{"a": 1000, "abcdefghijklmnopqrst": 100} {
		synctest.Test(t, func(t *testing.T) {
			f := &fleet{t: t, behaves: map[translate.Target]behaviour{}}
			for _, tenant := range tenants {
				for n := range nodes {
					f.behaves[targetOf(string(tenant), n)] = prompt
				}
			}
			f.run(func() {
				time.Sleep(10 * time.Second)
				began := time.Now()
				for n := range nodes / 2 {
					f.behave(targetOf("a", n), silent)
				}
				for n := range nodes / 2 {
					for health := range f.found[targetOf("a", n)] {
						if health.State == model.Unhealthy {
							break
						}
					}
				}
				require.Less(t, time.Since(began), 5*time.Second, "%d of %d nodes, %d tenants", nodes/2, nodes, len(tenants))
			})
		})
	}
}

// However many tenants come and go there are no more checks at once than there may be, and each tenant has its own.
func TestSlotsAreSharedByTenantsAndNeverLost(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	l := newLanes(32)
	lane, now := l.prompt, time.Now()
	var checked, waiting []*job
	for range 5_000 {
		switch random.IntN(4) {
		case 0, 1:
			j := &job{target: targetOf(string(rune('a'+random.IntN(8))), random.IntN(1000)), due: now}
			lane.add(j)
			waiting = append(waiting, j)
		case 2:
			if n := len(checked); n > 0 {
				i := random.IntN(n)
				lane.end(checked[i])
				checked = slices.Delete(checked, i, i+1)
			}
		case 3:
			if n := len(waiting); n > 0 {
				i := random.IntN(n)
				lane.forget(waiting[i])
				waiting = slices.Delete(waiting, i, i+1)
			}
		}
		lane.begin(now, func(j *job) {
			require.False(t, j.gone)
			checked = append(checked, j)
			waiting = slices.DeleteFunc(waiting, func(w *job) bool { return w == j })
		})
		require.LessOrEqual(t, len(checked), 32)
		has := map[string]int{}
		for _, j := range checked {
			has[j.target.Tenant]++
		}
		for _, j := range waiting {
			require.GreaterOrEqual(t, has[j.target.Tenant], lane.guarantee(), "a tenant waits that has not what is its own")
		}
	}
	for _, j := range waiting {
		lane.forget(j)
	}
	for len(checked) > 0 {
		lane.end(checked[0])
		checked = checked[1:]
		lane.begin(now, func(j *job) { checked = append(checked, j) })
	}
	require.Empty(t, lane.shares)
	require.Empty(t, lane.turn)
	require.Zero(t, lane.beyond)
}
