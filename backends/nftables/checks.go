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

// Preflight checks that the kernel accepts the tables, in a transaction that is never committed, and that the host forwards.
func (b *Backend) Preflight(_ context.Context, config dataplane.Config) ([]dataplane.Check, error) {
	o, err := parseOptions(config.Options)
	if err != nil {
		return nil, err
	}
	host := preflight.Host{}
	tried, err := probe.Checks(host.Modules(), o.parts()...)
	if err != nil {
		return nil, err
	}
	checks := append([]dataplane.Check{host.Capability(preflight.NetAdmin, "")}, addFastPathAdvice(tried)...)
	checks = append(checks, host.Forwarding("")...)
	checks = append(checks, host.Sysctl(preflight.Sysctl{Key: "net/netfilter/nf_conntrack_tcp_loose", Good: preflight.NotZero, Want: "1", Optional: true,
		Why: "connection tracking does not take a direct connection, of which it sees the client's packets only, for established", Costs: "forwarding: direct"}))
	return append(checks, ownerChecks(o.table)...), nil
}

// fastPathCosts is what does not work without flowtables.
const fastPathCosts = "the fast path"

// addFastPathAdvice adds the option that turns the fast path off to the advice of checks that only the fast path needs.
func addFastPathAdvice(checks []dataplane.Check) []dataplane.Check {
	for i, c := range checks {
		if c.State == dataplane.CheckMissing && c.Costs == fastPathCosts {
			checks[i].Advice = strings.TrimPrefix(c.Advice+", or use --backend-option "+optionFlowtable+"="+flowtableOff+" to do without", ", ")
		}
	}
	return checks
}

// preflightTable is the name of the tables in the trial.
const preflightTable = "kubelb-preflight"

// parts returns the parts of the tables. The first one is created at each start, in one transaction.
func (o options) parts() []probe.Part {
	parts := []probe.Part{
		{Name: "rules of all tables", Advice: "boot Linux 6.1 or later, on which it was tried, or use --backend=envoy", Add: addLayout},
		{Name: "rules for limits of connections", Costs: "limits of connections and of new connections per second", Advice: "boot Linux 6.1 or later, on which it was tried", Add: func(c *nft.Conn) error {
			if err := addLayout(c); err != nil {
				return err
			}
			limits := newLimits()
			for _, k := range limitKinds() {
				limits[k.name][1] = true
			}
			for _, f := range families {
				t := newTable(f, newEgress(preflightTable))
				if err := limits.add(c, t.nft, t.layout); err != nil {
					return err
				}
			}
			return nil
		}},
		{Name: "rules for forwarding: direct", Costs: "forwarding: direct", Advice: "use Linux 5.16 or later, built with CONFIG_NETFILTER_EGRESS", Add: func(c *nft.Conn) error {
			if err := addLayout(c); err != nil {
				return err
			}
			newEgress(preflightTable).addChain(c, loopback)
			return nil
		}},
	}
	if o.flowtable == flowtableOff {
		return parts
	}
	return append(parts, probe.Part{Name: "rules for the fast path", Costs: fastPathCosts, Advice: flowtableAdvice, Add: addFastLayout})
}

// addFastLayout adds a flowtable to each table, and expressions of its rules that the layout does not have.
func addFastLayout(c *nft.Conn) error {
	if err := addLayout(c); err != nil {
		return err
	}
	for _, f := range families {
		t := newTable(f, newEgress(preflightTable))
		if err := t.addFlowtable(c, []string{loopback}); err != nil {
			return err
		}
		c.AddRule(&nft.Rule{Table: t.nft, Chain: &nft.Chain{Name: flowtableName}, Exprs: append(hasReturnRoute(true).exprs, &expr.FlowOffload{Name: flowtableName})})
	}
	return nil
}

// loopback is an interface of every network namespace.
const loopback = "lo"

// addLayout adds everything that is created at each start.
func addLayout(c *nft.Conn) error {
	e := newEgress(preflightTable)
	for _, f := range families {
		if err := newTable(f, e).create(c); err != nil {
			return err
		}
	}
	return e.create(c)
}

// ownerChecks checks for tables of another program with the same name, with which the dataplane does not start.
func ownerChecks(name string) []dataplane.Check {
	foreign, err := foreignTables(name)
	return preflight.Tables{Name: name, AtStart: "the dataplane does not start while it exists", Advice: otherNames}.Check(foreign, err)
}

// foreignTables returns the tables with the name that another program has made.
func foreignTables(name string) (foreign []string, err error) {
	c, err := elements.Connect()
	if err != nil {
		return nil, fmt.Errorf("connect to nftables: %w", err)
	}
	for _, family := range []nft.TableFamily{nft.TableFamilyIPv4, nft.TableFamilyIPv6, nft.TableFamilyNetdev} {
		table := &nft.Table{Name: name, Family: family}
		found, err := foreignTable(c, table)
		if err != nil {
			return nil, err
		}
		if found {
			foreign = append(foreign, familyName(table)+" "+name)
		}
	}
	return foreign, nil
}

// otherNames is the alternative to deleting a table of another program.
const otherNames = "or use another name for KubeLB's tables with --backend-option " + optionTable + "=NAME"

// familyName returns nft's name of the table's family.
func familyName(t *nft.Table) string {
	for _, f := range families {
		if f.table == t.Family {
			return f.name
		}
	}
	return "netdev"
}

// foreignTable reports whether there is a table of this name that no version of this dataplane has made.
func foreignTable(c *nft.Conn, t *nft.Table) (bool, error) {
	present, current, err := find(c, t)
	if err != nil || !present || current {
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
