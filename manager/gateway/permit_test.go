package gateway

import (
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/manager/heartbeat"
)

type world struct {
	holds   bool
	verdict heartbeat.Verdict
}

func (w *world) Holds() bool                { return w.holds }
func (w *world) Verdict() heartbeat.Verdict { return w.verdict }

func TestWithoutTheLeaseAGatewayGoesOnOnlyIfNobodyTakesOver(t *testing.T) {
	for name, c := range map[string]struct {
		verdict       heartbeat.Verdict
		keepWhenAlone bool
		goesOn        bool
	}{
		"another one reaches the API":         {heartbeat.OneReaches, true, false},
		"nobody reaches it":                   {heartbeat.NoneReaches, false, true},
		"alone, and told to keep":             {heartbeat.Alone, true, true},
		"alone, and told to let go":           {heartbeat.Alone, false, false},
		"it has not listened for long enough": {heartbeat.Unsure, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := &world{holds: true, verdict: c.verdict}
			p := &permit{lease: w, segment: w, keepWhenAlone: c.keepWhenAlone, changed: func() {}}
			require.True(t, p.decide())
			w.holds = false
			require.False(t, p.may(), "it has to be decided first")
			require.Equal(t, c.goesOn, p.decide())
			require.Equal(t, c.goesOn, p.may())
			w.holds = true
			require.True(t, p.decide())
		})
	}
}

func TestWhatWasLetGoComesBackWithTheLeaseOnly(t *testing.T) {
	w := &world{verdict: heartbeat.NoneReaches}
	p := &permit{lease: w, segment: w, keepWhenAlone: true, changed: func() {}}
	require.False(t, p.decide(), "it never held the lease")
	w.holds = true
	require.True(t, p.decide())
	w.holds, w.verdict = false, heartbeat.OneReaches
	require.False(t, p.decide())
	w.verdict = heartbeat.NoneReaches
	require.False(t, p.decide(), "another one has what it had")
	w.holds = true
	require.True(t, p.decide())
}
