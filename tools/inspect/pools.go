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

// Pool is an AddressPool, with the owners of its addresses.
type Pool struct {
	PoolLine
	Ranges []string `json:"ranges"`
	// Tenants may use the pool. If it is empty, all tenants may. Gateways are the gateways that the pool chooses and that are Ready. OtherGateways are the chosen gateways that are neither
	// Ready nor Gone: it is not known whether they announce the pool's addresses.
	Tenants       []string      `json:"tenants,omitempty"`
	Gateways      []string      `json:"gateways"`
	OtherGateways []PoolGateway `json:"otherGateways,omitempty"`
	// ByName means that a LoadBalancer gets an address only if it names the pool, or an address of the pool.
	ByName   bool  `json:"byName,omitempty"`
	Priority int32 `json:"priority,omitempty"`
	// Held are the addresses that LoadBalancers have, sorted.
	Held []Held `json:"held"`
	// Reserved are the reservations of addresses for tenants.
	Reserved []v1alpha1.ReservedAddress `json:"reserved,omitempty"`
}

// PoolGateway is a gateway that is not Ready, with its state as in GatewayLine.
type PoolGateway struct {
	Name  string `json:"name"`
	State string `json:"state"`
}

// Held is an address and the LoadBalancers that have it. There are several if they share it.
type Held struct {
	Address netip.Addr `json:"address"`
	By      []string   `json:"by"`
}

// PoolsNamed returns the AddressPools with these names, in their order in the snapshot. Without names it returns all.
func (h *Snapshot) PoolsNamed(names ...string) ([]Pool, error) {
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

func (h *Snapshot) pool(p *v1alpha1.AddressPool) Pool {
	ignore := func(string, string, string, ...any) {}
	out := Pool{PoolLine: poolLine(p, ignore), Ranges: p.Spec.Addresses, Tenants: p.Spec.Tenants, ByName: p.Spec.AutoAssign != nil && !*p.Spec.AutoAssign, Priority: p.Spec.Priority}
	for _, r := range p.Status.Reserved {
		if r.Until.After(h.Now) {
			out.Reserved = append(out.Reserved, r)
		}
	}
	chosen := selection.New()
	chosen.SetAddressPool(p.Name, nil, p.Spec.GatewaySelector)
	for i := range h.Gateways {
		chosen.SetGateway(h.Gateways[i].Name, h.Gateways[i].Labels)
	}
	serves := chosen.Serving(p.Name)
	for i := range h.Gateways {
		name := h.Gateways[i].Name
		if !serves.By(name) {
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
	for address, owners := range by {
		out.Held = append(out.Held, Held{address, owners})
	}
	slices.SortFunc(out.Held, func(a, b Held) int { return a.Address.Compare(b.Address) })
	return out
}

// PoolsText writes a line for each pool. With held it also writes a line for each address that a LoadBalancer has, or that is reserved.
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
				fmt.Fprintf(table, "%s\treserved for tenant %s until %s\n", r.Address, r.Tenant, r.Until.UTC().Format(time.RFC3339))
			}
		}
	}
	return table.Flush()
}
