package inspect

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/manager/selection"
)

// Pool is an address pool, and who has its addresses.
type Pool struct {
	PoolLine
	Ranges []string `json:"ranges"`
	// Tenants that may use it; none are all. Gateways that it chooses, and that are ready. OtherGateways are those that it chooses and that are neither
	// ready nor gone: nobody knows whether they announce it.
	Tenants       []string      `json:"tenants,omitempty"`
	Gateways      []string      `json:"gateways"`
	OtherGateways []PoolGateway `json:"otherGateways,omitempty"`
	// ByName: an address of it must be asked for.
	ByName   bool  `json:"byName,omitempty"`
	Priority int32 `json:"priority,omitempty"`
	// Held are the addresses that somebody has, in their order.
	Held []Held `json:"held"`
	// Reserved are kept for tenants that had asked for them.
	Reserved []v1alpha1.ReservedAddress `json:"reserved,omitempty"`
}

// PoolGateway is a gateway that is not ready, with its state as in GatewayLine.
type PoolGateway struct {
	Name  string `json:"name"`
	State string `json:"state"`
}

// Held is an address and the LoadBalancers that have it, more than one where they share it.
type Held struct {
	Address netip.Addr `json:"address"`
	By      []string   `json:"by"`
}

// PoolsNamed returns the pools of the names in their order, all without any name.
func (h *Hub) PoolsNamed(names ...string) ([]Pool, error) {
	var out []Pool
	for i := range h.Pools {
		if len(names) == 0 || slices.Contains(names, h.Pools[i].Name) {
			out = append(out, h.pool(&h.Pools[i]))
		}
	}
	for _, name := range names {
		if !slices.ContainsFunc(out, func(p Pool) bool { return p.Name == name }) {
			return nil, fmt.Errorf("there is no AddressPool %s: 'kubelb pools' lists them", name)
		}
	}
	return out, nil
}

func (h *Hub) pool(p *v1alpha1.AddressPool) Pool {
	silent := func(string, string, string, ...any) {}
	out := Pool{PoolLine: poolLine(p, silent), Ranges: p.Spec.Addresses, Tenants: p.Spec.Tenants, ByName: p.Spec.AutoAssign != nil && !*p.Spec.AutoAssign, Priority: p.Spec.Priority}
	for _, r := range p.Status.Reserved {
		if r.Until.After(h.Now) {
			out.Reserved = append(out.Reserved, r)
		}
	}
	chosen := selection.New()
	chosen.SetPool(p.Name, nil, p.Spec.GatewaySelector)
	for i := range h.Gateways {
		chosen.SetGateway(h.Gateways[i].Name, h.Gateways[i].Labels)
	}
	serves := chosen.Serving(p.Name)
	for i := range h.Gateways {
		name := h.Gateways[i].Name
		if serves != nil && !serves(name) {
			continue
		}
		switch state, _ := h.stateOf(&h.Gateways[i]); state {
		case ready:
			out.Gateways = append(out.Gateways, name)
		case gone:
		default:
			out.OtherGateways = append(out.OtherGateways, PoolGateway{name, state})
		}
	}
	by := map[netip.Addr][]string{}
	for i := range h.LoadBalancers {
		lb := &h.LoadBalancers[i]
		for _, a := range lb.Status.Addresses {
			if address, err := netip.ParseAddr(a.Address); err == nil && a.Pool == p.Name {
				by[address] = append(by[address], nameOf(lb))
			}
		}
	}
	for address, holders := range by {
		out.Held = append(out.Held, Held{address, holders})
	}
	slices.SortFunc(out.Held, func(a, b Held) int { return a.Address.Compare(b.Address) })
	return out
}

// PoolsText writes a line for each pool and, if it is asked for, one for each address that somebody has.
func PoolsText(w io.Writer, pools []Pool, held bool) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "POOL\tSTATE\tUSED4\tFREE4\tUSED6\tFREE6\tPRIORITY\tGIVEN\tTENANTS\tGATEWAYS\tADDRESSES")
	list := func(names []string, none string) string { return cmp.Or(strings.Join(names, ","), none) }
	for _, p := range pools {
		gateways := slices.Clone(p.Gateways)
		for _, g := range p.OtherGateways {
			gateways = append(gateways, fmt.Sprintf("%s(%s)", g.Name, g.State))
		}
		given := "unasked"
		if p.ByName {
			given = "by name"
		}
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%d\t%s\t%d\t%s\t%s\t%s\t%s\n", p.Name, p.State, p.Used4, p.Free4, p.Used6, p.Free6, p.Priority, given,
			list(p.Tenants, "all"), list(gateways, "none"), list(p.Ranges, "none"))
	}
	if held {
		fmt.Fprintln(table, "\nADDRESS\tHELD BY")
		for _, p := range pools {
			for _, address := range p.Held {
				fmt.Fprintf(table, "%s\t%s\n", address.Address, strings.Join(address.By, ", "))
			}
			for _, r := range p.Reserved {
				fmt.Fprintf(table, "%s\tkept for tenant %s until %s\n", r.Address, r.Tenant, r.Until.UTC().Format(time.RFC3339))
			}
		}
	}
	return table.Flush()
}
