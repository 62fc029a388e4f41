package gateway

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
)

const (
	// preflightLimit bounds one preflight of a backend: it is part of each start.
	preflightLimit = 10 * time.Second
	// recheckEvery is how often it is looked whether what the backend lacked is there, and whether this host still has what the gateway needs.
	recheckEvery = 30 * time.Second
	// recheckSoon is how often it is looked whether what the gateway lacked is there.
	recheckSoon = 5 * time.Second
	// maxConditionMessage bounds what a condition says.
	maxConditionMessage = 8192
)

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

// preflight asks the running backend. If that fails there are no checks, and Configure tells more.
func (h *host) preflight(ctx context.Context) {
	checks, err := Preflight(ctx, h.process, h.options)
	if err != nil {
		h.log.Debug("this host was not checked", "error", err)
	}
	h.checked = time.Now()
	h.checks = checks
}

// explain is why a backend could not be configured: what is missing, if something is that it needs, which says more than its error.
func (h *host) explain(err error) error {
	if missing := dataplane.MissingError(h.checks); missing != nil {
		h.log.Debug("configure backend", "error", err)
		return missing
	}
	return fmt.Errorf("configure backend %s: %w", h.description.Name, err)
}

// recheck asks the backend again, now and then, while something is missing.
func (g *Gateway) recheck(ctx context.Context) {
	if g.host.running() && len(dataplane.Lacking(g.host.checks)) > 0 && time.Since(g.host.checked) >= recheckEvery {
		g.host.preflight(ctx)
	}
}

// watchHost looks after what the gateway itself needs of this host, until ctx ends.
func (g *Gateway) watchHost(ctx context.Context) error {
	if g.options.HostChecks == nil {
		return nil
	}
	for {
		checks := g.options.HostChecks(ctx)
		g.send(ctx, func(g *Gateway) { g.hostChecks = checks })
		pause := recheckEvery
		if len(dataplane.Lacking(checks)) > 0 {
			pause = recheckSoon
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// lacking is what this host lacks, for the dataplane and for the gateway. What is new is logged.
func (g *Gateway) lacking() []dataplane.Check {
	lacking := dataplane.Lacking(slices.Concat(g.host.checks, g.hostChecks))
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
				Message: clip(strings.Join(lines, "\n"), maxConditionMessage)})
		}
	}
	return conditions
}
