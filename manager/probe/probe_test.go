package probe

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
)

// kubeProxy answers health checks at a loopback address.
type kubeProxy struct {
	mu     sync.Mutex // guards status and weight
	status int
	weight string
	server *http.Server
}

func (n *kubeProxy) set(status int, weight string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.status, n.weight = status, weight
}

func startKubeProxy(t *testing.T, hostPort string) *kubeProxy {
	t.Helper()
	listener, err := net.Listen("tcp", hostPort)
	require.NoError(t, err)
	n := &kubeProxy{status: http.StatusOK}
	n.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.weight != "" {
			w.Header().Set("X-Load-Balancing-Endpoint-Weight", n.weight)
		}
		w.WriteHeader(n.status)
	})}
	go n.server.Serve(listener)
	t.Cleanup(func() { n.server.Close() })
	return n
}

// startProber runs a prober until the test ends, and returns its results.
func startProber(t *testing.T, targets ...translate.Target) chan Result {
	t.Helper()
	return startProberWithTimeout(t, 200*time.Millisecond, targets...)
}

func startProberWithTimeout(t *testing.T, timeout time.Duration, targets ...translate.Target) chan Result {
	t.Helper()
	results := make(chan Result, 1024)
	p := New(Config{Interval: 20 * time.Millisecond, Timeout: timeout, Failures: 2, MaxConcurrent: 4}, func(r Result) { results <- r })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	for _, target := range targets {
		p.Add(target)
	}
	return results
}

func nextHealth(t *testing.T, results chan Result) translate.Health {
	t.Helper()
	select {
	case r := <-results:
		return r.Health
	case <-time.After(5 * time.Second):
		t.Fatal("no result")
		return translate.Health{}
	}
}

func TestANodeDrainsWhenKubeProxySaysSoAndComesBack(t *testing.T) {
	n := startKubeProxy(t, "127.0.0.51:10256")
	results := startProber(t, translate.Target{Address: netip.MustParseAddr("127.0.0.51")})
	n.set(http.StatusServiceUnavailable, "")
	require.Equal(t, translate.Health{State: model.Draining}, nextHealth(t, results))
	n.set(http.StatusOK, "")
	require.Equal(t, translate.Health{}, nextHealth(t, results))
}

func TestTheWeightIsTheNumberOfLocalEndpoints(t *testing.T) {
	m := startKubeProxy(t, "127.0.0.52:31999")
	results := startProber(t, translate.Target{Address: netip.MustParseAddr("127.0.0.52"), Kind: translate.CheckLocal, Port: 31999})
	m.set(http.StatusOK, "3")
	require.Equal(t, uint16(3), eventuallyWeight(t, results, 3))
	m.set(http.StatusServiceUnavailable, "0")
	require.Equal(t, model.Draining, nextHealth(t, results).State)
	require.NoError(t, m.server.Close())
	require.Equal(t, model.Unhealthy, nextHealth(t, results).State)
}

// eventuallyWeight skips answers from before the weight was set.
func eventuallyWeight(t *testing.T, results chan Result, want uint16) uint16 {
	for {
		if health := nextHealth(t, results); health.Weight == want {
			return want
		}
	}
}

func TestANodeThatRefusesIsAliveAndASilentNodeIsNot(t *testing.T) {
	alive := translate.Target{Address: netip.MustParseAddr("127.0.0.53")}
	// A listener that accepts no connection is as silent as a dead host.
	listener, err := net.Listen("tcp", "127.0.0.54:10256")
	require.NoError(t, err)
	t.Cleanup(func() { listener.Close() })
	silent := translate.Target{Address: netip.MustParseAddr("127.0.0.54")}
	results := startProber(t, alive, silent)
	r := <-results
	require.Equal(t, Result{silent, translate.Health{State: model.Unhealthy}}, r)
	require.Empty(t, results)
}

func TestAConnectCheckFollowsTheNodePort(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.55:0")
	require.NoError(t, err)
	_, text, err := net.SplitHostPort(listener.Addr().String())
	require.NoError(t, err)
	port, err := strconv.Atoi(text)
	require.NoError(t, err)
	results := startProber(t, translate.Target{Address: netip.MustParseAddr("127.0.0.55"), Kind: translate.CheckConnect, Port: uint16(port)})
	time.Sleep(100 * time.Millisecond)
	require.Empty(t, results)
	require.NoError(t, listener.Close())
	require.Equal(t, model.Unhealthy, nextHealth(t, results).State)
}

