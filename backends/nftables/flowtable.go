package nftables

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/nftables/elements"
)

// The fast path is a flowtable of the kernel (Documentation/networking/nf_flowtable.rst). A packet of a flow that is in it leaves the
// host at once: no chain sees it, and conntrack does not. All else of a flow goes by the slow path: its first packets, fragments,
// packets that are larger than the next link's MTU, FIN and RST, and every packet after the flow's conntrack entry is deleted.
//
// One rule for each protocol decides which flows are in it, when the endpoint answers (setFastRules). A table has its own flowtable. It is not part of the
// layout, since a kernel may lack it and its interfaces are the host's.

// optionFlowtable says whether known flows take the fast path: flowtableAuto, the default, or flowtableOff.
const (
	optionFlowtable = "flowtable"
	flowtableAuto   = "auto"
	flowtableOff    = "off"
)

const (
	// flowtableName names the flowtable of each table, and its chain.
	flowtableName = "fast"
	// setFastInterfaces has the names of the flowtable's interfaces, for the rule.
	setFastInterfaces = "fast_interfaces"
)

// fastPriority puts the chain behind those of others in the hook, which may drop the packet (NF_IP_PRI_CONNTRACK_HELPER is 300).
const fastPriority = 300

// fastPath is the flowtables of all tables.
type fastPath struct {
	tables []*table
	// on: the kernel has flowtables and the operator wants them. note says which, and why.
	on   bool
	note string
	// made is when this process made the flowtables anew.
	made time.Time
}

// renewal is how often the flowtables are made anew. A flow that never rests has its time in conntrack set to a day when it becomes fast,
// and again when only five minutes of it are left (nf_flow_table_extend_ct_timeout, Linux 6.12): one that rests then would be forgotten
// after these. So 18 hours are left at least, whatever an earlier process did: the first refresh makes them anew.
const renewal = 6 * time.Hour

// openFastPath makes, takes over or removes the flowtables, as the option says.
func openFastPath(tables []*table, option string) (*fastPath, error) {
	f := &fastPath{tables: tables}
	switch option {
	case "", flowtableAuto:
	case flowtableOff:
		f.note = "fast path: none: the option " + optionFlowtable + " is " + flowtableOff
		return f, f.hold(nil, false)
	default:
		return nil, fmt.Errorf("backend option %s=%q: it is %s or %s", optionFlowtable, option, flowtableAuto, flowtableOff)
	}
	err := f.refresh()
	switch {
	case err == nil:
		f.on, f.note = true, "fast path: known flows of nat and transparent frontends take a flowtable"
		return f, nil
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP):
		f.note = "fast path: none: this kernel lacks flowtables: load the modules nft_flow_offload, nft_fib_ipv4, nft_fib_ipv6 and nf_flow_table_inet (before Linux 5.17 nf_flow_table_ipv4 and nf_flow_table_ipv6), and restart the gateway"
	default:
		f.note = "fast path: none: " + err.Error()
	}
	return f, f.hold(nil, false)
}

// attempts bounds how often the flowtables are made while interfaces go.
const attempts = 3

// refresh brings the flowtables to the host's interfaces, and makes them anew when it is time. Its error is ENOENT or EOPNOTSUPP where the
// kernel lacks flowtables.
func (f *fastPath) refresh() error {
	interfaces, err := fastInterfaces()
	if err != nil {
		return err
	}
	renew := time.Since(f.made) > renewal
	for range attempts {
		if err = f.hold(interfaces, renew); err == nil && renew {
			f.made = time.Now()
		}
		if !errors.Is(err, unix.ENOENT) {
			return err
		}
		// An interface that has gone meanwhile has the same error as a kernel without flowtables.
		before := interfaces
		if interfaces, err = fastInterfaces(); err != nil {
			return err
		}
		if slices.Equal(before, interfaces) {
			return fmt.Errorf("make flowtables: %w", unix.ENOENT)
		}
	}
	return err
}

