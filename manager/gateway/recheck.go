package gateway

import (
	"context"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
	"kubelb.k8c.io/backends/plugin"
)

const (
	// recheckEvery is how often the backend is asked again while something is missing without which nothing works, or while it could not be
	// asked. It is also how often this host is looked at: whether it has what the gateway needs, and whether sysctls of the backend have changed.
	recheckEvery = 30 * time.Second
	// recheckSeldom is how often the backend is asked else.
	recheckSeldom = 5 * time.Minute
	// recheckSoon is how often this host is looked at while the gateway lacks something without which it does not work.
	recheckSoon = 5 * time.Second
)

// findings are what the backend has found of this host. They belong to the gateway's loop.
type findings struct {
	// host is where the sysctls are.
	host   preflight.Host
	checks []dataplane.Check
	// settings are the values that the sysctls had then which the checks name.
	settings string
	// asked is when it was asked last, and failed that it could not answer: the checks are older then.
	asked  time.Time
	failed bool
}

// take takes over what the backend has found. If it could not answer, what was found before is the best that is known.
func (f *findings) take(checks []dataplane.Check, err error) {
	f.asked, f.failed = time.Now(), err != nil
	if err == nil {
		f.checks, f.settings = checks, f.host.SettingsOf(checks)
	}
}

// due tells whether it is time to ask again.
func (f *findings) due() bool {
	every := recheckSeldom
	if f.failed || dataplane.MissingError(f.checks) != nil {
		every = recheckEvery
	}
	return time.Since(f.asked) >= every
}

// look has the backend be asked at once if a sysctl has changed since.
func (f *findings) look() {
	if f.host.SettingsOf(f.checks) != f.settings {
		f.asked = time.Time{}
	}
}

// recheck has the backend be asked again when it is time, by answerRechecks, and once at a time: it may take longer than anything else may have to
// wait.
func (g *Gateway) recheck() {
	if !g.host.running() || g.rechecking || !g.host.found.due() {
		return
	}
	g.rechecking = true
	g.rechecks <- g.host.process
}

// askAgain asks a backend, each time that it is to be asked again, until ctx ends.
func (g *Gateway) askAgain(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case process := <-g.rechecks:
			checks, err := Preflight(ctx, process, g.options.Backend)
			g.send(ctx, func(g *Gateway) { g.rechecked(process, checks, err) })
		}
	}
}

// rechecked takes over what the backend has found, unless another process has been asked meanwhile, at its start.
func (g *Gateway) rechecked(process *plugin.Process, checks []dataplane.Check, err error) {
	g.rechecking = false
	if process != g.host.process {
		return
	}
	if err != nil {
		g.log.Debug("this host was not checked", "error", err)
	}
	g.host.found.take(checks, err)
}

// watchHost looks after what the gateway itself needs of this host, its state files and the sysctls of its backend, until ctx ends.
func (g *Gateway) watchHost(ctx context.Context) error {
	if g.options.HostChecks == nil {
		return nil
	}
	for {
		checks := g.options.HostChecks(ctx)
		g.holders.settle(g.options.Backend.name(), g.options.Backend.holder())
		g.send(ctx, func(g *Gateway) {
			g.hostChecks = checks
			g.host.found.look()
		})
		pause := recheckEvery
		if dataplane.MissingError(checks) != nil {
			pause = recheckSoon
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}