func TestHealthChecksFollowNoRedirect(t *testing.T) {
	redirected := make(chan string, 64)
	elsewhere, err := net.Listen("tcp", "127.0.0.57:0")
	require.NoError(t, err)
	inside := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { redirected <- r.URL.Path })}
	go inside.Serve(elsewhere)
	t.Cleanup(func() { inside.Close() })
	listener, err := net.Listen("tcp", "127.0.0.58:31998")
	require.NoError(t, err)
	requests := make(chan struct{}, 64)
	hostile := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+elsewhere.Addr().String()+"/debug/pprof/", http.StatusFound)
		requests <- struct{}{}
	})}
	go hostile.Serve(listener)
	t.Cleanup(func() { hostile.Close() })
	results := startProber(t, translate.Target{Address: netip.MustParseAddr("127.0.0.58"), Kind: translate.CheckLocal, Port: 31998})
	require.Equal(t, model.Draining, nextHealth(t, results).State)
	for range 3 {
		<-requests
	}
	require.Empty(t, redirected)
}

// Silent and slow nodes of a tenant must not delay the detection of dead nodes.
func TestSlowAndSilentTargetsDoNotDelayOthers(t *testing.T) {
	const many = 100
	n := startKubeProxy(t, "127.0.0.59:31997")
	n.set(http.StatusOK, "3")
	prompt := translate.Target{Address: netip.MustParseAddr("127.0.0.59"), Kind: translate.CheckLocal, Port: 31997}
	var requests atomic.Int64
	late := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		pause := 700 * time.Millisecond
		if requests.Add(1)%2 == 0 {
			pause = time.Minute
		}
		select {
		case <-time.After(pause):
		case <-r.Context().Done():
		}
	})}
	t.Cleanup(func() { late.Close() })
	targets := []translate.Target{prompt}
	for range many {
		listener, err := net.Listen("tcp", "127.0.0.60:0")
		require.NoError(t, err)
		go late.Serve(listener)
		at := netip.MustParseAddrPort(listener.Addr().String())
		targets = append(targets, translate.Target{Address: at.Addr(), Kind: translate.CheckLocal, Port: at.Port()})
	}
	results := startProberWithTimeout(t, time.Second, targets...)
	waitFor := func(want translate.Health) {
		for r := (Result{}); r.Target != prompt || r.Health != want; {
			r = <-results
		}
	}
	waitFor(translate.Health{Weight: 3})
	for requests.Load() < many/10 {
		time.Sleep(time.Millisecond)
	}
	require.NoError(t, n.server.Close())
	before := requests.Load()
	waitFor(translate.Health{State: model.Unhealthy, Weight: 3})
	require.Less(t, requests.Load()-before, int64(many/2), "it did not wait for most of the others")
}

func TestARemovedTargetIsNotCheckedAnyMore(t *testing.T) {
	var requests sync.Map
	listener, err := net.Listen("tcp", "127.0.0.56:10256")
	require.NoError(t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { requests.Store(time.Now(), true) })}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	p := New(Config{Interval: 10 * time.Millisecond, Timeout: 200 * time.Millisecond, Failures: 2, MaxConcurrent: 2}, func(Result) {})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	target := translate.Target{Address: netip.MustParseAddr("127.0.0.56")}
	p.Add(target)
	time.Sleep(100 * time.Millisecond)
	p.Remove(target)
	time.Sleep(300 * time.Millisecond)
	end := time.Now().Add(-200 * time.Millisecond)
	requests.Range(func(at, _ any) bool {
		require.True(t, at.(time.Time).Before(end), "checked after it was removed")
		return true
	})
	cancel()
	require.NoError(t, <-done)
}

func TestTargetsCanBeAddedWhileAReportIsHandled(t *testing.T) {
	node := startKubeProxy(t, "127.0.0.61:30999")
	node.set(http.StatusOK, "3")
	reported, resume := make(chan struct{}), make(chan struct{})
	p := New(Config{Interval: time.Hour, Timeout: time.Second, Failures: 2, MaxConcurrent: 4}, func(Result) {
		reported <- struct{}{}
		<-resume
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	target := translate.Target{Address: netip.MustParseAddr("127.0.0.61"), Kind: translate.CheckLocal, Port: 30999}
	p.Add(target)
	<-reported
	for port := range uint16(20_000) {
		p.Add(translate.Target{Address: target.Address, Kind: translate.CheckLocal, Port: port + 1})
		p.Remove(translate.Target{Address: target.Address, Kind: translate.CheckLocal, Port: port + 1})
	}
	close(resume)
	cancel()
	require.NoError(t, <-done)
}
