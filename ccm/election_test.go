package ccm

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"

	"kubelb.k8c.io/api/v1alpha1"
)

// KubeLB's own CCM uses a Lease of the same name, so that the two never work at the same time. `kubelb migrate` distinguishes them by the holder.
func TestTheElectionUsesTheLeaseOfKubeLBWithOurIdentity(t *testing.T) {
	config := &rest.Config{Host: "http://127.0.0.1:1"}
	lock, err := electionLock(config, true, "kubelb")
	require.NoError(t, err)
	require.Equal(t, "kubelb/19f32e7b.ccm.kubelb.k8c.io", lock.Describe())
	require.Contains(t, lock.Identity(), "_"+v1alpha1.CCMIdentity+"_")
	host, err := os.Hostname()
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(lock.Identity(), host+"_"), "the identity names the pod")
	other, err := electionLock(config, true, "kubelb")
	require.NoError(t, err)
	require.NotEqual(t, lock.Identity(), other.Identity(), "a process that starts again on the same host is another one")
}

func TestWithoutLeaderElectionThereIsNoLease(t *testing.T) {
	lock, err := electionLock(&rest.Config{Host: "http://127.0.0.1:1"}, false, "kubelb")
	require.NoError(t, err)
	require.Nil(t, lock)
}

// A replica on standby needs a valid token when it is elected, perhaps after days. Everything else is the leader's work.
func TestEachReplicaRenewsItsToken(t *testing.T) {
	require.False(t, (&tokenSource{}).NeedLeaderElection())
	for _, work := range []any{&lease{}, &outageReporter{}, &metricsReporter{}, &foreignFinalizers{}} {
		_, says := work.(interface{ NeedLeaderElection() bool })
		require.False(t, says, "%T is for the leader", work)
	}
}
