package ccm

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

func TestOnlyOwnedServicesAreCounted(t *testing.T) {
	class := "example.com/lb"
	named := func(name string, change func(*corev1.Service)) *corev1.Service { return served(name, change) }
	tenant := clusterOf(t,
		named("ready", nil),
		named("pending", func(s *corev1.Service) { s.Status.Conditions[0].Status = metav1.ConditionFalse }),
		named("new", func(s *corev1.Service) { s.Status.Conditions = nil }),
		named("unknown", func(s *corev1.Service) { s.Status.Conditions[0].Status = metav1.ConditionUnknown }),
		named("foreign", func(s *corev1.Service) { s.Spec.LoadBalancerClass = &class }),
		named("inside", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP }))
	r, err := newMetricsReporter(tenant, func(context.Context) error { return nil }, Config{}, prometheus.NewPedanticRegistry())
	require.NoError(t, err)
	r.update(t.Context())
	for state, n := range map[string]float64{"ready": 1, "pending": 2, "unknown": 1} {
		require.Equal(t, n, testutil.ToFloat64(r.counts.WithLabelValues(state)), state)
	}
	require.Equal(t, 3, testutil.CollectAndCount(r.counts))
	require.Equal(t, 1.0, testutil.ToFloat64(r.reachable))
}

func TestTheLogNamesTheCommandForExpiredCredentials(t *testing.T) {
	var logged []string
	ctx := log.IntoContext(t.Context(), funcr.New(func(_, line string) { logged = append(logged, line) }, funcr.Options{}))
	var failed error
	r, err := newMetricsReporter(clusterOf(t), func(context.Context) error { return failed }, Config{HubNamespace: "tenant-a"}, prometheus.NewPedanticRegistry())
	require.NoError(t, err)
	r.update(ctx)
	require.Empty(t, logged)
	failed = apierrors.NewUnauthorized("Unauthorized")
	r.update(ctx)
	require.Contains(t, logged[0], "kubelb tenants kubeconfig a")
	require.Zero(t, testutil.ToFloat64(r.reachable))
	failed = errors.New("no route to host")
	r.update(ctx)
	require.Contains(t, logged[1], "the management cluster does not answer")
	require.NotContains(t, logged[1], "kubelb tenants kubeconfig", "new credentials would not help")
}

func TestAMetricIsRegisteredOnce(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	_, err := newMetricsReporter(clusterOf(t), nil, Config{}, registry)
	require.NoError(t, err)
	_, err = newMetricsReporter(clusterOf(t), nil, Config{}, registry)
	require.ErrorContains(t, err, "register metrics: ")
	_, err = newLeftOut(registry)
	require.NoError(t, err)
	_, err = newLeftOut(registry)
	require.ErrorContains(t, err, "register metrics: ")
}

// The periodic checks of the leader go on until it ends.
func TestTheLeaderChecksPeriodically(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks := 0
		served := func(context.Context) error { looks++; return nil }
		r, err := newMetricsReporter(clusterOf(t), served, Config{}, prometheus.NewPedanticRegistry())
		require.NoError(t, err)
		services, _ := reconcilerOf(t, clusterOf(t), nil)
		for name, start := range map[string]func(context.Context) error{"reporter": r.Start, "refusals": (&outageReporter{services: services, checkHub: served}).Start} {
			looks = 0
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- start(ctx) }()
			time.Sleep(3*hubCheckEvery + time.Second)
			synctest.Wait()
			require.Equal(t, 4, looks, name)
			cancel()
			require.NoError(t, <-ended)
		}
	})
}

func TestTheTokenIsCheckedPeriodically(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		k := fuzzSource(t, []byte(kubeconfigWith("token: "+expiring("one", noon))), "")
		k.request = func(context.Context, token, time.Duration) (string, error) {
			asked++
			return "", errors.New("connection refused")
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- k.Start(ctx) }()
		time.Sleep(2*refreshEvery + time.Second)
		synctest.Wait()
		require.Equal(t, 3, asked, "a renewal that failed is tried again")
		cancel()
		require.NoError(t, <-ended)
	})
}

func TestTheLogNamesServicesWhoseConditionCannotBeWritten(t *testing.T) {
	var logged []string
	ctx := log.IntoContext(t.Context(), funcr.New(func(_, line string) { logged = append(logged, line) }, funcr.Options{}))
	c := newClusters(t, web())
	looks := &outageReporter{services: c.r, checkHub: func(context.Context) error { return errors.New("connection refused") }}
	c.refuse = func(string) error { return errors.New("the tenant cluster is away as well") }
	looks.check(ctx)
	looks.check(ctx)
	require.Len(t, logged, 1)
	require.Contains(t, logged[0], "Services that wait for the management cluster")
	c.refuse = func(request string) error {
		if strings.HasPrefix(request, "tenant: patch") {
			return errors.New("a webhook refuses it")
		}
		return nil
	}
	looks.check(ctx)
	require.Len(t, logged, 2)
	require.Contains(t, logged[1], `"service"="web"`)
}
