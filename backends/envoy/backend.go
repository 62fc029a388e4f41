package envoy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/envoy/supervisor"
	"kubelb.k8c.io/core/model"
)

// Version is this backend's version.
const Version = "0.1.0"

// The backend options.
const (
	optionEnvoy = "envoy-path"
	optionTable = "table"
)

// Backend implements dataplane.Dataplane. Its zero value is ready.
type Backend struct {
	dir        supervisor.Dir
	state      *store
	xds        *xds
	guard      *guard
	serving    bool
	departures departures
	// stop ends the sweeper when it is closed.
	stop chan struct{}
	// mu keeps the sweeper out while a call runs.
	mu         sync.Mutex
	generation dataplane.Generation
}

var _ dataplane.Dataplane = (*Backend)(nil)

// Describe tells name, version and features.
func (b *Backend) Describe(context.Context) (dataplane.Description, error) {
	return dataplane.Description{Name: "envoy", Version: Version, Features: []dataplane.Feature{
		dataplane.SourceRanges, dataplane.Affinity, dataplane.Weights, dataplane.Drain, dataplane.ICMPEcho, dataplane.PathMTU, dataplane.ProxyProtocol}}, nil
}

// Configure takes over what an earlier process left, and sees that an Envoy runs.
func (b *Backend) Configure(_ context.Context, config dataplane.Config) error {
	for option := range config.Options {
		if option != optionEnvoy && option != optionTable {
			return fmt.Errorf("backend option %q: the Envoy backend knows %q and %q", option, optionEnvoy, optionTable)
		}
	}
	envoy, err := findEnvoy(config.Options[optionEnvoy])
	if err != nil {
		return err
	}
	b.dir = supervisor.Dir(filepath.Join(config.StateDir, "envoy"))
	if err := os.MkdirAll(string(b.dir), 0o700); err != nil {
		return err
	}
	if b.state, err = openStore(filepath.Join(string(b.dir), "state.json")); err != nil {
		return err
	}
	name := config.Options[optionTable]
	if name == "" {
		name = "kubelb-envoy"
	}
	b.guard, b.xds, b.departures = newGuard(name), newXDS(), newDepartures()
	if b.state.known {
		if err := b.takeOver(); err != nil {
			return err
		}
	}
	return b.ensureEnvoy(envoy)
}

// takeOver serves what an earlier process served.
func (b *Backend) takeOver() error {
	var all []guarded
	for _, f := range b.state.frontends {
		all = append(all, guarded{f, !b.state.empty(f)})
	}
	if _, err := b.push(slices.Collect(maps.Keys(b.state.frontends)), nil); err != nil {
		return err
	}
	if err := b.guard.install(all); err != nil {
		return err
	}
	return b.serve()
}

func (b *Backend) serve() error {
	if b.serving {
		return nil
	}
	b.serving, b.stop = true, make(chan struct{})
	go b.sweep(b.stop)
	return b.xds.serve(b.dir.XDS())
}

// findEnvoy finds Envoy's binary: where the option says, beside this one, or where packages put it.
func findEnvoy(option string) (string, error) {
	candidates := []string{option}
	if option == "" {
		candidates = []string{beside("envoy"), "/usr/local/bin/envoy", "/usr/bin/envoy"}
	}
	for _, path := range candidates {
		if found, err := exec.LookPath(path); err == nil {
			return filepath.Abs(found)
		}
	}
	return "", fmt.Errorf("no Envoy in any of %v: install one, or name it by --backend-option %s=/path/to/envoy", candidates, optionEnvoy)
}

// beside is the path of a binary that was installed together with this one.
func beside(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}

// ensureEnvoy starts the supervisor if none runs: its binary lies beside this one.
func (b *Backend) ensureEnvoy(envoy string) error {
	pid, err := b.dir.Running()
	if err != nil || pid != 0 {
		return err
	}
	binary := beside("kubelb-envoy")
	if _, err := os.Stat(binary); err != nil {
		return fmt.Errorf("kubelb-envoy, which starts Envoy, is not beside this plugin: install both together: %w", err)
	}
	return b.dir.Start(binary, envoy)
}

// Applied returns the digests of what Envoy was given.
func (b *Backend) Applied(context.Context) (dataplane.Applied, error) {
	digests := b.state.snapshot().Digests()
	for key := range b.state.pending {
		delete(digests.Frontends, key)
	}
	return dataplane.Applied{Generation: b.generation, Digests: digests}, nil
}

// Apply gives Envoy what differs, and returns when Envoy has taken or refused it.
func (b *Backend) Apply(ctx context.Context, c dataplane.Change) (dataplane.Result, error) {
	if b.state == nil {
		return dataplane.Result{}, errors.New("apply before configure")
	}
	if c.Base != b.generation {
		return dataplane.Result{}, fmt.Errorf("at %s, asked to go on from %s: %w", b.generation, c.Base, dataplane.ErrResync)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	a := newApply(b, c)
	if err := a.run(ctx); err != nil {
		return dataplane.Result{}, err
	}
	b.generation = c.Next
	return dataplane.Result{Generation: c.Next, Operations: a.operations, Failed: a.failed}, nil
}

// push puts the resources of frontends into the caches, and takes those of others out.
func (b *Backend) push(changed, gone []model.FrontendKey) (pushed, error) {
	now := time.Now()
	byKind := map[string]map[string]types.Resource{}
	for _, kind := range kinds {
		byKind[kind] = map[string]types.Resource{}
	}
	for _, key := range changed {
		f := b.state.frontends[key]
		r := render(f, b.state.pools[f.Pool], b.departures.note(f, b.state.pools[f.Pool], now))
		name := key.String()
		byKind[resource.ClusterType][name], byKind[resource.EndpointType][name], byKind[resource.ListenerType][name] = r.cluster, r.assignment, r.listener
	}
	var names []string
	for _, key := range gone {
		names = append(names, key.String())
		b.departures.forget(key)
	}
	p := pushed{}
	for _, kind := range kinds {
		want, err := b.xds.update(kind, byKind[kind], names)
		if err != nil {
			return nil, err
		}
		p[kind] = want
	}
	return p, nil
}

// pushed is what Envoy is to take, by kind.
type pushed map[string][]named

// watchInterval is how often Watch looks for Envoy.
const watchInterval = 2 * time.Second

// Watch reports an Envoy that is gone.
func (b *Backend) Watch(ctx context.Context, report func(dataplane.Fault)) error {
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			if pid, err := b.dir.Running(); err == nil && pid == 0 {
				report(dataplane.Fault{Time: now, Message: "kubelb-envoy does not run"})
			}
		}
	}
}

// Close leaves Envoy as it is, or with purge ends it and removes everything.
func (b *Backend) Close(ctx context.Context, purge bool) error {
	if b.xds == nil {
		return nil
	}
	if b.serving {
		close(b.stop)
	}
	b.xds.close()
	if !purge {
		return nil
	}
	if err := errors.Join(b.guard.remove(), b.dir.Stop(ctx), os.RemoveAll(string(b.dir))); err != nil {
		return err
	}
	b.state = nil
	return nil
}

// sortedKeys are the keys in the model's order.
func sortedKeys(m map[model.FrontendKey]bool) []model.FrontendKey {
	return slices.SortedFunc(maps.Keys(m), model.FrontendKey.Compare)
}
