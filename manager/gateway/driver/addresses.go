package driver

import (
	"net/netip"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// withdraw removes the addresses whose last frontend is about to leave the dataplane.
func (d *Driver) withdraw(delta model.Delta) {
	coming := map[netip.Addr]bool{}
	for _, f := range delta.UpsertFrontends {
		coming[f.VIP] = true
	}
	for _, key := range delta.DeleteFrontends {
		if !d.held[key] {
			continue
		}
		delete(d.held, key)
		if d.vips[key.VIP]--; d.vips[key.VIP] > 0 {
			continue
		}
		delete(d.vips, key.VIP)
		if coming[key.VIP] || d.backlog.Comes(key.VIP) {
			d.exchanging[key.VIP] = true
		} else {
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
		if d.held[f.FrontendKey] {
			continue
		}
		d.held[f.FrontendKey] = true
		d.vips[f.VIP]++
	}
	for _, key := range taken.DeleteFrontends {
		vips[key.VIP] = true
	}
	for address := range vips {
		if d.vips[address] > 0 && !d.backlog.Comes(address) {
			d.options.Addresses.Add(address)
		}
	}
	for address := range d.exchanging {
		switch {
		case d.vips[address] > 0:
			delete(d.exchanging, address)
		case !d.backlog.Comes(address):
			// The dataplane has not taken what was to come in the place of others.
			delete(d.exchanging, address)
			d.options.Addresses.Remove(address)
		}
	}
}
