package ccm

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"kubelb.k8c.io/ccm/convert"
	"kubelb.k8c.io/core/translate"
)

// reporter tells Prometheus how the tenant is served. The replica that is elected tells it; others tell nothing.
type reporter struct {
	services client.Reader
	hub      discovery.ServerVersionInterface
	config   Config

	reachable prometheus.Gauge
	counts    *prometheus.GaugeVec
}

// reportEvery is how often the hub is asked whether it is there; reportTimeout is how long an answer may take.
const (
	reportEvery   = 15 * time.Second
	reportTimeout = 5 * time.Second
)

func newReporter(services client.Reader, hub *rest.Config, config Config, r prometheus.Registerer) (*reporter, error) {
	asking := rest.CopyConfig(hub)
	asking.Timeout = reportTimeout
	api, err := discovery.NewDiscoveryClientForConfig(asking)
	if err != nil {
		return nil, fmt.Errorf("management cluster: %w", err)
	}
	out := &reporter{services: services, hub: api, config: config,
		reachable: prometheus.NewGauge(prometheus.GaugeOpts{Name: "kubelb_ccm_hub_reachable", Help: "Whether the management cluster's API answers."}),
		counts: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubelb_ccm_services",
			Help: "Services of type LoadBalancer that are KubeLB's, by whether they are served (ready) or wait for something (pending)."}, []string{"state"})}
	for _, c := range []prometheus.Collector{out.reachable, out.counts} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return out, nil
}

func newLeftOut(r prometheus.Registerer) (prometheus.Gauge, error) {
	leftOut := prometheus.NewGauge(prometheus.GaugeOpts{Name: "kubelb_ccm_node_addresses_left_out",
		Help: "Addresses of nodes that the management cluster does not take, such as link-local ones."})
	if err := r.Register(leftOut); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return leftOut, nil
}

// Start looks again and again until ctx ends.
func (r *reporter) Start(ctx context.Context) error {
	wait.NonSlidingUntilWithContext(ctx, r.look, reportEvery)
	return nil
}

func (r *reporter) look(ctx context.Context) {
	_, err := r.hub.ServerVersion()
	switch {
	case apierrors.IsUnauthorized(err):
		log.FromContext(ctx).Error(err, "the management cluster does not take the token: it has ended, or was rotated or revoked. A new kubeconfig helps", "run", kubeconfigCommand(r.config.HubNamespace))
	case err != nil:
		log.FromContext(ctx).Error(err, "the management cluster does not answer")
	}
	r.reachable.Set(map[bool]float64{true: 1}[err == nil])
	var services corev1.ServiceList
	if err := r.services.List(ctx, &services); err != nil {
		log.FromContext(ctx).Error(err, "count Services")
		return
	}
	ready, pending := 0, 0
	for i := range services.Items {
		s := &services.Items[i]
		switch {
		case !translate.Owns(convert.Service(s), r.config.ClassRequired):
		case meta.IsStatusConditionTrue(s.Status.Conditions, conditionReady):
			ready++
		default:
			pending++
		}
	}
	r.counts.WithLabelValues("ready").Set(float64(ready))
	r.counts.WithLabelValues("pending").Set(float64(pending))
}
