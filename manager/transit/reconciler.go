package transit

import (
	"net/netip"
	"slices"
	"time"
)

// Reconciler keeps a Filter in line with routes and endpoints. It is not safe for concurrent use.
type Reconciler struct {
	// Interfaces are the interfaces at which the gateway announces addresses.
	Interfaces []string
	// Router: the host is a router on purpose, and forwards all packets.
	Router bool
	// Forbidden are networks of the management cluster: its Services and pods. The kube-proxy of this host would rewrite connections to a Service from any
	// host.
	Forbidden []netip.Prefix

	filter    Filter
	endpoints []netip.Addr
	segments  []string
	checked   time.Time
}

// routeInterval is the interval at which the routes to unchanged endpoints are read again.
const routeInterval = 30 * time.Second

// Update updates the filter for these endpoints, and these addresses of frontends with mode direct. Both are sorted.
func (k *Reconciler) Update(endpoints, direct []netip.Addr) error {
	if k.Router {
		return k.filter.Remove()
	}
	if k.checked.IsZero() || time.Since(k.checked) >= routeInterval || !slices.Equal(k.endpoints, endpoints) {
		segments, err := Segments(k.Interfaces, endpoints)
		if err != nil {
			return err
		}
		k.endpoints, k.segments, k.checked = endpoints, segments, time.Now()
	}
	tracked, err := TracksConnections()
	if err != nil {
		return err
	}
	return k.filter.Apply(Rules{Segments: k.segments, Direct: direct, Forbidden: k.Forbidden, Tracked: tracked})
}

// Remove removes the filter.
func (k *Reconciler) Remove() error { return k.filter.Remove() }
