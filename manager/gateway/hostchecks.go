package gateway

import (
	"context"
	"slices"
	"time"

	"kubelb.k8c.io/backends/dataplane"
)

const (
	// hostCheckInterval is how often this host is checked: whether it has what the gateway needs, and whether sysctls of the plugin have changed.
	hostCheckInterval = 30 * time.Second
	// hostCheckFastInterval is how often while something required is missing.
	hostCheckFastInterval = 5 * time.Second
)

// watchHost checks what the gateway needs of this host, its state files, and the sysctls of its plugin, until ctx ends.
func (g *Gateway) watchHost(ctx context.Context) error {
	if g.options.HostChecks == nil {
		return nil
	}
	for {
		checks := g.options.HostChecks(ctx)
		g.driver.RetryInstalled()
		g.send(ctx, func(g *Gateway) {
			g.hostChecks = checks
			g.driver.CheckSettings()
		})
		pause := hostCheckInterval
		if dataplane.MissingError(checks) != nil {
			pause = hostCheckFastInterval
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// lacking returns what this host lacks, for the dataplane and for the gateway. It logs what is new.
func (g *Gateway) lacking() []dataplane.Check {
	lacking := dataplane.Lacking(slices.Concat(g.driver.Checks(), g.hostChecks, g.transitChecks, g.driver.InstalledChecks()))
	known := g.loggedChecks
	g.loggedChecks = map[string]bool{}
	for _, c := range lacking {
		line := c.String()
		if g.loggedChecks[line] = true; !known[line] {
			g.log.Warn("this host lacks something", "group", c.Group, "required", c.Required(), "lacks", line)
		}
	}
	return lacking
}
