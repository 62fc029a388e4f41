package conformance

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/conformance/cases"
)

func soakedReport(duration string, outcomes ...Outcome) Report {
	r := Report{Version: ReportVersion, Backend: Backend{Name: "b", Version: "1"}, Kernel: "k", Duration: duration}
	for _, o := range outcomes {
		r.Runs = append(r.Runs, Run{Case: "tcp-echo", Profile: cases.Core, Family: "IPv4", Outcome: o, Reason: "why"})
	}
	return r
}

func TestASoakContinuesWhereItWasInterrupted(t *testing.T) {
	dir := t.TempDir()
	var tested []int
	interrupted := errors.New("interrupted")
	run := func(round int) (Report, error) {
		tested = append(tested, round)
		if len(tested) == 2 {
			return Report{}, interrupted
		}
		outcome := Passed
		if round == 3 {
			outcome = Failed
		}
		return soakedReport([]string{"", "9s", "7s", "8s"}[round], Passed, outcome), nil
	}
	_, err := RunRounds(3, dir, run)
	require.ErrorIs(t, err, interrupted)
	sum, err := RunRounds(3, dir, run)
	require.NoError(t, err)
	require.Equal(t, []int{1, 2, 2, 3}, tested)
	require.Equal(t, map[Outcome]int{Passed: 5, Failed: 1}, sum.Counts)
	require.Equal(t, []SoakFailure{{Round: 3, Case: "tcp-echo", Family: "IPv4", Reason: "why"}}, sum.Failures)
	require.Equal(t, "7s", sum.Shortest)
	require.Equal(t, "9s", sum.Longest)
}

func TestRoundsOfDifferentSuitesAreNotSummedUp(t *testing.T) {
	_, err := RunRounds(2, t.TempDir(), func(round int) (Report, error) {
		if round == 1 {
			return soakedReport("1s", Passed), nil
		}
		return soakedReport("1s", Passed, Passed), nil
	})
	require.ErrorContains(t, err, "round 2 differ from those of round 1")
}

func TestRoundsOfDifferentProgramsAreNotSummedUp(t *testing.T) {
	_, err := RunRounds(2, t.TempDir(), func(round int) (Report, error) {
		r := soakedReport("1s", Passed)
		r.Judgement.Program = &Program{Path: "plugin", SHA256: []string{"", "aa", "bb"}[round]}
		return r, nil
	})
	require.ErrorContains(t, err, "the plugin's file of round 2 differs from that of round 1")
	same, former := &Program{Path: "a", SHA256: "aa"}, (*Program)(nil)
	require.True(t, sameProgram(same, &Program{Path: "b", SHA256: "aa"}))
	require.True(t, sameProgram(same, former), "a report of the former version")
}
