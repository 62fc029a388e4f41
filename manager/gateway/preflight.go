package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
)

// preflightLimit bounds one preflight of a backend: it is part of each start.
const preflightLimit = 10 * time.Second

// Preflight asks a backend what it needs of this host, as it would be configured here. It changes nothing.
func Preflight(ctx context.Context, d dataplane.Dataplane, o BackendOptions) ([]dataplane.Check, error) {
	ctx, cancel := context.WithTimeout(ctx, preflightLimit)
	defer cancel()
	checks, err := d.Preflight(ctx, o.config())
	if err != nil {
		return nil, fmt.Errorf("preflight of the backend: %w", err)
	}
	return checks, nil
}

// preflight asks the backend that is being started. If that fails Configure tells more.
func (h *host) preflight(ctx context.Context) {
	checks, err := called(ctx, h, "Preflight", h.limits.preflight, func(ctx context.Context) ([]dataplane.Check, error) {
		return Preflight(ctx, h.process, h.options)
	})
	if err != nil {
		h.log.Debug("this host was not checked", "error", err)
	}
	h.found.take(checks, err)
}

// explain is why a backend could not be configured: first what is missing of what it needs, which people can mend, then its own error.
func (h *host) explain(err error) error {
	missing := dataplane.MissingError(h.found.checks)
	own := fmt.Errorf("configure backend %s: %w", h.description.Name, err)
	switch {
	case missing == nil:
		return own
	case repeats(err.Error(), h.found.checks):
		h.log.Debug("configure backend", "error", err)
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

// lacking is what this host lacks, for the dataplane and for the gateway. What is new is logged.
func (g *Gateway) lacking() []dataplane.Check {
	lacking := dataplane.Lacking(slices.Concat(g.host.found.checks, g.hostChecks, g.transitChecks, g.holders.checks()))
	known := g.lacked
	g.lacked = map[string]bool{}
	for _, c := range lacking {
		line := c.String()
		if g.lacked[line] = true; !known[line] {
			g.log.Warn("this host lacks something", "group", c.Group, "required", c.Required(), "lacks", line)
		}
	}
	return lacking
}

// hostConditions are one for each group in which something is missing. Where nothing is there are none.
func hostConditions(lacking []dataplane.Check) (conditions []metav1.Condition) {
	for _, group := range dataplane.Groups() {
		reason := v1alpha1.ReasonHostLimits
		var lines []string
		for _, c := range lacking {
			// A backend of another version may know groups that this manager does not.
			if c.Group != group && (group != dataplane.GroupKernel || slices.Contains(dataplane.Groups(), c.Group)) {
				continue
			}
			lines = append(lines, c.String())
			if c.Required() {
				reason = v1alpha1.ReasonHostLacks
			}
		}
		if len(lines) > 0 {
			conditions = append(conditions, metav1.Condition{Type: v1alpha1.ConditionHostPrefix + string(group), Status: metav1.ConditionFalse, Reason: reason,
				Message: strings.Join(lines, "\n")})
		}
	}
	return conditions
}
