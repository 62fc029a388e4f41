package cases

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

// C is one run of a case, in one address family. A failed assertion ends the run.
type C struct {
	*require.Assertions
	Lab *lab.Lab
	V4  bool
	// Patience is the patience of the lab.
	Patience lab.Patience
	// Gateway is the first of Gateways.
	Gateway  *Gateway
	Gateways []*Gateway
	// Description is the description of the tested backend.
	Description dataplane.Description

	ctx      context.Context
	backends Backends
	mu       sync.Mutex // guards what follows
	failures []string
	measured []string
	log      bytes.Buffer
	trace    strings.Builder
	cleanups []func()
}

// Outcome is the result of a run.
type Outcome struct {
	// Failures is empty if the run passed.
	Failures []string
	// Log has the lines that backend and case wrote, Trace the last packets at the gateways. Both are set if the run failed.
	Log, Trace string
	// Measured are measurements for the report, as sentences.
	Measured []string
	Duration time.Duration
}

// limit ends a run that hangs. The longest case (long-connections with Envoy) takes 46 s on an idle machine with two
// processors, and two minutes on a busy one.
const limit = 5 * time.Minute

// Run runs a case once. It needs root, and removes everything that it made.
func Run(ctx context.Context, c Case, backends Backends, v4 bool, p lab.Patience) Outcome {
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, p.For(limit))
	defer cancel()
	run := &C{V4: v4, Patience: p, ctx: ctx, backends: backends}
	run.Assertions = require.New(run)
	done := make(chan struct{})
	// FailNow ends the goroutine, as in package testing. Cleanups always run.
	go func() {
		defer close(done)
		defer run.cleanUp()
		defer run.recoverPanic()
		run.setUp(c)
		c.Run(run)
	}()
	<-done
	outcome := Outcome{Failures: run.failures, Measured: run.measured, Duration: time.Since(begin)}
	if len(outcome.Failures) > 0 {
		outcome.Log, outcome.Trace = run.log.String(), run.trace.String()
	}
	return outcome
}

func (c *C) recoverPanic() {
	if r := recover(); r != nil {
		c.Errorf("panic: %v\n%s", r, debug.Stack())
	}
}

// setUp builds the lab and starts the backend.
func (c *C) setUp(of Case) {
	var err error
	c.Lab, err = lab.New(c.Patience)
	c.NoError(err)
	c.Cleanup(func() {
		if err := c.Lab.Close(); err != nil {
			c.Errorf("remove the lab: %v", err)
		}
	})
	for i := range max(of.Gateways, 1) {
		g := &Gateway{c: c, Host: c.Lab.Gateways[i]}
		g.state = c.stateDir()
		c.Gateways = append(c.Gateways, g)
		if !of.Untraced {
			c.captureTrace(g)
		}
		g.Start()
	}
	c.Gateway = c.Gateways[0]
	c.Description, err = c.Gateway.Process.Describe(c.ctx)
	c.NoError(err)
}

// stateDir makes a directory for the state of a backend on a gateway.
func (c *C) stateDir() string {
	dir, err := os.MkdirTemp("", "klstate")
	c.NoError(err)
	c.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// traceLength is how many packets of each gateway a trace shows.
const traceLength = 60

// captureTrace captures the gateway's packets, which are shown if the run fails.
func (c *C) captureTrace(g *Gateway) {
	capture, err := g.Capture(nil)
	c.NoError(err)
	c.Cleanup(func() {
		packets := capture.Close()
		fmt.Fprintf(&c.trace, "the last packets at %s:\n", g.Name)
		for _, p := range packets[max(0, len(packets)-traceLength):] {
			fmt.Fprintln(&c.trace, p)
		}
	})
}

// Errorf records a failure, which becomes part of the report. It removes directories from source positions, so that the
// report does not show where the suite was built.
func (c *C) Errorf(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures = append(c.failures, sourcePath.ReplaceAllString(strings.TrimSpace(fmt.Sprintf(format, args...)), "$1"))
}

// sourcePath matches the absolute path of a source position. The group is the part that stays.
var sourcePath = regexp.MustCompile(`(?:/[^\s/:]+)+/([^\s/:]+\.(?:go|s):\d+)`)

// FailNow ends the run.
func (c *C) FailNow() { runtime.Goexit() }

// Cleanup registers f to run at the end, in reverse order of registration.
func (c *C) Cleanup(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cleanups = append(c.cleanups, f)
}

func (c *C) cleanUp() {
	for {
		c.mu.Lock()
		n := len(c.cleanups)
		if n == 0 {
			c.mu.Unlock()
			return
		}
		f := c.cleanups[n-1]
		c.cleanups = c.cleanups[:n-1]
		c.mu.Unlock()
		f()
	}
}

// Write appends to the log. Backends write their logs to it.
func (c *C) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.log.Write(p)
}

