package preflight

import (
	"slices"
	"strings"

	"kubelb.k8c.io/backends/dataplane"
)

// Tables are tables of nftables whose names KubeLB takes for its own. Tables are named as nft names them, by family and name: "ip kubelb".
type Tables struct {
	// Name is that of all of them.
	Name string
	// Becomes is what a start does beside a table that another program has made, and Costs what does not work then, empty if nothing does.
	Becomes, Costs string
	// Advice is what to do instead of deleting such a table; it may be empty.
	Advice string
}

// Check has a line for each table that another program has made, and one line if there is none. The error is why that could not be found out.
func (t Tables) Check(foreign []string, err error) (checks []dataplane.Check) {
	c := dataplane.Check{Group: dataplane.GroupOwners, Subject: "nftables tables " + t.Name, Costs: t.Costs, State: dataplane.CheckOK, Found: "no other program has them"}
	if err != nil {
		c.State, c.Found = dataplane.CheckUnknown, err.Error()
		return []dataplane.Check{c}
	}
	for _, table := range foreign {
		c.Subject, c.State, c.Found = "nftables table "+table, dataplane.CheckMissing, "another program has made it; "+t.Becomes
		c.Command, c.Advice = DeleteTable(table), t.Advice
		checks = append(checks, c)
	}
	if len(checks) == 0 {
		return []dataplane.Check{c}
	}
	return checks
}

// DeleteTable is the command that deletes a table.
func DeleteTable(table string) string { return "nft delete table " + table }

// IsForeign tells whether another program has made a table, by the names of its chains: KubeLB's has one that begins with ours. Without any chain it is
// not KubeLB's.
func IsForeign(chains []string, ours string) bool {
	return !slices.ContainsFunc(chains, func(name string) bool { return strings.HasPrefix(name, ours) })
}
