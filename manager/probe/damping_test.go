package probe

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
)

// withChangingTenant checks the targets of tenant "hostile", whose answer changes every second for ten minutes, and one target of tenant "good",
// which changes once.
func withChangingTenant(t *testing.T, targets int, answer func(second int) translate.Health, test func(s *simulation, quiet translate.Target)) {
	synctest.Test(t, func(t *testing.T) {
		s := &simulation{t: t, behaviours: map[translate.Target]behaviour{}, healthAt: map[translate.Target]func(time.Time) translate.Health{}}
		began := time.Now()
		for n := range targets {
			s.behaviours[targetOf("hostile", n)] = prompt
			s.healthAt[targetOf("hostile", n)] = func(now time.Time) translate.Health {
				return answer(int(min(now.Sub(began), 10*time.Minute) / time.Second))
			}
		}
		quiet := targetOf("good", 0)
		s.behaviours[quiet] = prompt
		s.healthAt[quiet] = func(now time.Time) translate.Health {
			return translate.Health{Weight: 1 + uint16(now.Sub(began)/(5*time.Minute))}
		}
		s.run(func() { test(s, quiet) })
	})
}

// reported returns the reports of a target since the last call.
func (s *simulation) reported(target translate.Target) (all []translate.Health) {
	for {
		select {
		case health := <-s.reports[target]:
			all = append(all, health)
		default:
			return all
		}
	}
}

func TestWeightsThatChangeEverySecondAreReportedNowAndThen(t *testing.T) {
	weight := func(second int) translate.Health { return translate.Health{Weight: uint16(second%1000 + 1)} }
	withChangingTenant(t, 200, weight, func(s *simulation, quiet translate.Target) {
		time.Sleep(3 * time.Second)
		require.NotEmpty(t, s.reported(targetOf("hostile", 7)), "the first weight is told at once")
		require.Len(t, s.reported(quiet), 1)
		time.Sleep(5*time.Minute - 2*time.Second)
		require.Equal(t, []translate.Health{{Weight: 2}}, s.reported(quiet), "the other tenant's change is reported at once")
		time.Sleep(4 * time.Minute)
		for n := range 200 {
			require.LessOrEqual(t, len(s.reported(targetOf("hostile", n))), 2*25, "in nine minutes, with 540 changes")
		}
		time.Sleep(2 * time.Minute)
		for n := range 200 {
			all := s.reported(targetOf("hostile", n))
			require.NotEmpty(t, all)
			require.EqualValues(t, 601, all[len(all)-1].Weight, "the last weight is reported")
		}
	})
}

func TestATargetThatFlapsStaysUnusedForLonger(t *testing.T) {
	flips := func(second int) translate.Health {
		return translate.Health{State: []model.EndpointState{model.Active, model.Draining}[second%4/2], Weight: 1}
	}
	withChangingTenant(t, 50, flips, func(s *simulation, _ translate.Target) {
		time.Sleep(9 * time.Minute)
		for n := range 50 {
			require.LessOrEqual(t, len(s.reported(targetOf("hostile", n))), 2*20, "in nine minutes, with 270 changes")
		}
	})
}

func TestANodeThatIsDrainedAndComesBackIsUsedAtOnce(t *testing.T) {
	rollout := func(second int) translate.Health {
		return translate.Health{State: []model.EndpointState{model.Active, model.Draining}[second%240/120], Weight: 1}
	}
	withChangingTenant(t, 1, rollout, func(s *simulation, _ translate.Target) {
		time.Sleep(3 * time.Second)
		s.reported(targetOf("hostile", 0))
		for range 3 {
			time.Sleep(2 * time.Minute)
			require.Len(t, s.reported(targetOf("hostile", 0)), 1)
		}
	})
}
