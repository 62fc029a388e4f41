package gateway

import (
	"context"
	"slices"
	"time"

	"kubelb.k8c.io/backends/dataplane"
)

const (
	// hostCheckEvery is how often this host is looked at: whether it has what the gateway needs, and whether sysctls of the plugin have changed.
	hostCheckEvery = 30 * time.Second
	// hostCheckSoon is how often while the gateway lacks something without which it does not work.
	hostCheckSoon = 5 * time.Second
)

// watchHost looks after what the gateway itself needs of this host, its state files and the sysctls of its plugin, until ctx ends.
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
		pause := hostCheckEvery
		if dataplane.MissingError(checks) != nil {
			pause = hostCheckSoon
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
	lacking := dataplane.Lacking(slices.Concat(g.driver.Checks(), g.hostChecks, g.transitChecks, g.driver.InstalledChecks()))
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
