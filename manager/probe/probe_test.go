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

// node is a kube-proxy on a loopback address that answers as it is told.
type node struct {
	mu     sync.Mutex // guards status and weight
	status int
	weight string
	server *http.Server
}

func (n *node) set(status int, weight string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.status, n.weight = status, weight
}

func startNode(t *testing.T, hostPort string) *node {
	t.Helper()
	listener, err := net.Listen("tcp", hostPort)
	require.NoError(t, err)
	n := &node{status: http.StatusOK}
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

// probing runs a prober and returns its results.
func probing(t *testing.T, targets ...translate.Target) chan Result {
	t.Helper()
	return probingFor(t, 200*time.Millisecond, targets...)
}

func probingFor(t *testing.T, timeout time.Duration, targets ...translate.Target) chan Result {
	t.Helper()
	results := make(chan Result, 1024)
	p := New(Config{Interval: 20 * time.Millisecond, Timeout: timeout, Failures: 2, AtOnce: 4}, func(r Result) { results <- r })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	for _, target := range targets {
		p.Watch(target)
	}
	return results
}

func next(t *testing.T, results chan Result) translate.Health {
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
	n := startNode(t, "127.0.0.51:10256")
	results := probing(t, translate.Target{Address: netip.MustParseAddr("127.0.0.51")})
	n.set(http.StatusServiceUnavailable, "")
	require.Equal(t, translate.Health{State: model.Draining}, next(t, results))
	n.set(http.StatusOK, "")
	require.Equal(t, translate.Health{}, next(t, results))
}

func TestLocalEndpointsAreTheWeight(t *testing.T) {
	m := startNode(t, "127.0.0.52:31999")
	results := probing(t, translate.Target{Address: netip.MustParseAddr("127.0.0.52"), Kind: translate.CheckLocal, Port: 31999})
	m.set(http.StatusOK, "3")
	require.Equal(t, uint16(3), eventuallyWeight(t, results, 3))
	m.set(http.StatusServiceUnavailable, "0")
	require.Equal(t, model.Draining, next(t, results).State)
	require.NoError(t, m.server.Close())
	require.Equal(t, model.Unhealthy, next(t, results).State)
}

// eventuallyWeight passes over the answer from before the weight was set.
func eventuallyWeight(t *testing.T, results chan Result, want uint16) uint16 {
	for {
		if health := next(t, results); health.Weight == want {
			return want
		}
	}
}

func TestANodeThatRefusesIsAliveAndOneThatIsSilentIsNot(t *testing.T) {
	alive := translate.Target{Address: netip.MustParseAddr("127.0.0.53")}
	// A listener whose queue is full is as silent as a dead host.
	listener, err := net.Listen("tcp", "127.0.0.54:10256")
	require.NoError(t, err)
	t.Cleanup(func() { listener.Close() })
	silent := translate.Target{Address: netip.MustParseAddr("127.0.0.54")}
	results := probing(t, alive, silent)
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
	results := probing(t, translate.Target{Address: netip.MustParseAddr("127.0.0.55"), Kind: translate.CheckConnect, Port: uint16(port)})
	time.Sleep(100 * time.Millisecond)
	require.Empty(t, results)
	require.NoError(t, listener.Close())
	require.Equal(t, model.Unhealthy, next(t, results).State)
}

func TestNobodyElseIsAskedWhereverAnAnswerLeads(t *testing.T) {
	other := make(chan string, 64)
	elsewhere, err := net.Listen("tcp", "127.0.0.57:0")
	require.NoError(t, err)
	inside := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { other <- r.URL.Path })}
	go inside.Serve(elsewhere)
	t.Cleanup(func() { inside.Close() })
	listener, err := net.Listen("tcp", "127.0.0.58:31998")
	require.NoError(t, err)
	asked := make(chan struct{}, 64)
	hostile := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+elsewhere.Addr().String()+"/debug/pprof/", http.StatusFound)
		asked <- struct{}{}
	})}
	go hostile.Serve(listener)
	t.Cleanup(func() { hostile.Close() })
	results := probing(t, translate.Target{Address: netip.MustParseAddr("127.0.0.58"), Kind: translate.CheckLocal, Port: 31998})
	require.Equal(t, model.Draining, next(t, results).State)
	for range 3 {
		<-asked
	}
	require.Empty(t, other)
}

// A tenant with many nodes that are silent, or answer late, must not have others wait until their dead nodes are found.
func TestManyThatAnswerLateOrNeverKeepNobodyWaiting(t *testing.T) {
	const many = 100
	n := startNode(t, "127.0.0.59:31997")
	n.set(http.StatusOK, "3")
	prompt := translate.Target{Address: netip.MustParseAddr("127.0.0.59"), Kind: translate.CheckLocal, Port: 31997}
	var asked atomic.Int64
	late := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		pause := 700 * time.Millisecond
		if asked.Add(1)%2 == 0 {
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
	results := probingFor(t, time.Second, targets...)
	of := func(want translate.Health) {
		for r := (Result{}); r.Target != prompt || r.Health != want; {
			r = <-results
		}
	}
	of(translate.Health{Weight: 3})
	for asked.Load() < many/10 {
		time.Sleep(time.Millisecond)
	}
	require.NoError(t, n.server.Close())
	before := asked.Load()
	of(translate.Health{State: model.Unhealthy, Weight: 3})
	require.Less(t, asked.Load()-before, int64(many/2), "of so many others it did not have to wait")
}

func TestAForgottenTargetIsAskedNoMore(t *testing.T) {
	var asked sync.Map
	listener, err := net.Listen("tcp", "127.0.0.56:10256")
	require.NoError(t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked.Store(time.Now(), true) })}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	p := New(Config{Interval: 10 * time.Millisecond, Timeout: 200 * time.Millisecond, Failures: 2, AtOnce: 2}, func(Result) {})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	target := translate.Target{Address: netip.MustParseAddr("127.0.0.56")}
	p.Watch(target)
	time.Sleep(100 * time.Millisecond)
	p.Forget(target)
	time.Sleep(300 * time.Millisecond)
	end := time.Now().Add(-200 * time.Millisecond)
	asked.Range(func(at, _ any) bool {
		require.True(t, at.(time.Time).Before(end), "asked after it was forgotten")
		return true
	})
	cancel()
	require.NoError(t, <-done)
}

func TestWhoIsToldCanNameAnyNumberOfTargetsMeanwhile(t *testing.T) {
	node := startNode(t, "127.0.0.61:30999")
	node.set(http.StatusOK, "3")
	told, goOn := make(chan struct{}), make(chan struct{})
	p := New(Config{Interval: time.Hour, Timeout: time.Second, Failures: 2, AtOnce: 4}, func(Result) {
		told <- struct{}{}
		<-goOn
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	target := translate.Target{Address: netip.MustParseAddr("127.0.0.61"), Kind: translate.CheckLocal, Port: 30999}
	p.Watch(target)
	<-told
	for port := range uint16(20_000) {
		p.Watch(translate.Target{Address: target.Address, Kind: translate.CheckLocal, Port: port + 1})
		p.Forget(translate.Target{Address: target.Address, Kind: translate.CheckLocal, Port: port + 1})
	}
	close(goOn)
	cancel()
	require.NoError(t, <-done)
}
