package driver

import (
	"net/netip"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// holdings are the frontends that the dataplane holds.
type holdings struct {
	of    map[netip.Addr]map[model.FrontendKey]bool
	count int
}

func (h *holdings) has(key model.FrontendKey) bool { return h.of[key.VIP][key] }

// at is how many there are of an address.
func (h *holdings) at(address netip.Addr) int { return len(h.of[address]) }

func (h *holdings) add(key model.FrontendKey) {
	if h.has(key) {
		return
	}
	if h.of[key.VIP] == nil {
		h.of[key.VIP] = map[model.FrontendKey]bool{}
	}
	h.of[key.VIP][key] = true
	h.count++
}

// remove tells whether the frontend was there, and was the last one of its address.
func (h *holdings) remove(key model.FrontendKey) (last bool) {
	if !h.has(key) {
		return false
	}
	delete(h.of[key.VIP], key)
	h.count--
	if last = len(h.of[key.VIP]) == 0; last {
		delete(h.of, key.VIP)
	}
	return last
}

// withdraw removes the addresses whose last frontend is about to leave the dataplane.
func (d *Driver) withdraw(delta model.Delta) {
	coming := map[netip.Addr]bool{}
	for _, f := range delta.UpsertFrontends {
		coming[f.VIP] = true
	}
	for _, key := range delta.DeleteFrontends {
		switch last := d.held.remove(key); {
		case !last:
		case coming[key.VIP] || d.backlog.Comes(key.VIP):
			d.exchanging[key.VIP] = true
		default:
			d.options.Addresses.Remove(key.VIP)
		}
	}
}

// confirm notes the frontends that the dataplane has taken, and adds the addresses whose frontends are all there.
func (d *Driver) confirm(taken model.Delta) {
	vips := map[netip.Addr]bool{}
	for _, f := range taken.UpsertFrontends {
		vips[f.VIP] = true
		_, failed := d.failures[dataplane.RecordError{Frontend: f.FrontendKey}.Record()]
		if failed {
			continue
		}
		d.options.Addresses.SetTenant(f.VIP, f.Tenant)
		d.held.add(f.FrontendKey)
	}
	for _, key := range taken.DeleteFrontends {
		vips[key.VIP] = true
	}
	for address := range vips {
		if d.held.at(address) > 0 && !d.backlog.Comes(address) {
			d.options.Addresses.Add(address)
		}
	}
	for address := range d.exchanging {
		switch {
		case d.held.at(address) > 0:
			delete(d.exchanging, address)
		case !d.backlog.Comes(address):
			// The dataplane has not taken what was to come in the place of others.
			delete(d.exchanging, address)
			d.options.Addresses.Remove(address)
		}
	}
}
