package probe

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	nft "github.com/google/nftables"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
)

// Part is a part of a dataplane's rules, which the kernel may take or not, whatever it does with other parts.
type Part struct {
	// Name is what people know it by: "rules for forwarding: direct".
	Name string
	// Costs is what does not work without it; empty if nothing does.
	Costs string
	// Advice is what kernel has it, in a sentence, for where all modules are there and the kernel refuses it nevertheless.
	Advice string
	// Add adds it, with all that it needs of other parts, to a transaction. Its tables have names of their own.
	Add func(*nft.Conn) error
}

// Checks tell whether the kernel takes the parts, and which modules lack where it does not. An error is that of a part which could not
// be encoded.
func Checks(modules preflight.Modules, parts ...Part) (checks []dataplane.Check, err error) {
	inside(func() { checks, err = checksBy(try, modules, parts) })
	return checks, err
}

func checksBy(k kernel, modules preflight.Modules, parts []Part) ([]dataplane.Check, error) {
	nfTables, usable := tablesCheck(k, modules)
	checks := []dataplane.Check{nfTables}
	if !usable {
		return checks, nil
	}
	var needs []need
	costs := map[string]string{}
	transactions := make([][]netlink.Message, len(parts))
	for i, p := range parts {
		var err error
		if transactions[i], err = p.messages(); err != nil {
			return nil, fmt.Errorf("encode %s: %w", p.Name, err)
		}
		for _, n := range needsOf(transactions[i]) {
			if known, is := costs[n.module]; !is {
				costs[n.module] = p.Costs
				needs = append(needs, n)
			} else if known != "" && p.Costs != known {
				costs[n.module] = joinCosts(known, p.Costs)
			}
		}
	}
	lacking := map[string]bool{}
	for _, n := range needs {
		check := modules.Check(n.module, n.option, tryNeed(k, n), costs[n.module])
		lacking[n.module] = check.State == dataplane.CheckMissing
		checks = append(checks, check)
	}
	for i, p := range parts {
		// Where a module lacks that is said already, and the kernel would only repeat it in other words.
		if !slices.ContainsFunc(needsOf(transactions[i]), func(n need) bool { return lacking[n.module] }) {
			checks = append(checks, p.check(k, transactions[i]))
		}
	}
	return checks, nil
}

// joinCosts is what does not work without something that two parts need: nothing, if one of them is needed for all.
func joinCosts(a, b string) string {
	if a == "" || b == "" {
		return ""
	}
	return a + ", " + b
}

// tablesCheck tells whether nftables can be used at all.
func tablesCheck(k kernel, modules preflight.Modules) (c dataplane.Check, usable bool) {
	errs, err := k([]netlink.Message{newTable(unix.NFPROTO_IPV4)})
	for _, e := range errs {
		err = errors.Join(err, e)
	}
	switch {
	case err == nil:
		return modules.Check("nf_tables", "NF_TABLES", preflight.Works, ""), true
	case errors.Is(err, unix.EPERM):
		c = modules.Check("nf_tables", "NF_TABLES", preflight.NotTried, "")
		c.State, c.Found = dataplane.CheckUnknown, "nothing can be asked of nftables without the capability NET_ADMIN"
		return c, false
	}
	c = modules.Check("nf_tables", "NF_TABLES", preflight.Fails, "")
	c.Found += fmt.Sprintf(" (%v)", err)
	return c, false
}

// tryNeed tries the need's batch. The kernel says of what it does not know that there is no such thing, and something else of
// what it knows and does not like.
func tryNeed(k kernel, n need) preflight.Trial {
	errs, err := k(n.trial)
	switch {
	case err != nil:
		return preflight.NotTried
	case len(errs) == 0:
		return preflight.Works
	}
	for place, e := range errs {
		if place < len(n.trial)-1 {
			return preflight.NotTried
		}
		switch {
		case errors.Is(e, unix.ENOENT), errors.Is(e, unix.EOPNOTSUPP), errors.Is(e, unix.EPROTONOSUPPORT), errors.Is(e, unix.EAFNOSUPPORT):
			return preflight.Fails
		}
	}
	return preflight.Works
}

// check tells whether the kernel takes the part.
func (p Part) check(k kernel, messages []netlink.Message) dataplane.Check {
	c := dataplane.Check{Group: dataplane.GroupKernel, Subject: p.Name, Costs: p.Costs, State: dataplane.CheckOK, Found: "the kernel takes them"}
	errs, err := k(messages)
	switch {
	case err != nil:
		c.State, c.Found = dataplane.CheckUnknown, err.Error()
	case len(errs) > 0:
		c.State, c.Advice = dataplane.CheckMissing, p.Advice
		first := len(messages)
		for place := range errs {
			first = min(first, place)
		}
		c.Found = fmt.Sprintf("the kernel refuses %s: %v", describe(messages, first), errs[first])
	}
	return c
}

// describe names the message at a place as people know it.
func describe(messages []netlink.Message, place int) string {
	if place < 0 || place >= len(messages) {
		return "the batch"
	}
	content := messages[place].Data[headerLength:]
	switch kindOf(messages[place]) {
	case unix.NFT_MSG_NEWTABLE:
		return "a table"
	case unix.NFT_MSG_NEWCHAIN:
		return "chain " + text(attribute(content, unix.NFTA_CHAIN_NAME))
	case unix.NFT_MSG_NEWSET:
		return "set " + text(attribute(content, unix.NFTA_SET_NAME))
	case unix.NFT_MSG_NEWFLOWTABLE:
		return "a flowtable"
	case unix.NFT_MSG_NEWRULE:
		var names []string
		for _, e := range expressionsOf(content) {
			names = append(names, text(attribute(e, unix.NFTA_EXPR_NAME)))
		}
		return fmt.Sprintf("a rule of %s in chain %s", strings.Join(names, " "), text(attribute(content, unix.NFTA_RULE_CHAIN)))
	}
	return fmt.Sprintf("message %d", kindOf(messages[place]))
}
