package cases

import (
	"slices"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// forwardingModes returns the forwarding modes that the backend declares.
func (c *C) forwardingModes() []model.Forwarding {
	modes := []model.Forwarding{model.NAT}
	for _, m := range []struct {
		needs dataplane.Feature
		mode  model.Forwarding
	}{{dataplane.Transparent, model.Transparent}, {dataplane.Direct, model.Direct}} {
		if slices.Contains(c.Description.Features, m.needs) {
			modes = append(modes, m.mode)
		}
	}
	return modes
}

// frontendIn returns a frontend for port 80 of an external address in a forwarding mode. The nodes serve it.
func (c *C) frontendIn(mode model.Forwarding, protocol model.Protocol, vip int, pool string) model.Frontend {
	f := c.Frontend(protocol, vip, 80, 30080, pool)
	f.Forwarding = mode
	if mode == model.Direct {
		f.TargetPort = 80
		c.NoError(c.Lab.ServeVIPOnNodes(c.At(vip, 80), 30080))
	}
	return f
}

// inEachMode returns a TCP and a UDP frontend for each forwarding mode that the backend declares, on an external address of its own, whose
// number is the index of the mode plus one. The nodes serve them, and send packets for clients by the gateway.
func (c *C) inEachMode(pool string) []model.Frontend {
	c.Serve(30080)
	c.NoError(c.Lab.RouteNodesVia(0))
	var frontends []model.Frontend
	for i, mode := range c.forwardingModes() {
		for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
			frontends = append(frontends, c.frontendIn(mode, protocol, 1+i, pool))
		}
	}
	return frontends
}
