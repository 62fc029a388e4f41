package envoy

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/envoy/supervisor"
)

func TestTheErrorSaysHowEnvoyEnded(t *testing.T) {
	b := &Backend{dir: supervisor.Dir(t.TempDir())}
	require.Equal(t, "Envoy is not connected; see "+b.dir.Log(), b.explain(errNotConnected).Error())
	require.NoError(t, os.WriteFile(filepath.Join(string(b.dir), "running.json"), []byte(`{"launch":3,"ended":"Envoy ended: signal: aborted"}`), 0o600))
	require.Equal(t, "Envoy is not connected (the last Envoy: Envoy ended: signal: aborted); see "+b.dir.Log()+" and "+b.dir.OwnLog(), b.explain(errNotConnected).Error())
	require.NotContains(t, b.explain(errors.New("Envoy has not answered for 1 of 2 resources")).Error(), "aborted", "one that is connected may be slow")
}

func TestTheTimeoutForEnvoyIsShorterThanTheCallersDeadline(t *testing.T) {
	caller, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	ctx, cancel := withAnswerTimeout(caller)
	defer cancel()
	end, set := ctx.Deadline()
	require.True(t, set)
	require.WithinDuration(t, time.Now().Add(8*time.Minute), end, 10*time.Second)
	ctx, cancel = withAnswerTimeout(context.Background())
	defer cancel()
	end, set = ctx.Deadline()
	require.True(t, set)
	require.WithinDuration(t, time.Now().Add(answerTimeout), end, 10*time.Second)
}
