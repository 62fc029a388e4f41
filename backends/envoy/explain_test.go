package envoy

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/envoy/supervisor"
)

func TestWhereNoEnvoyIsConnectedItIsSaidHowTheLastOneEnded(t *testing.T) {
	b := &Backend{dir: supervisor.Dir(t.TempDir())}
	require.Equal(t, "Envoy is not connected; see "+b.dir.Log(), b.explain(errNotConnected).Error())
	require.NoError(t, os.WriteFile(filepath.Join(string(b.dir), "running.json"), []byte(`{"launch":3,"ended":"Envoy ended: signal: aborted"}`), 0o600))
	require.Equal(t, "Envoy is not connected (the last one: Envoy ended: signal: aborted); see "+b.dir.Log()+" and "+b.dir.OwnLog(), b.explain(errNotConnected).Error())
	require.NotContains(t, b.explain(errors.New("Envoy has not answered for 1 of 2 resources")).Error(), "aborted", "one that is connected may be slow")
}

// Managers give a change a minute, and each frontend ten milliseconds more (manager/gateway).
func TestEnvoyIsWaitedForNoLongerThanManagersWait(t *testing.T) {
	for _, frontends := range []int{0, 1, 500, 10_000} {
		require.Less(t, patienceFor(2*frontends), time.Minute+time.Duration(frontends)*10*time.Millisecond)
	}
}
