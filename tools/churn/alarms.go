package churn

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/wait"

	"kubelb.k8c.io/api/v1alpha1"
)

// listener hears what is said of connections that fail, and has a client try them at once.
type listener struct {
	stop context.CancelFunc
	done chan struct{}
	// heard are LoadBalancers, by name and when it began. denied are messages about LoadBalancers to which the client connected, confirmed the others.
	heard             map[string]bool
	denied, confirmed []string
}

const (
	// listenEvery is how often it looks.
	listenEvery = time.Second
	// confirmTries is how often the client connects to each port: of two nodes one may be at fault.
	confirmTries = 10
)

// listen hears until it is ended. The hub's API may be slow for a while: a look that fails misses nothing that lasts.
func (r *run) listen(ctx context.Context) *listener {
	ctx, stop := context.WithCancel(ctx)
	l := &listener{stop: stop, done: make(chan struct{}), heard: map[string]bool{}}
	go func() {
		defer close(l.done)
		wait.UntilWithContext(ctx, func(ctx context.Context) {
			var lbs v1alpha1.LoadBalancerList
			if err := r.hub.List(ctx, &lbs); err == nil {
				l.hear(ctx, lbs.Items, r.lab.Client.DialContext)
			}
		}, listenEvery)
	}()
	return l
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

func (l *listener) hear(ctx context.Context, lbs []v1alpha1.LoadBalancer, dial dialer) {
	for _, lb := range lbs {
		c := meta.FindStatusCondition(lb.Status.Conditions, v1alpha1.ConditionServed)
		if c == nil {
			continue
		}
		key := lb.Name + ": " + c.LastTransitionTime.Format(time.TimeOnly)
		if l.heard[key] {
			continue
		}
		l.heard[key] = true
		if err := refused(ctx, &lb, dial); err != nil {
			l.confirmed = append(l.confirmed, fmt.Sprintf("%s: %s; the client: %v", key, c.Message, err))
			continue
		}
		l.denied = append(l.denied, key+": "+c.Message)
	}
}

// refused is how a client fails to connect to the LoadBalancer, nil if it never does.
func refused(ctx context.Context, lb *v1alpha1.LoadBalancer, dial dialer) error {
	for _, address := range lb.Status.Addresses {
		for _, port := range lb.Spec.Ports {
			if port.Protocol == corev1.ProtocolUDP {
				continue
			}
			for range confirmTries {
				if err := connects(ctx, net.JoinHostPort(address.Address, fmt.Sprint(port.Port)), dial); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func connects(ctx context.Context, address string, dial dialer) error {
	ctx, cancel := context.WithTimeout(ctx, mostWait)
	defer cancel()
	conn, err := dial(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// end returns what was heard: what a client did not find so, and what it did.
func (l *listener) end() (alarms, confirmed []string) {
	l.stop()
	<-l.done
	return l.denied, l.confirmed
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
