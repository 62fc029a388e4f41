package inspect

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/convert"
	"kubelb.k8c.io/manager/hubhosts"
	"kubelb.k8c.io/manager/selection"
)

// Trace is the path of a client's packet to an external address and port.
type Trace struct {
	Address  string `json:"address"`
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"`
	// Pool is the AddressPool of the address. LoadBalancers have the address. Owner is the LoadBalancer with this port.
	Pool          string   `json:"pool,omitempty"`
	LoadBalancers []string `json:"loadBalancers,omitempty"`
	Owner         string   `json:"owner,omitempty"`
	// Gateways answer for the address. Candidates are the gateways from which they were elected.
	Gateways   []string `json:"gateways,omitempty"`
	Candidates []string `json:"of,omitempty"`
	// Forwarding, TargetPort and Endpoints say where the packet goes. The health of the endpoints is not known here, because each gateway checks it itself.
	Forwarding string   `json:"forwarding,omitempty"`
	TargetPort uint16   `json:"targetPort,omitempty"`
	Endpoints  []string `json:"endpoints,omitempty"`
	// Sources are the networks of clients that may connect. If it is empty, all clients may.
	Sources []string `json:"sources,omitempty"`
	// Ends is the reason why the packet is not served.
	Ends string `json:"ends,omitempty"`
}

// Trace follows a packet. It uses the same objects and rules as gateways.
func (h *Snapshot) Trace(to netip.AddrPort, protocol model.Protocol) Trace {
	key := model.FrontendKey{VIP: to.Addr().Unmap(), Protocol: protocol, Port: to.Port()}
	t := Trace{Address: key.VIP.String(), Port: key.Port, Protocol: protocol.String()}
	owners := h.ownersOf(t.Address)
	for _, lb := range owners {
		t.LoadBalancers = append(t.LoadBalancers, nameOf(lb))
	}
	chosen := h.selection(key.VIP, &t)
	switch {
	case len(owners) == 0 && t.Pool == "":
		t.Ends = "the address is in no AddressPool, and no LoadBalancer has it"
		return t
	case len(owners) == 0:
		t.Ends = "no LoadBalancer has the address, so no gateway answers for it"
		return t
	}
	h.setGateways(key.VIP, chosen, &t)
	if len(t.Gateways) == 0 {
		t.Ends = cmp.Or(t.Ends, "no gateway answers for the address: see 'kubelb status'")
		return t
	}
	h.setForwarding(key, owners, &t)
	return t
}

// ownersOf returns the LoadBalancers to which the address is allocated.
func (h *Snapshot) ownersOf(address string) []*v1alpha1.LoadBalancer {
	var out []*v1alpha1.LoadBalancer
	for i := range h.LoadBalancers {
		lb := &h.LoadBalancers[i]
		if slices.ContainsFunc(lb.Status.Addresses, func(a v1alpha1.AllocatedAddress) bool { return a.Address == address }) {
			out = append(out, lb)
		}
	}
	return out
}

// selection returns which gateways serve which addresses. It sets t.Pool to the AddressPool of the address.
func (h *Snapshot) selection(address netip.Addr, t *Trace) *selection.Selection {
	chosen := selection.New()
	for i := range h.Pools {
		pool, err := convert.Pool(&h.Pools[i])
		if err != nil {
			continue
		}
		chosen.SetAddressPool(pool.Name, pool.Ranges, h.Pools[i].Spec.GatewaySelector)
		if pool.Contains(address) {
			t.Pool = pool.Name
		}
	}
	for i := range h.LoadBalancers {
		chosen.SetAllocations(nameOf(&h.LoadBalancers[i]), convert.Allocations(&h.LoadBalancers[i]))
	}
	for i := range h.Gateways {
		chosen.SetGateway(h.Gateways[i].Name, h.Gateways[i].Labels)
	}
	return chosen
}

