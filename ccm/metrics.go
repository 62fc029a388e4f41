package ccm

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"kubelb.k8c.io/ccm/convert"
	"kubelb.k8c.io/core/translate"
)

// metricsReporter sets the metrics about the hub and the Services. Only the elected replica does so.
type metricsReporter struct {
	services client.Reader
	// checkHub returns an error that says why the hub does not accept requests; nil if it does.
	checkHub func(context.Context) error
	config   Config

	// Both metrics are absent in a replica that is not elected.
	reachable *prometheus.GaugeVec
	counts    *prometheus.GaugeVec
}

// hubCheckEvery is the interval of requests that check the hub. An answer may take credentialsTimeout.
const hubCheckEvery = 15 * time.Second

func newMetricsReporter(services client.Reader, served func(context.Context) error, config Config, r prometheus.Registerer) (*metricsReporter, error) {
	out := &metricsReporter{services: services, checkHub: served, config: config,
		reachable: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubelb_ccm_hub_reachable", Help: "Whether the management cluster's API answers, and accepts the CCM's credentials."}, nil),
		counts: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubelb_ccm_services",
			Help: "Services of type LoadBalancer that KubeLB owns, by state: served (ready), waiting for something (pending), or not known (unknown)."}, []string{"state"})}
	for _, c := range []prometheus.Collector{out.reachable, out.counts} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return out, nil
}

func newLeftOut(r prometheus.Registerer) (*prometheus.GaugeVec, error) {
	leftOut := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubelb_ccm_node_addresses_left_out",
		Help: "Addresses of nodes that the management cluster does not accept, such as link-local addresses."}, nil)
	if err := r.Register(leftOut); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return leftOut, nil
}

// Start updates the metrics until ctx ends.
func (r *metricsReporter) Start(ctx context.Context) error {
	wait.NonSlidingUntilWithContext(ctx, r.update, hubCheckEvery)
	return nil
}

func (r *metricsReporter) update(ctx context.Context) {
	err := r.checkHub(ctx)
	switch {
	case apierrors.IsUnauthorized(err):
		log.FromContext(ctx).Error(err, "the management cluster does not accept the token: it has expired, or was rotated or revoked. Get a new kubeconfig there", "run", kubeconfigCommand(r.config.HubNamespace))
	case err != nil:
		log.FromContext(ctx).Error(err, "the management cluster does not answer")
	}
	r.reachable.WithLabelValues().Set(map[bool]float64{true: 1}[err == nil])
	var services corev1.ServiceList
	if err := r.services.List(ctx, &services); err != nil {
		log.FromContext(ctx).Error(err, "cannot count Services")
		return
	}
	states := map[string]int{"ready": 0, "pending": 0, "unknown": 0}
	for i := range services.Items {
		s := &services.Items[i]
		is := meta.FindStatusCondition(s.Status.Conditions, conditionReady)
		switch {
		case !translate.Owns(convert.Service(s), r.config.ClassRequired):
		case is != nil && is.Status == metav1.ConditionTrue:
			states["ready"]++
		case is != nil && is.Status == metav1.ConditionUnknown:
			states["unknown"]++
		default:
			states["pending"]++
		}
	}
	for state, n := range states {
		r.counts.WithLabelValues(state).Set(float64(n))
	}
}
