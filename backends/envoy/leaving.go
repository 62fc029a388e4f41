package envoy

import (
	"net/netip"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"kubelb.k8c.io/core/model"
)

// lingering is how long an endpoint that has left its pool stays with Envoy, as an unhealthy one. Envoy ends all UDP
// sessions with an endpoint that it no longer knows, and with them the answers that are on their way.
const lingering = 2 * time.Second

// departures are endpoints that left, by frontend, until when they linger.
type departures struct {
	present map[model.FrontendKey]map[netip.AddrPort]bool
	leaving map[model.FrontendKey]map[netip.AddrPort]time.Time
}

func newDepartures() departures {
	return departures{map[model.FrontendKey]map[netip.AddrPort]bool{}, map[model.FrontendKey]map[netip.AddrPort]time.Time{}}
}

// note takes over what a frontend's endpoints are from now on, and returns those that linger.
func (d departures) note(f model.Frontend, p model.Pool, now time.Time) map[netip.AddrPort]time.Time {
	present := map[netip.AddrPort]bool{}
	for _, e := range p.Endpoints {
		present[netip.AddrPortFrom(e.Address, f.TargetPort)] = true
	}
	leaving := map[netip.AddrPort]time.Time{}
	for at, until := range d.leaving[f.FrontendKey] {
		if !present[at] && until.After(now) {
			leaving[at] = until
		}
	}
	for at := range d.present[f.FrontendKey] {
		if !present[at] {
			leaving[at] = now.Add(lingering)
		}
	}
	d.present[f.FrontendKey] = present
	delete(d.leaving, f.FrontendKey)
	if len(leaving) > 0 {
		d.leaving[f.FrontendKey] = leaving
	}
	return leaving
}

func (d departures) forget(k model.FrontendKey) {
	delete(d.present, k)
	delete(d.leaving, k)
}

// sweep takes away, every now and then, what has lingered long enough. It ends when stop is closed.
func (b *Backend) sweep(stop <-chan struct{}) {
	ticker := time.NewTicker(lingering / 2)
	defer ticker.Stop()
	for {
		select {
		case <-stop:
			return
		case now := <-ticker.C:
			b.removeDeparted(now)
		}
	}
}

func (b *Backend) removeDeparted(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	changed := map[string]types.Resource{}
	for key, leaving := range b.departures.leaving {
		due := false
		for _, until := range leaving {
			due = due || !until.After(now)
		}
		if f, ok := b.state.frontends[key]; ok && due {
			p := b.state.pools[f.Pool]
			changed[assignmentName(f, p)] = renderAssignment(f, p, b.departures.note(f, p, now))
		}
	}
	if len(changed) > 0 {
		// It cannot fail: these resources were marshalled before.
		_, _ = b.xds.update(resource.EndpointType, changed, nil)
	}
}
