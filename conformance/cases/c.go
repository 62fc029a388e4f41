package cases

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/conformance/netlab"
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
	activity *Activity
	cleaning sync.Mutex // is held while cleanups run
	starting sync.WaitGroup
	mu       sync.Mutex // guards what follows
	failures []Failure
	hung     string
	deaths   []Death
	measured []string
	log      bytes.Buffer
	trace    strings.Builder
	captures []traced
	cleanups []func()
	// killAll kills all processes on the hosts. It is nil while there are no hosts.
	killAll func() error
	// givenUp: nobody waits for the goroutine of the case any more.
	givenUp bool
	// changes is the number of changes, of allChanges if that is known.
	changes, allChanges int
}

// setUp builds the lab and starts the backend.
func (c *C) setUp(of Case) {
	c.doing("building the lab")
	var err error
	c.Lab, err = lab.New(c.Patience)
	c.NoError(err)
	c.useLab(c.Lab.EndProcesses, c.Lab.Close)
	for i := range max(of.Gateways, 1) {
		g := c.gateway(i)
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

// gateway returns a gateway that has not started the backend.
func (c *C) gateway(number int) *Gateway {
	return &Gateway{c: c, Host: c.Lab.Gateways[number], state: c.stateDir(), epoch: dataplane.NewEpoch(time.Now())}
}

// stateDir makes a directory for the state of a gateway.
func (c *C) stateDir() string {
	dir, err := netlab.TempDir()
	c.NoError(err)
	c.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// captureTrace captures the gateway's packets until the first failure.
func (c *C) captureTrace(g *Gateway) {
	capture, err := g.Capture(nil)
	c.NoError(err)
	c.mu.Lock()
	c.captures = append(c.captures, traced{shortName(g.Namespace), capture})
	c.mu.Unlock()
	c.Cleanup(func() { capture.Close() })
}

// FailNow ends the run.
func (c *C) FailNow() { runtime.Goexit() }

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
	c.doing("starting a server on port %d of node %d", port, node)
	s, err := c.Lab.Nodes[node].Serve(port)
	c.NoError(err)
	c.Cleanup(func() { s.Close() })
	return s
}

// Pool returns a pool of the usual tenant with the endpoints of these numbers.
func (c *C) Pool(id string, endpoints ...int) model.Pool {
	p := model.Pool{ID: c.PoolID(tenant, id), Tenant: tenant}
	for _, i := range endpoints {
		a := lab.EndpointAddress(c.V4, i)
		p.Endpoints = append(p.Endpoints, model.Endpoint{ID: a.String(), Address: a, Weight: 1})
	}
	return model.Snapshot{Pools: []model.Pool{p}}.Canonical().Pools[0]
}

// Frontend returns a frontend for a port of an external address, with a pool of the usual tenant.
func (c *C) Frontend(protocol model.Protocol, vip int, port, target uint16, pool string) model.Frontend {
	f := model.Frontend{FrontendKey: model.FrontendKey{VIP: c.VIP(vip), Protocol: protocol, Port: port}, TargetPort: target}
	c.give(&f, tenant, pool)
	return f
}

// Apply makes every gateway hold exactly these records.
func (c *C) Apply(pools []model.Pool, frontends ...model.Frontend) {
	for _, g := range c.Gateways {
		g.Apply(model.Snapshot{Pools: pools, Frontends: frontends})
	}
}

// Request makes n new flows from client a. It returns how many of them each endpoint answered, by the endpoint's number.
func (c *C) Request(n int, network string, to netip.AddrPort) map[int]int {
	c.doing("%s to %s", count(n, network+" flow"), to)
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
	c.doing("a %s flow to %s, which is not served", network, to)
	r := c.Lab.A.Refused(network, to)
	c.Error(r.Err, "%s %s is served", network, to)
	if network == "tcp" {
		c.True(r.Outright || r.Ended, "%s %s: %v", network, to, r.Err)
		c.Less(r.After, c.Patience.For(time.Second), "%s %s is refused too slowly", network, to)
	}
}

// MustRefuseOutright requires a reset of the first packet, or an ICMP error, within a second.
func (c *C) MustRefuseOutright(network string, to netip.AddrPort) {
	c.doing("a %s flow to %s, which is refused", network, to)
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

	c *C
	// state is the directory of the gateway, in which each backend has one of its own.
	state string
	// epoch and next count generations, as a manager does. They continue when the backend is started again.
	epoch string
	next  uint64
	// own are the processes of the backend that began with it, as pieces of a footprint. Others that it starts are the dataplane's.
	own []string
	// faults are what the backend has reported.
	faults faultLog
}

// Start starts and configures the backend, as a gateway that starts does. It applies nothing.
func (g *Gateway) Start() { g.start(g.c.backends.Tested) }

// Upgrade starts the other build of the backend, as the next build of the manager does.
func (g *Gateway) Upgrade() {
	g.epoch, g.next = dataplane.NewEpoch(time.Now()), 0
	g.start(g.c.backends.Next)
}

// Switch replaces the backend by another one, as a gateway does it: it starts the new one, calls apply to give it all
// records, and then purges the old one. It calls meanwhile repeatedly until the purge is done and the grace of connections is
// over. grace returns whether that is not over yet.
func (g *Gateway) Switch(to Backend, apply func(), meanwhile func(grace func() bool)) {
	before := g.Process
	g.start(to)
	apply()
	meanwhile(func() bool { return true })
	begun := time.Now()
	grace := func() bool { return time.Since(begun) < dataplane.PurgeGrace }
	purged := make(chan error, 1)
	go func() { purged <- before.Close(g.c.ctx, true) }()
	for done := false; !done || grace(); {
		select {
		case err := <-purged:
			g.c.NoError(err)
			before.Stop()
			done = true
		case <-time.After(100 * time.Millisecond):
			meanwhile(grace)
		}
	}
}

func (g *Gateway) start(backend Backend) {
	before, err := g.Host.ProcessPieces()
	g.c.NoError(err)
	g.Process, err = g.load(backend)
	g.c.NoError(err)
	after, err := g.Host.ProcessPieces()
	g.c.NoError(err)
	for _, p := range after.Added(before) {
		g.own = append(g.own, p.String())
	}
	g.c.NoError(g.configure(g.Process))
	g.watch(g.Process)
}

// watch runs the backend's Watch until the case ends, as a gateway does.
func (g *Gateway) watch(p Process) {
	ctx, stop := context.WithCancel(g.c.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := p.Watch(ctx, func(f dataplane.Fault) {
			fmt.Fprintf(g.c, "the backend reports: %s\n", f.Message)
			g.faults.add(f)
		})
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
	p, err := load(g.c, backend, g.Namespace)
	if err != nil {
		return nil, err
	}
	g.c.Cleanup(p.Stop)
	return p, nil
}

// configure makes the calls of a gateway that starts.
func (g *Gateway) configure(p Process) error {
	config, err := g.config(p)
	if err != nil {
		return err
	}
	if _, err := p.Preflight(g.c.ctx, config); err != nil {
		return fmt.Errorf("preflight: %w", err)
	}
	return p.Configure(g.c.ctx, config)
}

// config returns the configuration of a backend on this gateway.
func (g *Gateway) config(p Process) (dataplane.Config, error) {
	description, err := p.Describe(g.c.ctx)
	return dataplane.Config{StateDir: filepath.Join(g.state, description.Name)}, err
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
	return dataplane.Generation{Epoch: g.epoch, Number: g.next}
}
