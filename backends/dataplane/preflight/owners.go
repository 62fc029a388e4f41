package preflight

import (
	"slices"
	"strings"

	"kubelb.k8c.io/backends/dataplane"
)

// Tables are tables of nftables with a name that KubeLB uses. A table is written as nft does, with family and name: "ip kubelb".
type Tables struct {
	// Name is the name of all tables.
	Name string
	// AtStart says what happens at the start if another program has made such a table. Costs is what does not work then, empty if nothing does.
	AtStart, Costs string
	// Advice is what to do instead of deleting such a table; it may be empty.
	Advice string
}

// Check returns a check for each table that another program has made, and one check if there is none. err says why the tables are unknown.
func (t Tables) Check(foreign []string, err error) (checks []dataplane.Check) {
	c := dataplane.Check{Group: dataplane.GroupOwners, Subject: "nftables tables " + t.Name, Costs: t.Costs, State: dataplane.CheckOK, Found: "no other program has them"}
	if err != nil {
		c.State, c.Found = dataplane.CheckUnknown, err.Error()
		return []dataplane.Check{c}
	}
	for _, table := range foreign {
		c.Subject, c.State, c.Found = "nftables table "+table, dataplane.CheckMissing, "another program has made it; "+t.AtStart
		c.Command, c.Advice = DeleteTable(table), t.Advice
		checks = append(checks, c)
	}
	if len(checks) == 0 {
		return []dataplane.Check{c}
	}
	return checks
}

// DeleteTable returns the command that deletes a table.
func DeleteTable(table string) string { return "nft delete table " + table }

// IsForeign reports whether another program has made a table, by the names of its chains: a table of KubeLB has a chain with the prefix.
func IsForeign(chains []string, prefix string) bool {
	return !slices.ContainsFunc(chains, func(name string) bool { return strings.HasPrefix(name, prefix) })
}
