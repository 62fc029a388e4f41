package driver

import (
	"net/netip"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// heldFrontends are the frontends that the dataplane holds.
type heldFrontends struct {
	byAddress map[netip.Addr]map[model.FrontendKey]bool
	count     int
}

func (h *heldFrontends) has(key model.FrontendKey) bool { return h.byAddress[key.VIP][key] }

// countAt returns the number of frontends at an address.
func (h *heldFrontends) countAt(address netip.Addr) int { return len(h.byAddress[address]) }

func (h *heldFrontends) add(key model.FrontendKey) {
	if h.has(key) {
		return
	}
	if h.byAddress[key.VIP] == nil {
		h.byAddress[key.VIP] = map[model.FrontendKey]bool{}
	}
	h.byAddress[key.VIP][key] = true
	h.count++
}

// remove removes a frontend, and returns whether it was the last one at its address.
func (h *heldFrontends) remove(key model.FrontendKey) (last bool) {
	if !h.has(key) {
		return false
	}
	delete(h.byAddress[key.VIP], key)
	h.count--
	if last = len(h.byAddress[key.VIP]) == 0; last {
		delete(h.byAddress, key.VIP)
	}
	return last
}

// withdraw removes the addresses whose last frontend is about to leave the dataplane.
func (d *Driver) withdraw(delta model.Delta) {
	upserted := map[netip.Addr]bool{}
	for _, f := range delta.UpsertFrontends {
		upserted[f.VIP] = true
	}
	for _, key := range delta.DeleteFrontends {
		switch last := d.held.remove(key); {
		case !last:
		case upserted[key.VIP] || d.backlog.HasUpsertFor(key.VIP):
			d.replacing[key.VIP] = true
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
		if d.held.countAt(address) > 0 && !d.backlog.HasUpsertFor(address) {
			d.options.Addresses.Add(address)
		}
	}
	for address := range d.replacing {
		switch {
		case d.held.countAt(address) > 0:
			delete(d.replacing, address)
		case !d.backlog.HasUpsertFor(address):
			// The dataplane has not taken the replacement.
			delete(d.replacing, address)
			d.options.Addresses.Remove(address)
		}
	}
}
