package driver

import (
	"context"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
)

const (
	// recheckInterval is how often the preflight is repeated while something required is missing, or after it has failed.
	recheckInterval = 30 * time.Second
	// slowRecheckInterval is how often it is repeated otherwise.
	slowRecheckInterval = 5 * time.Minute
)

// preflightResult is what the plugin has found of this host. It belongs to the gateway's loop.
type preflightResult struct {
	// host is where the sysctls are.
	host   preflight.Host
	checks []dataplane.Check
	// settings are the values of the sysctls that the checks name, at the time of the checks.
	settings string
	// lastRun is the time of the last preflight. failed: it returned no checks, so that the checks are older.
	lastRun time.Time
	failed  bool
}

// set takes over the result of a preflight. If it failed, the former checks stay.
func (p *preflightResult) set(checks []dataplane.Check, err error) {
	p.lastRun, p.failed = time.Now(), err != nil
	if err == nil {
		p.checks, p.settings = checks, p.host.SettingsOf(checks)
	}
}

// due reports whether it is time to repeat the preflight.
func (p *preflightResult) due() bool {
	interval := slowRecheckInterval
	if p.failed || dataplane.MissingError(p.checks) != nil {
		interval = recheckInterval
	}
	return time.Since(p.lastRun) >= interval
}

// checkSettings makes the preflight due if a sysctl has changed since.
func (p *preflightResult) checkSettings() {
	if p.host.SettingsOf(p.checks) != p.settings {
		p.lastRun = time.Time{}
	}
}

// Recheck makes Run repeat the preflight when it is due. The loop does not wait for it.
func (d *Driver) Recheck() {
	if !d.Running() || d.rechecking || !d.runner.result.due() {
		return
	}
	d.rechecking = true
	d.rechecks <- d.runner.process
}

// CheckSettings repeats the preflight soon if a sysctl has changed that the checks name.
func (d *Driver) CheckSettings() { d.runner.result.checkSettings() }

// Checks returns what the plugin has found of this host.
func (d *Driver) Checks() []dataplane.Check { return d.runner.result.checks }

// InstalledChecks returns the problems of the list of installed backends.
func (d *Driver) InstalledChecks() []dataplane.Check { return d.installed.checks() }

// RetryInstalled writes the list of installed backends again if it could not be written. It is safe for concurrent use.
func (d *Driver) RetryInstalled() {
	d.installed.retry(d.options.Plugin.Name(), d.options.Plugin.installed())
}

// recheckLoop makes preflights for Recheck until ctx ends.
func (d *Driver) recheckLoop(ctx context.Context, post Post) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case process := <-d.rechecks:
			checks, err := Preflight(ctx, process, d.options.Plugin)
			post(ctx, func() { d.setPreflight(process, checks, err) })
		}
	}
}

// setPreflight takes over the result of a process, unless it is a former one.
func (d *Driver) setPreflight(process Process, checks []dataplane.Check, err error) {
	d.rechecking = false
	if process != d.runner.process {
		return
	}
	if err != nil {
		d.log.Debug("preflight of the plugin", "error", err)
	}
	d.runner.result.set(checks, err)
}