// Logf writes to the log, which is shown when the run fails.
func (c *C) Logf(format string, args ...any) { fmt.Fprintf(c, format+"\n", args...) }

// Measuref records a measurement for the report.
func (c *C) Measuref(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.measured = append(c.measured, fmt.Sprintf(format, args...))
}

// VIP returns the i-th external address of the run's family.
func (c *C) VIP(i int) netip.Addr { return lab.VIP(c.V4, i) }

// At returns a port of the i-th external address.
func (c *C) At(vip int, port uint16) netip.AddrPort { return netip.AddrPortFrom(c.VIP(vip), port) }

// Serve starts servers on the port of all nodes.
func (c *C) Serve(port uint16) (servers []*lab.Server) {
	for i := range c.Lab.Nodes {
		servers = append(servers, c.ServeOn(i, port))
	}
	return servers
}

// ServeOn starts a server on the port of one node.
func (c *C) ServeOn(node int, port uint16) *lab.Server {
	s, err := c.Lab.Nodes[node].Serve(port)
	c.NoError(err)
	c.Cleanup(func() { s.Close() })
	return s
}

// Pool returns a pool of tenant t with the endpoints of these numbers.
func (c *C) Pool(id string, endpoints ...int) model.Pool {
	p := model.Pool{ID: model.PoolID("t/" + id), Tenant: "t"}
	for _, i := range endpoints {
		a := lab.EndpointAddress(c.V4, i)
		p.Endpoints = append(p.Endpoints, model.Endpoint{ID: a.String(), Address: a, Weight: 1})
	}
	return model.Snapshot{Pools: []model.Pool{p}}.Canonical().Pools[0]
}

// Frontend returns a frontend for a port of an external address, with a pool of tenant t.
func (c *C) Frontend(protocol model.Protocol, vip int, port, target uint16, pool string) model.Frontend {
	return model.Frontend{
		FrontendKey: model.FrontendKey{VIP: c.VIP(vip), Protocol: protocol, Port: port},
		Owner:       model.ObjectName{Namespace: "tenant-t", Name: "lb"}, Tenant: "t", Pool: model.PoolID("t/" + pool), TargetPort: target,
	}
}

// Apply makes every gateway hold exactly these records.
func (c *C) Apply(pools []model.Pool, frontends ...model.Frontend) {
	for _, g := range c.Gateways {
		g.Apply(model.Snapshot{Pools: pools, Frontends: frontends})
	}
}

// Request makes n new flows from client a. It returns how many of them each endpoint answered, by the endpoint's number.
func (c *C) Request(n int, network string, to netip.AddrPort) map[int]int {
	answers, err := c.Lab.A.RequestTimes(n, network, to)
	c.NoError(err)
	return c.Count(answers)
}

// Count returns how many answers came from each endpoint, by the endpoint's number.
func (c *C) Count(answers []lab.Answer) map[int]int {
	counts := map[int]int{}
	for _, a := range answers {
		counts[c.Number(a.Endpoint)]++
	}
	return counts
}

// Number returns the number of the endpoint with the address.
func (c *C) Number(address netip.Addr) int {
	for i := range lab.MaxEndpoints {
		if lab.EndpointAddress(c.V4, i) == address {
			return i
		}
	}
	c.Errorf("%s is no endpoint", address)
	c.FailNow()
	return -1
}

// MustRefuse requires that the port is not served, as every backend must do it: a connection is refused or ended within a
// second, a datagram gets no answer.
func (c *C) MustRefuse(network string, to netip.AddrPort) {
	r := c.Lab.A.Refused(network, to)
	c.Error(r.Err, "%s %s is served", network, to)
	if network == "tcp" {
		c.True(r.Outright || r.Ended, "%s %s: %v", network, to, r.Err)
		c.Less(r.After, c.Patience.For(time.Second), "%s %s is refused too slowly", network, to)
	}
}