// setGateways sets the gateways that get packets for the address: those that answer for it by their own statuses, if hosts or routers learn of that.
func (h *Snapshot) setGateways(address netip.Addr, chosen *selection.Selection, t *Trace) {
	serves := chosen.ServingAddress(address)
	var answering []string
	for i := range h.Gateways {
		g := &h.Gateways[i]
		if state, _ := h.stateOf(g); state != ready && state != draining || !serves.By(g.Name) {
			continue
		}
		published := convert.Election(g)
		if !published.Elects && (g.Spec.Draining || h.silence(g.Name, address) != "") {
			continue
		}
		t.Candidates = append(t.Candidates, published.Candidates(address, serves)...)
		name := published.AnswererOf(address, serves)
		switch why := h.silence(cmp.Or(name, g.Name), address); {
		case why != "":
			t.Ends = fmt.Sprintf("gateway %s should answer for the address, but does not: %s", cmp.Or(name, g.Name), why)
		case name != "":
			answering = append(answering, name)
		}
	}
	t.Candidates, t.Gateways = sorted(t.Candidates), sorted(answering)
	if len(t.Gateways) > 0 {
		t.Ends = ""
	}
}

// sorted returns each name once, in order.
func sorted(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}

// silence returns the reason why a gateway announces addresses of this family to nobody. It is empty if the gateway announces them.
func (h *Snapshot) silence(gateway string, address netip.Addr) string {
	for i := range h.Gateways {
		if h.Gateways[i].Name == gateway {
			return convert.SilentReason(&h.Gateways[i], ipam.FamilyOf(address))
		}
	}
	return ""
}

// setForwarding sets what a gateway does with the packet.
func (h *Snapshot) setForwarding(key model.FrontendKey, owners []*v1alpha1.LoadBalancer, t *Trace) {
	hub := translate.NewTranslator()
	for i := range h.Tenants {
		hub.SetTenant(convert.Tenant(&h.Tenants[i]))
	}
	for i := range h.Addresses {
		hub.SetAddresses(convert.Addresses(&h.Addresses[i]))
	}
	hosts := map[netip.Addr]string{}
	for i := range h.Gateways {
		for _, a := range hubhosts.ParseAddresses(h.Gateways[i].Status.HostAddresses) {
			hosts[a] = "gateway " + h.Gateways[i].Name
		}
	}
	hub.SetHosts(hosts)
	for _, lb := range owners {
		hub.SetLoadBalancer(convert.LoadBalancer(lb))
	}
	hub.Flush()
	snapshot := hub.Snapshot()
	i := slices.IndexFunc(snapshot.Frontends, func(f model.Frontend) bool { return f.FrontendKey == key })
	if i < 0 {
		t.Ends = fmt.Sprintf("the packet is refused: no LoadBalancer with the address serves %s port %d, or the LoadBalancer is not accepted; see 'kubelb explain'", key.Protocol, key.Port)
		return
	}
	f := snapshot.Frontends[i]
	t.Forwarding, t.TargetPort = f.Forwarding.String(), f.TargetPort
	for _, lb := range owners {
		if lb.Namespace == f.Owner.Namespace && lb.Name == f.Owner.Name {
			t.Owner = nameOf(lb)
		}
	}
	for _, r := range f.SourceRanges {
		t.Sources = append(t.Sources, r.String())
	}
	pool := slices.IndexFunc(snapshot.Pools, func(p model.Pool) bool { return p.ID == f.Pool })
	if pool < 0 || len(snapshot.Pools[pool].Endpoints) == 0 {
		t.Ends = "the packet is refused: there is no endpoint; see 'kubelb explain'"
		return
	}
	for _, e := range snapshot.Pools[pool].Endpoints {
		t.Endpoints = append(t.Endpoints, e.Address.String())
	}
}

// Text writes one line for each step.
func (t Trace) Text(w io.Writer) error {
	var b strings.Builder
	line := func(what, format string, args ...any) {
		if text := fmt.Sprintf(format, args...); text != "" {
			fmt.Fprintf(&b, "%-11s %s\n", what, text)
		}
	}
	line("address", "%s, of AddressPool %s", t.Address, cmp.Or(t.Pool, "none"))
	line("held by", "%s", strings.Join(t.LoadBalancers, ", "))
	if len(t.Gateways) > 0 {
		line("gateway", "%s, of %s", strings.Join(t.Gateways, ", "), strings.Join(t.Candidates, ", "))
	}
	if t.Owner != "" {
		line("frontend", "%s port %d of %s, forwarding %s", t.Protocol, t.Port, t.Owner, t.Forwarding)
		if len(t.Sources) > 0 {
			line("clients", "of %s only", strings.Join(t.Sources, ", "))
		}
	}
	if len(t.Endpoints) > 0 {
		line("endpoints", "port %d of %s, if healthy", t.TargetPort, strings.Join(t.Endpoints, ", "))
	}
	line("ends", "%s", t.Ends)
	_, err := io.WriteString(w, b.String())
	return err
}
