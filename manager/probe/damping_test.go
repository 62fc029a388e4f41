package probe

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
)

// restless is a fleet of one tenant that says something else at each check until a time, beside a tenant whose one target changes once.
func restless(t *testing.T, targets int, says func(second int) translate.Health, test func(f *fleet, quiet translate.Target)) {
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{t: t, behaves: map[translate.Target]behaviour{}, tells: map[translate.Target]func(time.Time) translate.Health{}}
		began := time.Now()
		for n := range targets {
			f.behaves[targetOf("hostile", n)] = prompt
			f.tells[targetOf("hostile", n)] = func(now time.Time) translate.Health {
				return says(int(min(now.Sub(began), 10*time.Minute) / time.Second))
			}
		}
		quiet := targetOf("good", 0)
		f.behaves[quiet] = prompt
		f.tells[quiet] = func(now time.Time) translate.Health {
			return translate.Health{Weight: 1 + uint16(now.Sub(began)/(5*time.Minute))}
		}
		f.run(func() { test(f, quiet) })
	})
}

// told takes what is told of a target.
func (f *fleet) told(target translate.Target) (all []translate.Health) {
	for {
		select {
		case health := <-f.found[target]:
			all = append(all, health)
		default:
			return all
		}
	}
}

func TestWeightsThatChangeEachSecondAreToldNowAndThen(t *testing.T) {
	weight := func(second int) translate.Health { return translate.Health{Weight: uint16(second%1000 + 1)} }
	restless(t, 200, weight, func(f *fleet, quiet translate.Target) {
		time.Sleep(3 * time.Second)
		require.NotEmpty(t, f.told(targetOf("hostile", 7)), "the first weight is told at once")
		require.Len(t, f.told(quiet), 1)
		time.Sleep(5*time.Minute - 2*time.Second)
		require.Equal(t, []translate.Health{{Weight: 2}}, f.told(quiet), "another tenant's at once, as ever")
		time.Sleep(4 * time.Minute)
		for n := range 200 {
			require.LessOrEqual(t, len(f.told(targetOf("hostile", n))), 2*25, "in nine minutes, with 540 changes")
		}
		time.Sleep(2 * time.Minute)
		for n := range 200 {
			all := f.told(targetOf("hostile", n))
			require.NotEmpty(t, all)
			require.EqualValues(t, 601, all[len(all)-1].Weight, "the last one counts")
		}
	})
}

func TestATargetThatComesAndGoesIsLeftOutForLonger(t *testing.T) {
	flips := func(second int) translate.Health {
		return translate.Health{State: []model.EndpointState{model.Active, model.Draining}[second%4/2], Weight: 1}
	}
	restless(t, 50, flips, func(f *fleet, _ translate.Target) {
		time.Sleep(9 * time.Minute)
		for n := range 50 {
			require.LessOrEqual(t, len(f.told(targetOf("hostile", n))), 2*20, "in nine minutes, with 270 changes")
		}
	})
}

func TestANodeThatIsDrainedAndComesBackIsUsedAtOnce(t *testing.T) {
	rollout := func(second int) translate.Health {
		return translate.Health{State: []model.EndpointState{model.Active, model.Draining}[second%240/120], Weight: 1}
	}
	restless(t, 1, rollout, func(f *fleet, _ translate.Target) {
		time.Sleep(3 * time.Second)
		f.told(targetOf("hostile", 0))
		for range 3 {
			time.Sleep(2 * time.Minute)
			require.Len(t, f.told(targetOf("hostile", 0)), 1)
		}
	})
}