// hold has every table's flowtable stand at these interfaces, which are sorted, a new one if so asked. Without interfaces there is none.
func (f *fastPath) hold(interfaces []string, renew bool) error {
	c, err := elements.Connect()
	if err != nil {
		return err
	}
	var changed []*table
	for _, t := range f.tables {
		there, held, err := t.fastAt(c)
		if err != nil {
			return err
		}
		if !renew && slices.Equal(held, interfaces) && there == (len(interfaces) > 0) {
			continue
		}
		// Made anew: its flows take the slow path for a packet and come back.
		if there {
			if err := t.removeFlowtable(c); err != nil {
				return err
			}
		}
		if len(interfaces) > 0 {
			if err := t.addFlowtable(c, interfaces); err != nil {
				return err
			}
			changed = append(changed, t)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("make flowtables at interfaces %q: %w", interfaces, err)
	}
	for _, t := range changed {
		if err := t.setFastRules(); err != nil {
			return errors.Join(err, f.hold(nil, false))
		}
	}
	return nil
}

// fastAt tells whether the table has its flowtable, and at which interfaces, sorted: none if the set for the rules has others, or their
// chain is gone. The kernel takes an interface that goes out of the flowtable, but not out of the set, and renames it in the flowtable
// alone.
func (t *table) fastAt(c *nft.Conn) (there bool, interfaces []string, err error) {
	all, err := c.ListFlowtables(t.nft)
	if err != nil {
		return false, nil, fmt.Errorf("list flowtables of table %s %s: %w", t.layout.name, t.nft.Name, err)
	}
	i := slices.IndexFunc(all, func(f *nft.Flowtable) bool { return f.Name == flowtableName })
	if i < 0 {
		return false, nil, nil
	}
	sets, err := c.GetSets(t.nft)
	if err != nil {
		return true, nil, fmt.Errorf("list sets of table %s %s: %w", t.layout.name, t.nft.Name, err)
	}
	if !slices.ContainsFunc(sets, func(s *nft.Set) bool { return s.Name == setFastInterfaces }) {
		return true, nil, nil
	}
	chains, err := c.ListChainsOfTableFamily(t.nft.Family)
	if err != nil {
		return true, nil, fmt.Errorf("list chains: %w", err)
	}
	if !slices.ContainsFunc(chains, func(c *nft.Chain) bool { return c.Table.Name == t.nft.Name && c.Name == flowtableName }) {
		return true, nil, nil
	}
	inSet, err := c.GetSetElements(t.fastInterfaces())
	if err != nil {
		return true, nil, fmt.Errorf("read %s: %w", setFastInterfaces, err)
	}
	var names []string
	for _, e := range inSet {
		names = append(names, string(bytes.TrimRight(e.Key, "\x00")))
	}
	slices.Sort(names)
	if interfaces = slices.Sorted(slices.Values(all[i].Devices)); !slices.Equal(interfaces, names) {
		return true, nil, nil
	}
	return true, interfaces, nil
}

func (t *table) addFlowtable(c *nft.Conn, interfaces []string) error {
	// The flag counter keeps conntrack's accounting true where an administrator has turned that on.
	c.AddFlowtable(&nft.Flowtable{Table: t.nft, Name: flowtableName, Devices: interfaces, Flags: nft.FlowtableFlagsCounter})
	var names []nft.SetElement
	for _, name := range interfaces {
		names = append(names, nft.SetElement{Key: interfaceName(name)})
	}
	if err := c.AddSet(t.fastInterfaces(), names); err != nil {
		return fmt.Errorf("set %s: %w", setFastInterfaces, err)
	}
	addChains(c, t.nft, []chain{{name: flowtableName, hook: nft.ChainHookForward, kind: nft.ChainTypeFilter, priority: fastPriority}})
	return nil
}

// removeFlowtable removes chain and set, too, even if somebody else has done so already: what is there can be added.
func (t *table) removeFlowtable(c *nft.Conn) error {
	c.DelChain(c.AddChain(t.fastChain()))
	if err := c.AddSet(t.fastInterfaces(), nil); err != nil {
		return fmt.Errorf("set %s: %w", setFastInterfaces, err)
	}
	c.DelSet(t.fastInterfaces())
	c.DelFlowtable(&nft.Flowtable{Table: t.nft, Name: flowtableName})
	return nil
}

func (t *table) fastInterfaces() *nft.Set {
	return &nft.Set{Table: t.nft, Name: setFastInterfaces, KeyType: nft.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
}

// interfaceName is a key of type ifname.
func interfaceName(name string) []byte {
	key := make([]byte, unix.IFNAMSIZ)
	copy(key, name)
	return key
}

func (t *table) fastChain() *nft.Chain { return &nft.Chain{Table: t.nft, Name: flowtableName} }

// setFastRules has the chain put flows into the flowtable, when they meet an answer of the endpoint:
//
//	meta l4proto tcp ct direction reply ct state established ct status dnat ct status assured meta mark 0x00000000 ct mark 0x00000000
//		ct original ip daddr @vips ct original ip daddr != @slow_path iifname @fast_interfaces oifname @fast_interfaces
//		fib saddr . iif oif exists flow add @fast
//
// and the same for UDP. Each statement keeps out what the fast path would treat unlike the slow path:
//
//   - ICMP errors, which belong to the flow for conntrack but have no ports;
//   - flows that nobody has answered, and UDP flows younger than two seconds, which are not assured: conntrack forgets them soon, and
//     would keep them four times as long after they were fast;
//   - flows with a mark: those of direct frontends have a connection mark, and are rewritten outside of conntrack. A mark of another
//     program may stand for a route or a filter of its own;
//   - flows of others, and of addresses in setSlowPath;
//   - flows with a half that would not be fast: conntrack would see only the other half, and forget the connection early;
//   - flows whose packets take another interface than their answers: the kernel has the fast path send both to where it met the answer.
func (t *table) setFastRules() error {
	var rules [][]netlink.Attribute
	for _, protocol := range masqueraded() {
		rule, err := t.fastRule(protocol)
		if err != nil {
			return err
		}
		rules = append(rules, rule)
	}
	return t.replaceRules(flowtableName, rules)
}

// fastRule is written by itself: google/nftables v0.3.0 has of ct's addresses only a key that makes nft 1.0 abort when it lists the rule.
func (t *table) fastRule(protocol statement) ([]netlink.Attribute, error) {
	var before []expr.Any
	for _, s := range []statement{protocol, isAnswer(), ctStateHas("established", expr.CtStateBitESTABLISHED), ctStatusDNAT(), ctStatusAssured(), isUnmarked(), isFlow(0)} {
		before = append(before, s.exprs...)
	}
	list, err := t.marshal(before)
	if err != nil {
		return nil, err
	}
	address, err := t.originalDestination()
	if err != nil {
		return nil, err
	}
	after := []expr.Any{lookup(setVIPs, 0), &expr.Lookup{SourceRegister: 1, SetName: setSlowPath, Invert: true}}
	for _, s := range []statement{interfaceIn("iifname", expr.MetaKeyIIFNAME), interfaceIn("oifname", expr.MetaKeyOIFNAME), routeGoesBack()} {
		after = append(after, s.exprs...)
	}
	rest, err := t.marshal(append(after, &expr.FlowOffload{Name: flowtableName}))
	return slices.Concat(list, []netlink.Attribute{address}, rest), err
}

// originalDestination loads the address that the flow's first packet went to.
func (t *table) originalDestination() (netlink.Attribute, error) {
	const original = 0 // IP_CT_DIR_ORIGINAL
	key := uint32(unix.NFT_CT_DST_IP6)
	if t.layout.v4 {
		key = unix.NFT_CT_DST_IP
	}
	return expression("ct", []netlink.Attribute{
		{Type: unix.NFTA_CT_KEY, Data: number(key)}, {Type: unix.NFTA_CT_DREG, Data: number(1)}, {Type: unix.NFTA_CT_DIRECTION, Data: []byte{original}}})
}

func isAnswer() statement {
	const reply = 1 // IP_CT_DIR_REPLY
	return statement{"ct direction reply", []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{reply}}}}
}

func ctStatusAssured() statement {
	const assured = 0x4 // IPS_ASSURED
	return statement{"ct status assured", ctHas(expr.CtKeySTATUS, assured)}
}

func isUnmarked() statement {
	return statement{"meta mark 0x00000000", []expr.Any{loadMark(0), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: mark(0)}}}
}

func interfaceIn(name string, key expr.MetaKey) statement {
	return statement{name + " @" + setFastInterfaces, []expr.Any{&expr.Meta{Key: key, Register: 1}, lookup(setFastInterfaces, 0)}}
}

// routeGoesBack matches where a packet to the sender would leave by the interface that this one came in at.
func routeGoesBack() statement {
	return statement{"fib saddr . iif oif exists", []expr.Any{
		&expr.Fib{Register: 1, ResultOIF: true, FlagSADDR: true, FlagIIF: true, FlagPRESENT: true}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: mark(1)}}}
}
