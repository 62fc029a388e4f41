package nftables

import (
	"context"
	"fmt"
	"strings"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
	"kubelb.k8c.io/backends/nftables/elements"
	"kubelb.k8c.io/backends/nftables/probe"
)

// Preflight checks what the tables need of the kernel, by a try of all of them that is never committed, and what forwarding needs.
func (b *Backend) Preflight(_ context.Context, config dataplane.Config) ([]dataplane.Check, error) {
	o, err := readOptions(config.Options)
	if err != nil {
		return nil, err
	}
	host := preflight.Host{}
	tried, err := probe.Checks(host.Modules(), o.parts()...)
	if err != nil {
		return nil, err
	}
	checks := append([]dataplane.Check{host.Capability(preflight.NetAdmin, "")}, adviseWithoutFastPath(tried)...)
	checks = append(checks, host.Forwarding("")...)
	checks = append(checks, host.Sysctl(preflight.Sysctl{Key: "net/netfilter/nf_conntrack_tcp_loose", Good: preflight.NotZero, Want: "1", Optional: true,
		Why: "conntrack does not take up the client's half of a direct connection", Costs: "forwarding: direct"}))
	return append(checks, ownerChecks(o.table)...), nil
}

// fastPathCosts is what does not work without flowtables.
const fastPathCosts = "the fast path"

// adviseWithoutFastPath says of what the fast path alone lacks that one can do without.
func adviseWithoutFastPath(checks []dataplane.Check) []dataplane.Check {
	for i, c := range checks {
		if c.State == dataplane.CheckMissing && c.Costs == fastPathCosts {
			checks[i].Advice = strings.TrimPrefix(c.Advice+", or use --backend-option "+optionFlowtable+"="+flowtableOff+" to do without", ", ")
		}
	}
	return checks
}

// preflightTable is the name of the tables that are tried.
const preflightTable = "kubelb-preflight"

// parts are what the tables consist of. What is in the first one is made at each start, all in one transaction.
func (o options) parts() []probe.Part {
	parts := []probe.Part{
		{Name: "rules of all tables", Advice: "boot Linux 6.1 or later, on which it was tried, or use --backend=envoy", Add: addLayout},
		{Name: "rules for limits of connections", Costs: "limits of connections and of new connections per second", Advice: "boot Linux 6.1 or later, on which it was tried", Add: func(c *nft.Conn) error {
			if err := addLayout(c); err != nil {
				return err
			}
			some := newLimits()
			for _, k := range limitKinds() {
				some[k.name][1] = true
			}
			for _, f := range families {
				t := newTable(f, newEgress(preflightTable))
				if err := some.add(c, t.nft, t.layout); err != nil {
					return err
				}
			}
			return nil
		}},
		{Name: "rules for forwarding: direct", Costs: "forwarding: direct", Advice: "use Linux 5.16 or later, built with CONFIG_NETFILTER_EGRESS", Add: func(c *nft.Conn) error {
			if err := addLayout(c); err != nil {
				return err
			}
			newEgress(preflightTable).addWatch(c, loopback)
			return nil
		}},
	}
	if o.flowtable == flowtableOff {
		return parts
	}
	return append(parts, probe.Part{Name: "rules for the fast path", Costs: fastPathCosts, Advice: lackingAdvice, Add: addFastLayout})
}

// addFastLayout adds a flowtable to each table, and the part of its rules that needs other modules than the layout.
func addFastLayout(c *nft.Conn) error {
	if err := addLayout(c); err != nil {
		return err
	}
	for _, f := range families {
		t := newTable(f, newEgress(preflightTable))
		if err := t.addFlowtable(c, []string{loopback}); err != nil {
			return err
		}
		c.AddRule(&nft.Rule{Table: t.nft, Chain: &nft.Chain{Name: flowtableName}, Exprs: append(routeGoesBack(true).exprs, &expr.FlowOffload{Name: flowtableName})})
	}
	return nil
}

// loopback is an interface that each network namespace has.
const loopback = "lo"

// addLayout adds all that is made at each start.
func addLayout(c *nft.Conn) error {
	e := newEgress(preflightTable)
	for _, f := range families {
		if err := newTable(f, e).create(c); err != nil {
			return err
		}
	}
	return e.create(c)
}

// ownerChecks look for tables of the same name that are not this backend's, with which it does not start.
func ownerChecks(name string) []dataplane.Check {
	foreign, err := foreignTables(name)
	return preflight.Tables{Name: name, Becomes: "the backend does not start beside it", Advice: otherNames}.Check(foreign, err)
}

// foreignTables are the tables of the name that another program has made.
func foreignTables(name string) (foreign []string, err error) {
	c, err := elements.Connect()
	if err != nil {
		return nil, fmt.Errorf("connect to nftables: %w", err)
	}
	for _, family := range []nft.TableFamily{nft.TableFamilyIPv4, nft.TableFamilyIPv6, nft.TableFamilyNetdev} {
		table := &nft.Table{Name: name, Family: family}
		is, err := foreignTable(c, table)
		if err != nil {
			return nil, err
		}
		if is {
			foreign = append(foreign, familyName(table)+" "+name)
		}
	}
	return foreign, nil
}

// otherNames is what else to do about a table of another program.
const otherNames = "or have other names for KubeLB's tables by --backend-option " + optionTable + "=NAME"

// familyName is how nft calls the table's family.
func familyName(t *nft.Table) string {
	for _, f := range families {
		if f.table == t.Family {
			return f.name
		}
	}
	return "netdev"
}

// foreignTable tells whether there is a table of this name that no version of this backend has made.
func foreignTable(c *nft.Conn, t *nft.Table) (bool, error) {
	present, ours, err := find(c, t)
	if err != nil || !present || ours {
		return false, err
	}
	chains, err := c.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return false, fmt.Errorf("list nftables chains: %w", err)
	}
	var names []string
	for _, chain := range chains {
		if chain.Table.Name == t.Name {
			names = append(names, chain.Name)
		}
	}
	version, _, _ := strings.Cut(versionChain, "-")
	return preflight.IsForeign(names, version+"-"), nil
}
