package gateway

import "time"

// noteDraining notes whether, and since when, the gateway drains, which is to let go of its addresses while what it has goes on: by the
// operator's wish, since it was told to end, or since its Node is cordoned.
func (g *Gateway) noteDraining(now time.Time) {
	by := ""
	switch {
	case g.departure.begun:
		by = "the gateway is told to end"
	case g.wished:
		by = "spec.draining of its Gateway"
	case g.cordon.wishes(g.isReplaced, now):
		by = "its Node is cordoned"
	}
	switch {
	case by == "" && g.draining():
		g.log.Info("drains no more")
		g.drainedSince = time.Time{}
	case by != "" && !g.draining():
		g.log.Info("drains", "by", by)
		g.drainedSince = now
	}
}

func (g *Gateway) draining() bool { return !g.drainedSince.IsZero() }
