package hostcheck

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
)

func TestTheTimeOfTheManagementClusterIsReadPeriodically(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, apart := 0, time.Hour
		var failed error
		hub := CachedTime(func(context.Context) (time.Time, error) {
			asked++
			return time.Now().Add(apart), failed
		}, 5*time.Minute)
		for range 10 {
			require.Equal(t, dataplane.CheckMissing, clockCheck(t.Context(), hub)[1].State, "the time advances between requests")
			time.Sleep(30 * time.Second)
		}
		require.Equal(t, 1, asked)
		apart = 0
		require.Equal(t, dataplane.CheckOK, clockCheck(t.Context(), hub)[1].State)
		require.Equal(t, 2, asked)

		time.Sleep(5 * time.Minute)
		failed = errors.New("no route")
		for range 2 {
			require.Equal(t, dataplane.CheckUnknown, clockCheck(t.Context(), hub)[1].State)
		}
		require.Equal(t, 3, asked)
	})
}