// MustRefuseOutright requires a reset of the first packet, or an ICMP error, within a second.
func (c *C) MustRefuseOutright(network string, to netip.AddrPort) {
	r := c.Lab.A.Refused(network, to)
	c.True(r.Outright, "%s %s: %v", network, to, r.Err)
	c.Less(r.After, c.Patience.For(time.Second), "%s %s is refused too slowly", network, to)
}

// networks are the names of both protocols in package net.
var networks = [...]string{"tcp", "udp"}

// Gateway is a host that runs the backend.
type Gateway struct {
	*lab.Host
	Process Process

	c     *C
	state string
	next  uint64
}

// Start starts and configures the backend, as a gateway that starts does. It applies nothing.
func (g *Gateway) Start() { g.start(g.c.backends.Tested) }

// Upgrade starts the other build of the backend.
func (g *Gateway) Upgrade() { g.start(g.c.backends.Next) }

// Switch replaces the backend by another one, as a gateway does it: it starts the new one, calls apply to give it all
// records, and then purges the old one. It calls meanwhile repeatedly until the purge is done.
func (g *Gateway) Switch(to Backend, apply, meanwhile func()) {
	before := g.Process
	g.state = g.c.stateDir()
	g.start(to)
	apply()
	meanwhile()
	purged := make(chan error, 1)
	go func() { purged <- before.Close(g.c.ctx, true) }()
	for {
		select {
		case err := <-purged:
			g.c.NoError(err)
			before.Stop()
			return
		case <-time.After(100 * time.Millisecond):
			meanwhile()
		}
	}
}

func (g *Gateway) start(backend Backend) {
	var err error
	g.Process, err = g.load(backend)
	g.c.NoError(err)
	g.c.NoError(g.configure(g.Process))
	g.watch(g.Process)
}

// watch runs the backend's Watch until the case ends, as a gateway does.
func (g *Gateway) watch(p Process) {
	ctx, stop := context.WithCancel(g.c.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := p.Watch(ctx, func(f dataplane.Fault) { fmt.Fprintf(g.c, "the backend reports: %s\n", f.Message) })
		if err != nil && ctx.Err() == nil {
			fmt.Fprintf(g.c, "Watch: %v\n", err)
		}
	}()
	g.c.Cleanup(func() {
		stop()
		<-done
	})
}

// load starts a process and registers its end.
func (g *Gateway) load(backend Backend) (Process, error) {
	p, err := backend.Start(g.c.ctx, g.Namespace, g.c)
	if err == nil {
		g.c.Cleanup(p.Stop)
	}
	return p, err
}

func (g *Gateway) configure(p Process) error {
	return p.Configure(g.c.ctx, dataplane.Config{Node: g.Name, StateDir: g.state})
}

// Apply sends the difference between the snapshot and what the dataplane holds. It requires that no record fails.
func (g *Gateway) Apply(s model.Snapshot) dataplane.Change {
	result, change, err := g.TryApply(s)
	g.c.NoError(err)
	g.c.Empty(result.Failed)
	return change
}

// TryApply is like Apply, but returns the result.
func (g *Gateway) TryApply(s model.Snapshot) (dataplane.Result, dataplane.Change, error) {
	held, err := g.Process.Applied(g.c.ctx)
	if err != nil {
		return dataplane.Result{}, dataplane.Change{}, err
	}
	change := dataplane.Change{Base: held.Generation, Next: g.generation(), Delta: model.Difference(held.Digests, s)}
	result, err := g.Process.Apply(g.c.ctx, change)
	return result, change, err
}

// Change sends the delta as it is, which need not be the difference to what the dataplane holds.
func (g *Gateway) Change(d model.Delta) (dataplane.Result, error) {
	held, err := g.Process.Applied(g.c.ctx)
	if err != nil {
		return dataplane.Result{}, err
	}
	return g.Process.Apply(g.c.ctx, dataplane.Change{Base: held.Generation, Next: g.generation(), Delta: d})
}

// generation returns the next generation.
func (g *Gateway) generation() dataplane.Generation {
	g.next++
	return dataplane.Generation{Epoch: "conformance", Number: g.next}
}
