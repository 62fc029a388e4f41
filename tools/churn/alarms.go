package churn

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/wait"

	"kubelb.k8c.io/api/v1alpha1"
)

// listener hears what is said of connections that fail.
type listener struct {
	stop   context.CancelFunc
	done   chan struct{}
	alarms map[string]bool
}

// listenEvery is how often it looks.
const listenEvery = time.Second

// listen hears until it is ended. The hub's API may be slow for a while: who looks again in a second misses nothing that lasts.
func (r *run) listen(ctx context.Context) *listener {
	ctx, stop := context.WithCancel(ctx)
	l := &listener{stop: stop, done: make(chan struct{}), alarms: map[string]bool{}}
	go func() {
		defer close(l.done)
		wait.UntilWithContext(ctx, func(ctx context.Context) {
			var lbs v1alpha1.LoadBalancerList
			if err := r.hub.List(ctx, &lbs); err == nil {
				l.hear(lbs.Items)
			}
		}, listenEvery)
	}()
	return l
}

func (l *listener) hear(lbs []v1alpha1.LoadBalancer) {
	for _, lb := range lbs {
		if c := meta.FindStatusCondition(lb.Status.Conditions, v1alpha1.ConditionServed); c != nil {
			l.alarms[fmt.Sprintf("%s: %s: %s", lb.Name, c.LastTransitionTime.Format(time.TimeOnly), c.Message)] = true
		}
	}
}

// end returns what was heard.
func (l *listener) end() []string {
	l.stop()
	<-l.done
	return slices.Sorted(maps.Keys(l.alarms))
}

// tried is how many connections the gateway made to its own ports.
func (r *run) tried(ctx context.Context) (n int, err error) {
	page, err := r.metrics(ctx, r.lab.Gateway, managerMetrics)
	if err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(strings.NewReader(page))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		var count float64
		if !strings.HasPrefix(name, "kubelb_gateway_tries_total{") {
			continue
		}
		if _, err := fmt.Sscan(value, &count); err != nil {
			return 0, fmt.Errorf("%s: %w", lines.Text(), err)
		}
		n += int(count)
	}
	return n, lines.Err()
}
