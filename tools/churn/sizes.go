package churn

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/conformance/netlab"
	"kubelb.k8c.io/tools/cluster"
)

// sizes measures the processes, and the objects in the gateway's kernel.
func (r *run) sizes(ctx context.Context) (Sizes, error) {
	out := Sizes{}
	processes := map[string]int{"manager": r.lab.Manager.PID(), "ccm": r.lab.CCM.PID()}
	children, err := r.lab.Manager.Children()
	if err != nil {
		return nil, err
	}
	for _, child := range children {
		processes[filepath.Base(strings.Fields(child.Command)[0])] = child.PID
	}
	for name, pid := range processes {
		usage, err := cluster.UsageOf(pid)
		if err != nil {
			return nil, err
		}
		out[name+" KiB"], out[name+" descriptors"] = usage.ResidentKiB, usage.Descriptors
	}
	for name, page := range map[string]struct {
		on   *netlab.Namespace
		port int
	}{"manager": {r.lab.Gateway, managerMetrics}, "ccm": {r.lab.Tenant.Namespace, 9445}} {
		text, err := r.metrics(ctx, page.on, page.port)
		if err != nil {
			return nil, err
		}
		_, number, found := strings.Cut(text, "\ngo_goroutines ")
		count := 0
		if _, err := fmt.Sscan(number, &count); !found || err != nil {
			return nil, fmt.Errorf("the metrics of %s have no number of goroutines", name)
		}
		out[name+" goroutines"] = count
	}
	for name, command := range map[string]string{
		"nftables lines": "nft list ruleset | wc -l", "pinned objects": "find /sys/fs/bpf -type f | wc -l", "addresses and routes": "(ip -o address; ip route show table all; ip -6 route show table all) | wc -l",
	} {
		text, err := r.lab.OnGateway(ctx, "sh", "-c", command)
		if err != nil {
			return nil, err
		}
		count := 0
		if _, err := fmt.Sscan(text, &count); err != nil {
			return nil, fmt.Errorf("%s: %q", name, text)
		}
		out[name] = count
	}
	return out, nil
}

// managerMetrics is the port of the manager's metrics.
const managerMetrics = 9443

// metrics reads the metrics of a process on its own host.
func (r *run) metrics(ctx context.Context, on *netlab.Namespace, port int) (string, error) {
	return r.lab.On(ctx, on, "curl", "-sS", "--max-time", "5", fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
}

// end deletes the last Service, stops the programs, and returns what remains on the gateway.
func (r *run) end(ctx context.Context) (left []string, err error) {
	last := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "stays", Namespace: namespace}}
	if err := r.tenant.Delete(ctx, last); client.IgnoreNotFound(err) != nil {
		return nil, err
	}
	if err := r.until(ctx, "no LoadBalancer is left", func(ctx context.Context) error { return r.left(ctx, 0) }); err != nil {
		return nil, err
	}
	r.lab.CCM.Stop()
	r.lab.Manager.Stop()
	for name, command := range map[string]string{
		"tables": "nft list tables | grep kubelb; true", "pinned objects": "find /sys/fs/bpf -name '*kubelb*'", "addresses": "ip -o address | grep -E '192.0.2.2[0-4][0-9]|2001:db8:c::2[0-4]'; true",
		"interfaces": "ip -o link 2>/dev/null | grep kubelb; true",
		"rules":      "ip rule; ip -6 rule | grep -v -E 'lookup (local|main|default)'; true",
	} {
		text, listErr := r.lab.OnGateway(ctx, "sh", "-c", command)
		err = errors.Join(err, listErr)
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); line != "" && !strings.Contains(line, "lookup local") && !strings.Contains(line, "lookup main") && !strings.Contains(line, "lookup default") {
				left = append(left, name+": "+line)
			}
		}
	}
	return left, err
}

// use is a client of the Service that stays. It sends requests on a long connection and on new ones.
type use struct {
	stop                     context.CancelFunc
	done                     chan struct{}
	requests, failed, broken int
	// failures are the first failures, with their times.
	failures []string
}

// maxFailures is the number of failures in a result.
const maxFailures = 20

// requestEvery is the interval of requests.
const requestEvery = 50 * time.Millisecond

func startUse(ctx context.Context, from *netlab.Namespace, address string) *use {
	ctx, stop := context.WithCancel(ctx)
	u := &use{stop: stop, done: make(chan struct{})}
	go func() {
		defer close(u.done)
		long := newRequester(from, address, true)
		defer long.close()
		u.run(ctx, long, newRequester(from, address, false))
	}()
	return u
}

func (u *use) run(ctx context.Context, long, fresh *requester) {
	for ctx.Err() == nil {
		for _, a := range []*requester{long, fresh} {
			began := time.Now()
			err := a.request(ctx)
			if ctx.Err() != nil {
				return
			}
			u.requests++
			if err == nil {
				continue
			}
			u.failed++
			if len(u.failures) < maxFailures {
				u.failures = append(u.failures, fmt.Sprintf("%s, after %s, on %s: %v", time.Now().Format(time.TimeOnly), time.Since(began).Round(time.Millisecond), a, err))
			}
		}
		u.broken = max(0, long.dials-1)
		select {
		case <-ctx.Done():
		case <-time.After(requestEvery):
		}
	}
}

// end stops the client, and adds its numbers to the result.
func (u *use) end(r *Result) {
	u.stop()
	<-u.done
	r.Requests, r.Failed, r.Broken, r.Failures = u.requests, u.failed, u.broken, u.failures
}
