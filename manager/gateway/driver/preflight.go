package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"kubelb.k8c.io/backends/dataplane"
)

// preflightLimit bounds one preflight of a plugin, which is part of each start. The kernel may load some twenty modules meanwhile: on an emulated
// host ten seconds were not enough.
const preflightLimit = 30 * time.Second

// Preflight asks a plugin what it needs of this host. It changes nothing.
func Preflight(ctx context.Context, d dataplane.Dataplane, b Plugin) ([]dataplane.Check, error) {
	ctx, cancel := context.WithTimeout(ctx, preflightLimit)
	defer cancel()
	checks, err := d.Preflight(ctx, b.config())
	if err != nil {
		return nil, fmt.Errorf("preflight of the backend: %w", err)
	}
	return checks, nil
}

// preflight asks the plugin that is being started. If this fails, the error of Configure says more.
func (r *runner) preflight(ctx context.Context) {
	checks, err := call(ctx, r, "Preflight", r.limits.preflight, func(ctx context.Context) ([]dataplane.Check, error) {
		return Preflight(ctx, r.process, r.backend)
	})
	if err != nil {
		r.log.Debug("preflight of the plugin", "error", err)
	}
	r.result.set(checks, err)
}

// explain returns the reason why a backend could not be configured: first what it needs and this host lacks, which people can fix, then its own
// error.
func (r *runner) explain(err error) error {
	missing := dataplane.MissingError(r.result.checks)
	cause := fmt.Errorf("configure backend %s: %w", r.description.Name, err)
	switch {
	case missing == nil:
		return cause
	case repeatsChecks(err.Error(), r.result.checks):
		r.log.Debug("configure backend", "error", err)
		return missing
	}
	return errors.Join(missing, cause)
}

// repeatsChecks reports whether each line of an error is about something required that is missing: the line has its name, or what was found.
func repeatsChecks(text string, checks []dataplane.Check) bool {
	for line := range strings.Lines(text) {
		if !slices.ContainsFunc(dataplane.Lacking(checks), func(c dataplane.Check) bool { return c.Required() && mentions(line, c) }) {
			return false
		}
	}
	return true
}

// minFoundLength is the length from which on the text of a finding is unique enough. "not loaded" is not.
const minFoundLength = 20

func mentions(line string, c dataplane.Check) bool {
	return strings.Contains(line, c.Subject) || len(c.Found) >= minFoundLength && strings.Contains(line, c.Found)
}
