package gateway

import (
	"context"
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
		g.driver.SettleInstalled()
		g.send(ctx, func(g *Gateway) {
			g.hostChecks = checks
			g.driver.NoteHostChange()
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
