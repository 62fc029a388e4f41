package transit

import (
	"net/netip"
	"slices"
	"time"
)

// Keeper keeps a Filter as routes and endpoints are. It is not safe for concurrent use.
type Keeper struct {
	// Interfaces are those at which the gateway announces addresses.
	Interfaces []string
	// Router: the host is a router on purpose, and forwards whatever it is sent.
	Router bool
	// Forbidden are networks of the management cluster: its Services and pods. The host's own kube-proxy rewrites connections to a Service for whoever
	// sends one here, and strangers may send none.
	Forbidden []netip.Prefix

	filter    Filter
	endpoints []netip.Addr
	segments  []string
	looked    time.Time
}

// lookEvery is how often routes are asked again to endpoints that stay the same.
const lookEvery = 30 * time.Second

// Keep brings the filter to what endpoints there are, and which frontends are forwarded direct. Both are sorted.
func (k *Keeper) Keep(endpoints, direct []netip.Addr) error {
	if k.Router {
		return k.filter.Remove()
	}
	if k.looked.IsZero() || time.Since(k.looked) >= lookEvery || !slices.Equal(k.endpoints, endpoints) {
		segments, err := Segments(k.Interfaces, endpoints)
		if err != nil {
			return err
		}
		k.endpoints, k.segments, k.looked = endpoints, segments, time.Now()
	}
	tracked, err := TracksConnections()
	if err != nil {
		return err
	}
	return k.filter.Hold(Rules{Segments: k.segments, Direct: direct, Forbidden: k.Forbidden, Tracked: tracked})
}

// End removes the filter.
func (k *Keeper) End() error { return k.filter.Remove() }
