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

// simulation is a set of targets with scripted answers, in synthetic time.
type simulation struct {
	t          *testing.T
	reports    map[translate.Target]chan translate.Health
	mu         sync.Mutex // guards behaviours
	behaviours map[translate.Target]behaviour
	// healthAt returns a target's answer at a time. Without an entry the answer is weight 1.
	healthAt map[translate.Target]func(now time.Time) translate.Health
}

// behaviour returns how long a target takes for its nth answer. Beyond the timeout there is no answer.
type behaviour func(nth int) time.Duration

func prompt(int) time.Duration { return 2 * time.Millisecond }

func silent(int) time.Duration { return time.Hour }

// hangs answers promptly and does not answer in turn.
func hangs(nth int) time.Duration {
	if nth%2 == 1 {
		return time.Hour
	}
	return time.Millisecond
}

func targetOf(tenant string, n int) translate.Target {
	return translate.Target{Tenant: tenant, Address: netip.AddrFrom4([4]byte{10, tenant[0], byte(n >> 8), byte(n)}), Kind: translate.CheckLocal, Port: 30000}
}

// run checks the targets while test runs.
func (s *simulation) run(test func()) {
	config := DefaultConfig()
	ctx, cancel := context.WithCancel(s.t.Context())
	s.reports = map[translate.Target]chan translate.Health{}
	prober := New(config, func(r Result) { s.reports[r.Target] <- r.Health })
	done, ended, times := make(chan outcome, 1<<16), make(chan struct{}), map[translate.Target]int{}
	for target := range s.behaviours {
		s.reports[target] = make(chan translate.Health, 1<<12)
		prober.Add(target)
	}
	go func() {
		defer close(ended)
		prober.schedule(ctx, done, func(j *job) {
			takes := s.behaviour(j.target)(times[j.target])
			times[j.target]++
			go func() {
				o := outcome{job: j, health: translate.Health{Weight: 1}, took: min(takes, config.Timeout)}
				time.Sleep(o.took)
				if healthAt := s.healthAt[j.target]; healthAt != nil {
					o.health = healthAt(time.Now())
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

func (s *simulation) behaviour(target translate.Target) behaviour {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.behaviours[target]
}

func (s *simulation) setBehaviour(target translate.Target, b behaviour) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.behaviours[target] = b
}

// timeToDetect makes a target silent, and returns how long it takes until the prober reports it. Then it makes the target healthy again.
func (s *simulation) timeToDetect(target translate.Target) time.Duration {
	began := time.Now()
	s.setBehaviour(target, silent)
	for health := range s.reports[target] {
		if health.State == model.Unhealthy {
			break
		}
	}
	took := time.Since(began)
	s.setBehaviour(target, prompt)
	for health := range s.reports[target] {
		if health.State == model.Active {
			break
		}
	}
	return took
}

// percentile99 returns the 99th percentile.
func percentile99(times []time.Duration) time.Duration {
	slices.Sort(times)
	return times[len(times)*99/100]
}

// detectionTime returns the time to detect a dead node of a tenant with 50 nodes, while another tenant has nodes of the given behaviour.
func detectionTime(t *testing.T, nodes int, other behaviour) (p99 time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		s := &simulation{t: t, behaviours: map[translate.Target]behaviour{}}
		for n := range 50 {
			s.behaviours[targetOf("good", n)] = prompt
		}
		for n := range nodes {
			s.behaviours[targetOf("hostile", n)] = other
		}
		random, times := rand.New(rand.NewPCG(1, 2)), []time.Duration{}
		s.run(func() {
			time.Sleep(20 * time.Second)
			for range 40 {
				time.Sleep(time.Duration(random.Int64N(int64(3 * time.Second))))
				times = append(times, s.timeToDetect(targetOf("good", random.IntN(50))))
			}
		})
		p99 = percentile99(times)
	})
	return p99
}

// A tenant cannot take the check slots of others, whatever its targets do.
func TestAHostileTenantDoesNotDelayTheDetectionOfDeadNodes(t *testing.T) {
	without := detectionTime(t, 0, nil)
	require.Less(t, without, 3*time.Second)
	for name, behaves := range map[string]behaviour{"hang in turn": hangs, "are silent": silent, "are late": func(int) time.Duration { return 790 * time.Millisecond },
		"are late in turn": func(nth int) time.Duration { return time.Duration(nth%3) * 399 * time.Millisecond }} {
		t.Run(name, func(t *testing.T) {
			with := detectionTime(t, 2000, behaves)
			t.Logf("time to detect a dead node, 99th percentile: %s; with 2000 targets that %[3]s: %[2]s", without, with, name)
			require.LessOrEqual(t, with, without*3/2)
		})
	}
}

// Half of a tenant's nodes die at once, as with their rack.
func TestManyNodesThatDieAtOnceAreAllDetectedWithinFiveSeconds(t *testing.T) {
	for tenants, nodes := range map[string]int{"a": 1000, "abcdefghijklmnopqrst": 100} {
		synctest.Test(t, func(t *testing.T) {
			s := &simulation{t: t, behaviours: map[translate.Target]behaviour{}}
			for _, tenant := range tenants {
				for n := range nodes {
					s.behaviours[targetOf(string(tenant), n)] = prompt
				}
			}
			s.run(func() {
				time.Sleep(10 * time.Second)
				began := time.Now()
				for n := range nodes / 2 {
					s.setBehaviour(targetOf("a", n), silent)
				}
				for n := range nodes / 2 {
					for health := range s.reports[targetOf("a", n)] {
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

// However many tenants come and go, the limit of checks holds, and each tenant has its guaranteed slots.
func TestTenantsShareCheckSlotsAndNoSlotIsLost(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	l := newQueues(32)
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
				lane.finish(checked[i])
				checked = slices.Delete(checked, i, i+1)
			}
		case 3:
			if n := len(waiting); n > 0 {
				i := random.IntN(n)
				lane.cancel(waiting[i])
				waiting = slices.Delete(waiting, i, i+1)
			}
		}
		lane.start(now, func(j *job) {
			require.False(t, j.removed)
			checked = append(checked, j)
			waiting = slices.DeleteFunc(waiting, func(w *job) bool { return w == j })
		})
		require.LessOrEqual(t, len(checked), 32)
		has := map[string]int{}
		for _, j := range checked {
			has[j.target.Tenant]++
		}
		for _, j := range waiting {
			require.GreaterOrEqual(t, has[j.target.Tenant], lane.guaranteed(), "tenant %s waits with free guaranteed slots", j.target.Tenant)
		}
	}
	for _, j := range waiting {
		lane.cancel(j)
	}
	for len(checked) > 0 {
		lane.finish(checked[0])
		checked = checked[1:]
		lane.start(now, func(j *job) { checked = append(checked, j) })
	}
	require.Empty(t, lane.shares)
	require.Empty(t, lane.ready)
	require.Zero(t, lane.aboveGuarantee)
}
