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

// Part is a part of a dataplane's rules that the kernel may accept or refuse independently of other parts.
type Part struct {
	// Name is a name for people: "rules for forwarding: direct".
	Name string
	// Costs is what does not work without it, empty if nothing does.
	Costs string
	// Advice says what to do if the kernel has all modules and still refuses it.
	Advice string
	// Add adds it to a transaction, with all that it needs of other parts. Its tables have names that no dataplane uses.
	Add func(*nft.Conn) error
}

// Checks checks whether the kernel accepts the parts, and which modules are missing if it does not. It returns an error if a part cannot be encoded.
func Checks(modules preflight.Modules, parts ...Part) (checks []dataplane.Check, err error) {
	inNamespace(func() { checks, err = checksBy(tryBatch, modules, parts) })
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
			if known, found := costs[n.module]; !found {
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
		// If a module is missing, its check says so, and the kernel would only refuse the rules for the same reason.
		if !slices.ContainsFunc(needsOf(transactions[i]), func(n need) bool { return lacking[n.module] }) {
			checks = append(checks, p.check(k, transactions[i]))
		}
	}
	return checks, nil
}

// joinCosts returns what does not work without something that two parts need. It is empty if one of the parts is required.
func joinCosts(a, b string) string {
	if a == "" || b == "" {
		return ""
	}
	return a + ", " + b
}

// tablesCheck checks whether nftables can be used at all.
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
		c.State, c.Found = dataplane.CheckUnknown, "nftables cannot be checked without the capability NET_ADMIN"
		return c, false
	}
	c = modules.Check("nf_tables", "NF_TABLES", preflight.Fails, "")
	c.Found += fmt.Sprintf(" (%v)", err)
	return c, false
}

// tryNeed tries the need's batch. The kernel has certain errors for an expression that it does not know, and other errors for a
// known one that it refuses.
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

// check checks whether the kernel accepts the part.
func (p Part) check(k kernel, messages []netlink.Message) dataplane.Check {
	c := dataplane.Check{Group: dataplane.GroupKernel, Subject: p.Name, Costs: p.Costs, State: dataplane.CheckOK, Found: "the kernel accepts them"}
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

// describe returns a name for the message at an index.
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
