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

// alarmChecker reads the conditions of LoadBalancers that report failing connections, and checks them with a client at once.
type alarmChecker struct {
	stop context.CancelFunc
	done chan struct{}
	// checked has the alarms that were checked, by name of the LoadBalancer and time. In denied are the messages about LoadBalancers to which the client
	// connected, in confirmed the others.
	checked           map[string]bool
	denied, confirmed []string
}

const (
	// checkEvery is the interval of checks.
	checkEvery = time.Second
	// connectsPerPort is how often the client connects to each port, because only one of two nodes may fail.
	connectsPerPort = 10
)

// checkAlarms starts an alarmChecker. It ignores errors of the hub's API, because lasting alarms are found at the next check.
func (r *run) checkAlarms(ctx context.Context) *alarmChecker {
	ctx, stop := context.WithCancel(ctx)
	l := &alarmChecker{stop: stop, done: make(chan struct{}), checked: map[string]bool{}}
	go func() {
		defer close(l.done)
		wait.UntilWithContext(ctx, func(ctx context.Context) {
			var lbs v1alpha1.LoadBalancerList
			if err := r.hub.List(ctx, &lbs); err == nil {
				l.check(ctx, lbs.Items, r.lab.Client.DialContext)
			}
		}, checkEvery)
	}()
	return l
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

func (l *alarmChecker) check(ctx context.Context, lbs []v1alpha1.LoadBalancer, dial dialer) {
	for _, lb := range lbs {
		c := meta.FindStatusCondition(lb.Status.Conditions, v1alpha1.ConditionServed)
		if c == nil {
			continue
		}
		key := lb.Name + ": " + c.LastTransitionTime.Format(time.TimeOnly)
		if l.checked[key] {
			continue
		}
		l.checked[key] = true
		if err := connectAll(ctx, &lb, dial); err != nil {
			l.confirmed = append(l.confirmed, fmt.Sprintf("%s: %s; the client: %v", key, c.Message, err))
			continue
		}
		l.denied = append(l.denied, key+": "+c.Message)
	}
}

// connectAll connects to all TCP ports of the LoadBalancer. It returns the first error.
func connectAll(ctx context.Context, lb *v1alpha1.LoadBalancer, dial dialer) error {
	for _, address := range lb.Status.Addresses {
		for _, port := range lb.Spec.Ports {
			if port.Protocol == corev1.ProtocolUDP {
				continue
			}
			for range connectsPerPort {
				if err := connect(ctx, net.JoinHostPort(address.Address, fmt.Sprint(port.Port)), dial); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func connect(ctx context.Context, address string, dial dialer) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	conn, err := dial(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// end stops the checks. It returns the false alarms, and those that the client confirmed.
func (l *alarmChecker) end() (alarms, confirmed []string) {
	l.stop()
	<-l.done
	return l.denied, l.confirmed
}

// tried returns the number of connections that the gateway made to its own ports.
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
