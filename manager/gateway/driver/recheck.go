package driver

import (
	"context"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
)

const (
	// recheckEvery is how often the preflight is made again while something is missing without which nothing works, or after it could not be made.
	recheckEvery = 30 * time.Second
	// recheckSeldom is how often it is made else.
	recheckSeldom = 5 * time.Minute
)

// findings are what the plugin has found of this host. They belong to the gateway's loop.
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

// take takes over what the plugin has found. If it could not answer, what was found before is the best that is known.
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

// look has the preflight made at once if a sysctl has changed since.
func (f *findings) look() {
	if f.host.SettingsOf(f.checks) != f.settings {
		f.asked = time.Time{}
	}
}

// Recheck has the preflight made again when it is time, by Run, and once at a time: it may take longer than anything else may have to wait.
func (d *Driver) Recheck() {
	if !d.Running() || d.rechecking || !d.runner.found.due() {
		return
	}
	d.rechecking = true
	d.rechecks <- d.runner.process
}

// NoteHostChange has the preflight made again at once if a sysctl has changed that it has found.
func (d *Driver) NoteHostChange() { d.runner.found.look() }

// Checks are what the plugin has found of this host.
func (d *Driver) Checks() []dataplane.Check { return d.runner.found.checks }

// InstalledChecks say what is wrong with the list of installed backends.
func (d *Driver) InstalledChecks() []dataplane.Check { return d.installed.checks() }

// SettleInstalled writes the list of installed backends again if that could not be written. It is safe for concurrent use.
func (d *Driver) SettleInstalled() {
	d.installed.settle(d.options.Backend.Name(), d.options.Backend.installed())
}

// recheckLoop makes preflights, each time that Recheck asks for one, until ctx ends.
func (d *Driver) recheckLoop(ctx context.Context, post Post) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case process := <-d.rechecks:
			checks, err := Preflight(ctx, process, d.options.Backend)
			post(ctx, func() { d.setPreflight(process, checks, err) })
		}
	}
}

// setPreflight takes over what the process has found, unless it is a former one.
func (d *Driver) setPreflight(process Process, checks []dataplane.Check, err error) {
	d.rechecking = false
	if process != d.runner.process {
		return
	}
	if err != nil {
		d.log.Debug("this host was not checked", "error", err)
	}
	d.runner.found.take(checks, err)
}
