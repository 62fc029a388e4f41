package cases

import (
	"path/filepath"
	"time"

	"kubelb.k8c.io/conformance/lab"
)

// spare returns the gateway on a host where no backend has run yet. It starts none, and routes external addresses there.
func (c *C) spare(number int) *Gateway {
	g := c.gateway(number)
	c.captureTrace(g)
	c.routeVIPsTo(number)
	return g
}

// footprint returns all state of the gateway's host, and the files in the state directories of dataplanes. plugin.Serve makes these, and leaves its lock there.
func (g *Gateway) footprint() lab.Footprint {
	found, err := g.Host.Footprint()
	g.c.NoError(err)
	files, err := lab.FilesIn(lab.File, g.state)
	g.c.NoError(err)
	for _, f := range files {
		if dir, name := filepath.Split(f.Text); dir != "" && name != "lock" {
			found = append(found, f)
		}
	}
	return found
}

// removalTime is how long the kernel may take to remove what a purge has deleted, and processes to end.
const removalTime = 2 * time.Second

// shownPieces is how many pieces of a footprint a failure shows.
const shownPieces = 20

// requireNothingLeft requires that the host's state is the former one: nothing was added to it, and nothing of it is missing.
func (g *Gateway) requireNothingLeft(former lab.Footprint) {
	var left, missing lab.Footprint
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		now := g.footprint()
		left, missing = now.Added(former), former.Added(now)
		if len(left)+len(missing) == 0 || time.Since(begin) > g.c.Patience.For(removalTime) {
			break
		}
	}
	g.c.Empty(left.Lines(shownPieces), "something was left on the host")
	g.c.Empty(missing.Lines(shownPieces), "something of the host is gone")
}
