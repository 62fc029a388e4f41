package nftables

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/nftables/elements"
	"kubelb.k8c.io/core/model"
)

// limitKind is one of the two limits of a frontend: how many flows it has at once, and how many begin in a second. Frontends with the same limit
// share a chain, and a set in which the kernel counts for each of them.
type limitKind struct {
	// verdicts is the map from frontends with a limit to its chain.
	verdicts string
	// name is the prefix of the names of chains and sets.
	name string
	of   func(model.Frontend) uint32
	// exceeded returns the expression, with its text in nft, that matches if a frontend exceeds the limit.
	exceeded func(limit uint32) (text string, e expr.Any)
}

func limitKinds() []limitKind {
	return []limitKind{
		{"connection_limits", connectionLimit, func(f model.Frontend) uint32 { return f.MaxConnections }, func(limit uint32) (string, expr.Any) {
			return fmt.Sprintf("ct count over %d", limit), &expr.Connlimit{Count: limit, Flags: expr.NFT_CONNLIMIT_F_INV}
		}},
		{"rate_limits", "rate", func(f model.Frontend) uint32 { return f.MaxNewPerSecond }, func(limit uint32) (string, expr.Any) {
			return fmt.Sprintf("limit rate over %d/second burst %d packets", limit, limit), &expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(limit), Over: true, Unit: expr.LimitTimeSecond, Burst: limit}
		}},
	}
}

// connectionLimit is the name of the first kind.
const connectionLimit = "connections"

// counterLimited counts first packets of flows beyond a limit.
const counterLimited = "limited"

// maxLimits bounds the number of different limits of a kind: each has a chain and a set.
const maxLimits = 256

// maxLimited bounds the number of frontends for which the kernel counts with one limit.
const maxLimited = 1 << 16

func (k limitKind) chain(limit uint32) string { return fmt.Sprintf("%s-%d", k.name, limit) }
func (k limitKind) set(limit uint32) string   { return fmt.Sprintf("counted_%s_%d", k.name, limit) }

// limitSet returns the set in which the kernel counts for one limit.
func (l layout) limitSet(k limitKind, limit uint32) keySet {
	return keySet{name: k.set(limit), text: fmt.Sprintf("type %s; size %d; flags dynamic", l.frontendTypeText(), maxLimited),
		set: nft.Set{Name: k.set(limit), KeyType: l.frontendType(), Concatenation: true, Dynamic: true, Size: maxLimited}}
}

// limitChain drops first packets of flows beyond the limit.
func (l layout) limitChain(k limitKind, limit uint32) chain {
	return chain{name: k.chain(limit), rules: [][]statement{{l.countFlow(k, limit), count(counterLimited), drop()}}}
}

// countFlow counts the first packet of a flow for its frontend, and matches if the flow is beyond the limit.
func (l layout) countFlow(k limitKind, limit uint32) statement {
	text, exceeded := k.exceeded(limit)
	return statement{fmt.Sprintf("add @%s { %s %s }", k.set(limit), l.frontendText(), text),
		append(l.frontendKey(0), &expr.Dynset{SrcRegKey: 1, SetName: k.set(limit), Operation: uint32(unix.NFT_DYNSET_OP_ADD), Exprs: []expr.Any{exceeded}})}
}

// limits are the limits that have chains, by the kind's name.
type limits map[string]map[uint32]bool

func newLimits() limits {
	out := limits{}
	for _, k := range limitKinds() {
		out[k.name] = map[uint32]bool{}
	}
	return out
}

// merge adds other limits.
func (n limits) merge(others limits) {
	for kind, numbers := range others {
		maps.Copy(n[kind], numbers)
	}
}

// missing returns the limits without chains.
func (n limits) missing(of map[string]uint32) limits {
	out := newLimits()
	for kind, number := range of {
		if number > 0 && !n[kind][number] {
			out[kind][number] = true
		}
	}
	return out
}

// adopt adds the limit of a chain, if the chain is one of a limit.
func (n limits) adopt(chainName string) {
	for _, k := range limitKinds() {
		if text, found := strings.CutPrefix(chainName, k.name+"-"); found {
			if number, err := strconv.ParseUint(text, 10, 32); err == nil {
				n[k.name][uint32(number)] = true
			}
		}
	}
}

// add adds sets and chains for the limits to the transaction.
func (n limits) add(c *nft.Conn, t *nft.Table, l layout) error {
	for _, k := range limitKinds() {
		for _, number := range slices.Sorted(maps.Keys(n[k.name])) {
			set := l.limitSet(k, number).set
			set.Table = t
			if err := c.AddSet(&set, nil); err != nil {
				return fmt.Errorf("set %s: %w", set.Name, err)
			}
			addChains(c, t, []chain{l.limitChain(k, number)})
		}
	}
	return nil
}

// deleteCounted deletes elements from the sets in which the kernel counts. It adds each before it deletes it: to delete one that does not exist would
// be an error.
func (l layout) deleteCounted(c *nft.Conn, t *nft.Table, edits []edit) error {
	bySet := map[string][]nft.SetElement{}
	for _, e := range edits {
		bySet[e.set] = append(bySet[e.set], e.element)
	}
	for _, name := range slices.Sorted(maps.Keys(bySet)) {
		set := &nft.Set{Table: t, Name: name, KeyType: l.frontendType(), Concatenation: true, Dynamic: true}
		for chunk := range slices.Chunk(bySet[name], elements.PerMessage) {
			if err := errors.Join(c.SetAddElements(set, chunk), c.SetDeleteElements(set, chunk)); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

// limitsOf returns a frontend's limits, by the kind's name.
func limitsOf(f model.Frontend) map[string]uint32 {
	out := map[string]uint32{}
	for _, k := range limitKinds() {
		out[k.name] = k.of(f)
	}
	return out
}

// adopt reads a frontend's limit from the chain of its element.
func (k limitKind) adopt(f *frontendState, e nft.SetElement) error {
	number, err := numberOfChain(e, k.name)
	if err != nil {
		return err
	}
	if f.limits == nil {
		f.limits = map[string]uint32{}
	}
	f.limits[k.name] = number
	return nil
}

// checkLimits refuses a new limit if there are too many different ones.
func (s *state) checkLimits(of map[string]uint32) error {
	for kind, number := range of {
		if number > 0 && !s.limits[kind][number] && len(s.limits[kind]) >= maxLimits {
			return fmt.Errorf("there are already %d different limits of this kind: use one of them", maxLimits)
		}
	}
	return nil
}

// planLimits plans the limits. Up to Linux 6.12, connection tracking counts a connection that is reset while it is fast for five more minutes. So all
// flows of an address take the slow path if one of its frontends has a limit of connections.
func planLimits(out *plan, vip netip.Addr, key []byte, old, next map[string]uint32) {
	switch before, after := old[connectionLimit] > 0, next[connectionLimit] > 0; {
	case before && !after:
		out.slow = map[netip.Addr]int{vip: -1}
	case after && !before:
		out.slow = map[netip.Addr]int{vip: 1}
	}
	for _, k := range limitKinds() {
		before, after := old[k.name], next[k.name]
		if before == after {
			continue
		}
		if before > 0 {
			out.remove(k.verdicts, key)
			out.toUncount = append(out.toUncount, edit{set: k.set(before), element: nft.SetElement{Key: key}})
		}
		if after > 0 {
			out.goTo(k.verdicts, key, expr.VerdictJump, k.chain(after))
		}
	}
}
