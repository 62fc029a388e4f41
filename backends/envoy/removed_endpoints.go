package envoy

import (
	"net/netip"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"kubelb.k8c.io/core/model"
)

// removalDelay is how long Envoy keeps an endpoint that has left its pool, as an unhealthy one. Envoy ends all UDP sessions with a
// removed endpoint, so that answers on their way would be lost.
const removalDelay = 2 * time.Second

// removedEndpoints are removed endpoints by frontend, with the time until which Envoy keeps them.
type removedEndpoints struct {
	present map[model.FrontendKey]map[netip.AddrPort]bool
	leaving map[model.FrontendKey]map[netip.AddrPort]time.Time
}

func newRemovedEndpoints() removedEndpoints {
	return removedEndpoints{map[model.FrontendKey]map[netip.AddrPort]bool{}, map[model.FrontendKey]map[netip.AddrPort]time.Time{}}
}

// update sets the current endpoints of a frontend, and returns the removed ones that Envoy keeps.
func (d removedEndpoints) update(f model.Frontend, p model.Pool, now time.Time) map[netip.AddrPort]time.Time {
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
			leaving[at] = now.Add(removalDelay)
		}
	}
	d.present[f.FrontendKey] = present
	delete(d.leaving, f.FrontendKey)
	if len(leaving) > 0 {
		d.leaving[f.FrontendKey] = leaving
	}
	return leaving
}

func (d removedEndpoints) delete(k model.FrontendKey) {
	delete(d.present, k)
	delete(d.leaving, k)
}

// sweepRemovedEndpoints removes endpoints from Envoy whose time is over, periodically. It returns when stop is closed.
func (b *Backend) sweepRemovedEndpoints(stop <-chan struct{}) {
	ticker := time.NewTicker(removalDelay / 2)
	defer ticker.Stop()
	for {
		select {
		case <-stop:
			return
		case now := <-ticker.C:
			b.expireRemovedEndpoints(now)
		}
	}
}

func (b *Backend) expireRemovedEndpoints(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	changed := map[string]types.Resource{}
	for key, leaving := range b.removedEndpoints.leaving {
		due := false
		for _, until := range leaving {
			due = due || !until.After(now)
		}
		if f, ok := b.state.frontends[key]; ok && due {
			p := b.state.pools[f.Pool]
			changed[assignmentName(f, p)] = renderAssignment(f, p, b.removedEndpoints.update(f, p, now))
		}
	}
	if len(changed) > 0 {
		// It cannot fail, since these resources were marshalled before.
		_, _ = b.xds.update(resource.EndpointType, changed, nil)
	}
}
