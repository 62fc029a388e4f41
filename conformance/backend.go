package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/plugin"
	"kubelb.k8c.io/conformance/cases"
	"kubelb.k8c.io/conformance/netlab"
	"kubelb.k8c.io/core/model"
)

// Plugin is the path of a plugin's binary.
type Plugin string

// Start runs the binary in the gateway's namespace, as a gateway does.
func (p Plugin) Start(_ context.Context, gateway *netlab.Namespace, log io.Writer) (cases.Process, error) {
	dir, err := netlab.TempDir()
	if err != nil {
		return nil, err
	}
	if len(dir) > longestSocketDir {
		return nil, errors.Join(fmt.Errorf("the path %s is too long for sockets: set TMPDIR to a shorter one", dir), os.RemoveAll(dir))
	}
	process := pluginProcess{sockets: dir}
	err = gateway.Do(func() (err error) {
		process.Process, err = plugin.Load(plugin.Options{Path: string(p), SocketDir: filepath.Join(dir, "run"), Log: log})
		return err
	})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return process, nil
}

// longestSocketDir is the longest path of a directory for sockets. The path of a socket has at most 107 bytes, of which go-plugin chooses up to 20.
const longestSocketDir = 87

type pluginProcess struct {
	*plugin.Process
	sockets string
}

// Stop ends the process in good order.
func (p pluginProcess) Stop() {
	p.Process.Stop()
	os.RemoveAll(p.sockets)
}

// WithOptions returns the backend with options, as --backend-option of a gateway sets them.
func WithOptions(b cases.Backend, options map[string]string) cases.Backend {
	return backendWithOptions{b, options}
}

type backendWithOptions struct {
	cases.Backend
	options map[string]string
}

// Start starts the backend. Configure adds the options.
func (o backendWithOptions) Start(ctx context.Context, gateway *netlab.Namespace, log io.Writer) (cases.Process, error) {
	p, err := o.Backend.Start(ctx, gateway, log)
	return processWithOptions{p, o.options}, err
}

type processWithOptions struct {
	cases.Process
	options map[string]string
}

// Preflight adds the options.
func (p processWithOptions) Preflight(ctx context.Context, config dataplane.Config) ([]dataplane.Check, error) {
	config.Options = p.with(config.Options)
	return p.Process.Preflight(ctx, config)
}

// Configure adds the options.
func (p processWithOptions) Configure(ctx context.Context, config dataplane.Config) error {
	config.Options = p.with(config.Options)
	return p.Process.Configure(ctx, config)
}

// with returns the options of the process and of a case.
func (p processWithOptions) with(more map[string]string) map[string]string {
	all := map[string]string{}
	maps.Copy(all, p.options)
	maps.Copy(all, more)
	return all
}

// InProcess makes a dataplane in the test's own process. It is quicker to debug, but cannot be killed.
type InProcess func() dataplane.Dataplane

// Start makes a dataplane with the same checks as plugin.Serve. All its calls run inside the gateway's namespace.
func (f InProcess) Start(_ context.Context, gateway *netlab.Namespace, _ io.Writer) (cases.Process, error) {
	return inProcess{dataplane.Checked(f()), gateway}, nil
}

type inProcess struct {
	dataplane.Dataplane
	gateway *netlab.Namespace
}

// Kill is not supported: the dataplane has no process of its own.
func (p inProcess) Kill() error {
	return fmt.Errorf("a dataplane in the test's own process: %w", errors.ErrUnsupported)
}

// Stop does nothing. The dataplane keeps its records.
func (p inProcess) Stop() {}

// ExitStatus is empty: the dataplane has no process of its own.
func (p inProcess) ExitStatus() string { return "" }
func (p inProcess) Preflight(ctx context.Context, config dataplane.Config) (checks []dataplane.Check, err error) {
	err = p.gateway.Do(func() error {
		checks, err = p.Dataplane.Preflight(ctx, config)
		return err
	})
	return checks, err
}

func (p inProcess) Configure(ctx context.Context, config dataplane.Config) error {
	return p.gateway.Do(func() error { return p.Dataplane.Configure(ctx, config) })
}

func (p inProcess) Applied(ctx context.Context) (applied dataplane.Applied, err error) {
	err = p.gateway.Do(func() error {
		applied, err = p.Dataplane.Applied(ctx)
		return err
	})
	return applied, err
}

func (p inProcess) Apply(ctx context.Context, change dataplane.Change) (result dataplane.Result, err error) {
	err = p.gateway.Do(func() error {
		result, err = p.Dataplane.Apply(ctx, change)
		return err
	})
	return result, err
}

func (p inProcess) Render(ctx context.Context, snapshot model.Snapshot) (text string, err error) {
	err = p.gateway.Do(func() error {
		text, err = p.Dataplane.Render(ctx, snapshot)
		return err
	})
	return text, err
}

func (p inProcess) Stats(ctx context.Context) (stats dataplane.Stats, err error) {
	err = p.gateway.Do(func() error {
		stats, err = p.Dataplane.Stats(ctx)
		return err
	})
	return stats, err
}

func (p inProcess) Watch(ctx context.Context, report func(dataplane.Fault)) error {
	return p.gateway.Do(func() error { return p.Dataplane.Watch(ctx, report) })
}

func (p inProcess) Close(ctx context.Context, purge bool) error {
	return p.gateway.Do(func() error { return p.Dataplane.Close(ctx, purge) })
}
