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

// preflightLimit bounds one preflight of a backend: it is part of each start.
const preflightLimit = 10 * time.Second

// Preflight asks a plugin what it needs of this host, as it would be configured here. It changes nothing.
func Preflight(ctx context.Context, d dataplane.Dataplane, b Backend) ([]dataplane.Check, error) {
	ctx, cancel := context.WithTimeout(ctx, preflightLimit)
	defer cancel()
	checks, err := d.Preflight(ctx, b.config())
	if err != nil {
		return nil, fmt.Errorf("preflight of the backend: %w", err)
	}
	return checks, nil
}

// preflight asks the plugin that is being started. If that fails Configure tells more.
func (r *runner) preflight(ctx context.Context) {
	checks, err := call(ctx, r, "Preflight", r.limits.preflight, func(ctx context.Context) ([]dataplane.Check, error) {
		return Preflight(ctx, r.process, r.backend)
	})
	if err != nil {
		r.log.Debug("this host was not checked", "error", err)
	}
	r.found.take(checks, err)
}

// explain is why a backend could not be configured: first what is missing of what it needs, which people can mend, then its own error.
func (r *runner) explain(err error) error {
	missing := dataplane.MissingError(r.found.checks)
	own := fmt.Errorf("configure backend %s: %w", r.description.Name, err)
	switch {
	case missing == nil:
		return own
	case repeats(err.Error(), r.found.checks):
		r.log.Debug("configure backend", "error", err)
		return missing
	}
	return errors.Join(missing, own)
}

// repeats tells whether each line of an error is about something required that is missing: it names that, or says what was found.
func repeats(text string, checks []dataplane.Check) bool {
	for line := range strings.Lines(text) {
		if !slices.ContainsFunc(dataplane.Lacking(checks), func(c dataplane.Check) bool { return c.Required() && about(line, c) }) {
			return false
		}
	}
	return true
}

// leastTelling is the length of what was found from which on it tells one thing from another, as "not loaded" does not.
const leastTelling = 20

func about(line string, c dataplane.Check) bool {
	return strings.Contains(line, c.Subject) || len(c.Found) >= leastTelling && strings.Contains(line, c.Found)
}
