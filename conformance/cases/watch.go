package cases

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func watch() Case {
	return Case{
		Name:  "watch",
		Shows: "what another program removes of the dataplane's state on a host is reported within ten seconds, and comes back: the dataplane restores it, or asks for a resync, after which its next process restores it",
		Run: func(c *C) {
			c.Serve(30080)
			g := c.spare(2)
			clean := g.footprint()
			snapshot := model.Snapshot{Pools: []model.Pool{c.Pool("all", 0, 1)}, Frontends: []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all")}}
			g.Start()
			g.Apply(snapshot)
			c.NotEmpty(c.Request(3, "tcp", c.At(1, 80)))
			for _, kind := range kindsOf(g.ownPieces(clean)) {
				removed := g.ownPieces(clean).Of(kind).Removable()
				if len(removed) == 0 {
					continue
				}
				c.Logf("remove %v", removed.Lines(shownPieces))
				begin := time.Now()
				c.NoError(g.Remove(removed))
				g.awaitFault(begin, removed)
				if g.faults.asksForResync(begin) {
					g.Process.Stop()
					g.Start()
					g.Apply(snapshot)
				}
				g.requireRestored(clean, removed)
				c.Measuref("%s: reported and restored after %s", kind, time.Since(begin).Round(100*time.Millisecond))
			}
		},
	}
}

// faultLog has the faults that a backend has reported, and when they came.
type faultLog struct {
	mu   sync.Mutex
	all  []dataplane.Fault
	came []time.Time
}

func (l *faultLog) add(f dataplane.Fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all, l.came = append(l.all, f), append(l.came, time.Now())
}

// since returns the faults that came after the time.
func (l *faultLog) since(begin time.Time) []dataplane.Fault {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := slices.IndexFunc(l.came, begin.Before)
	if at < 0 {
		return nil
	}
	return slices.Clone(l.all[at:])
}

func (l *faultLog) asksForResync(begin time.Time) bool {
	return slices.ContainsFunc(l.since(begin), func(f dataplane.Fault) bool { return f.Resync })
}

// reportTime is how long a backend may take to report what was removed, and restoreTime how long it may take after that to serve again.
const reportTime, restoreTime = 10 * time.Second, 10 * time.Second

// awaitFault requires that a fault with a message comes.
func (g *Gateway) awaitFault(begin time.Time, removed lab.Footprint) {
	for len(g.faults.since(begin)) == 0 {
		if time.Since(begin) > g.c.Patience.For(reportTime) {
			g.c.Fail(fmt.Sprintf("not reported: %v were removed", removed.Lines(shownPieces)))
			g.c.FailNow()
		}
		time.Sleep(50 * time.Millisecond)
	}
	for _, f := range g.faults.since(begin) {
		g.c.NotEmpty(f.Message, "a fault without a message")
	}
}

// requireRestored requires that new flows are served, and that what was removed is there again.
func (g *Gateway) requireRestored(clean, removed lab.Footprint) {
	c := g.c
	var missing []string
	isServed := func() bool {
		for _, network := range networks {
			if !c.Lab.A.AnsweredWithin(c.Patience.For(shortWait), network, c.At(1, 80)) {
				missing = []string{network + " is not served"}
				return false
			}
		}
		missing = missingNames(removed, g.ownPieces(clean))
		return len(missing) == 0
	}
	for begin := time.Now(); !isServed(); time.Sleep(50 * time.Millisecond) {
		if time.Since(begin) > c.Patience.For(restoreTime) {
			c.Empty(missing, "not restored")
		}
	}
}

// missingNames returns the names of pieces that are not among the present ones. A process and a pinned object may come back by another name.
func missingNames(removed, present lab.Footprint) (missing []string) {
	var names []string
	for _, p := range present {
		names = append(names, nameOf(p))
	}
	for _, p := range removed {
		if !slices.Contains(names, nameOf(p)) {
			missing = append(missing, p.String())
		}
	}
	return missing
}

// nameOf returns a piece without what differs after it was restored: the number of a process.
func nameOf(p lab.Piece) string {
	if p.Kind == lab.Process {
		name, _, _ := strings.Cut(p.Text, " ")
		return name
	}
	return p.String()
}

// ownPieces returns what the backend has added to a host, without its own process.
func (g *Gateway) ownPieces(clean lab.Footprint) lab.Footprint {
	return slices.DeleteFunc(g.footprint().Added(clean), func(p lab.Piece) bool { return slices.Contains(g.own, p.String()) })
}

// kindsOf returns the kinds of the pieces, each once, in their order.
func kindsOf(pieces lab.Footprint) (kinds []lab.Kind) {
	for _, p := range pieces {
		if !slices.Contains(kinds, p.Kind) {
			kinds = append(kinds, p.Kind)
		}
	}
	return kinds
}
