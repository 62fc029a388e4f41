package nftables

import (
	"fmt"
	"strings"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"

	"kubelb.k8c.io/core/maglev"
	"kubelb.k8c.io/core/model"
)

// The maps. A frontend is two elements (four with affinity), a pool its rows and three for each endpoint, whatever the number of frontends on it.
// An endpoint is one of a pool. A node is an address of endpoints, in whatever pools: clients are remembered with it, and keep it when
// their frontend gets another pool.
const (
	setVIPs        = "vips"        // address
	setRestricted  = "restricted"  // frontend: source ranges count
	mapRanges      = "ranges"      // frontend -> goto ranges-<digest of its source ranges>
	setTransparent = "transparent" // frontend: the source is kept
	setSlowPath    = "slow_path"   // address: its flows stay out of the flowtable
	mapNext        = "next"        // frontend -> the gateway that may know its connections
	mapAsks        = "asks"        // frontend -> goto ask-<number of gateways that are asked altogether>
	mapDirect      = "direct"      // frontend -> its number: nothing but the Ethernet address changes
	setEmpty       = "empty_pools" // pool: nobody to forward to
	mapPools       = "pools"       // frontend -> pool; comment: digest
	mapPorts       = "ports"       // frontend -> target port; counter: connections
	mapAffinity    = "affinity"    // frontend -> number of the frontend, for clients
	mapAffinities  = "affinities"  // frontend -> goto affinity-<timeout>
	mapClients     = "clients"     // number of the frontend . client -> node
	mapRegistry    = "registry"    // pool -> size class; comment: digest and name
	mapFlows       = "flows"       // pool -> jump flow-<size class>
	mapSources     = "sources"     // pool -> jump source-<size class>
	mapRows        = "rows"        // pool . row -> endpoint
	mapNodes       = "nodes"       // endpoint -> node
	mapMembers     = "members"     // pool . node -> endpoint
	mapEndpoints   = "endpoints"   // endpoint -> address; comment: pool and id; counter: connections

	chainMasquerade = "masquerade_flow"

	counterRefused    = "refused"     // no such frontend, or an empty pool
	counterNotAllowed = "not_allowed" // outside the source ranges
)

// counters are the table's.
func counters() []string { return []string{counterRefused, counterNotAllowed, counterLimited} }

// maxClients bounds the affinity memory of each family; a full map makes new clients choose by hash alone.
const maxClients = 1 << 20

// maxTimeouts bounds the chains that distinct affinity timeouts need. Beyond it a timeout is rounded up to the next one
// that has a chain; that of a day always has.
const maxTimeouts = 256

const longestTimeout = 24 * time.Hour

// chain is a chain of a table with its rules.
type chain struct {
	name string
	// hook is nil for a chain that others jump to.
	hook     *nft.ChainHook
	kind     nft.ChainType
	priority nft.ChainPriority
	text     string // the hook as nft writes it
	rules    [][]statement
}

// keySet describes a set or map.
type keySet struct {
	name string
	text string // type and flags as nft writes them
	set  nft.Set
}

// layout is the fixed part of one family's table.
type layout struct {
	family
	// protocols is the anonymous set {tcp, udp} that every rule with ports begins with; each rule needs one of its own.
	protocols func() *nft.Set
}

func (l layout) frontendTypeText() string {
	if l.v4 {
		return "ipv4_addr . inet_proto . inet_service"
	}
	return "ipv6_addr . inet_proto . inet_service"
}

func (l layout) frontendType() nft.SetDatatype {
	return nft.MustConcatSetType(l.address, nft.TypeInetProto, nft.TypeInetService)
}

// sets returns the named sets and maps in the order in which they are made.
func (l layout) sets() []keySet {
	address := "ipv6_addr"
	if l.v4 {
		address = "ipv4_addr"
	}
	frontend := l.frontendTypeText()
	markPair := nft.MustConcatSetType(nft.TypeMark, nft.TypeMark)
	clients := nft.MustConcatSetType(nft.TypeMark, l.address)
	m := func(key, data nft.SetDatatype) nft.Set { return nft.Set{IsMap: true, KeyType: key, DataType: data} }
	counted := func(s nft.Set) nft.Set { s.Counter = true; return s }
	remembered := nft.Set{IsMap: true, KeyType: clients, DataType: nft.TypeMark, Dynamic: true, HasTimeout: true, Timeout: longestTimeout, Size: maxClients}
	out := []keySet{
		{name: setVIPs, text: "type " + address, set: nft.Set{KeyType: l.address}},
		{name: setRestricted, text: "type " + frontend, set: nft.Set{KeyType: l.frontendType()}},
		{name: mapRanges, text: "type " + frontend + " : verdict", set: m(l.frontendType(), nft.TypeVerdict)},
		{name: setTransparent, text: "type " + frontend, set: nft.Set{KeyType: l.frontendType()}},
		{name: setSlowPath, text: "type " + address, set: nft.Set{KeyType: l.address}},
		{name: mapNext, text: "type " + frontend + " : " + address, set: m(l.frontendType(), l.address)},
		{name: mapAsks, text: "type " + frontend + " : verdict", set: m(l.frontendType(), nft.TypeVerdict)},
		{name: mapDirect, text: "type " + frontend + " : mark", set: m(l.frontendType(), nft.TypeMark)},
		{name: setEmpty, text: "type mark", set: nft.Set{KeyType: nft.TypeMark}},
		{name: mapPools, text: "type " + frontend + " : mark", set: m(l.frontendType(), nft.TypeMark)},
		{name: mapPorts, text: "type " + frontend + " : inet_service; counter", set: counted(m(l.frontendType(), nft.TypeInetService))},
		{name: mapAffinity, text: "type " + frontend + " : mark", set: m(l.frontendType(), nft.TypeMark)},
		{name: mapAffinities, text: "type " + frontend + " : verdict", set: m(l.frontendType(), nft.TypeVerdict)},
		{name: mapClients, text: fmt.Sprintf("type mark . %s : mark; size %d; flags dynamic,timeout; timeout 1d", address, maxClients), set: remembered},
		{name: mapRegistry, text: "type mark : mark", set: m(nft.TypeMark, nft.TypeMark)},
		{name: mapFlows, text: "type mark : verdict", set: m(nft.TypeMark, nft.TypeVerdict)},
		{name: mapSources, text: "type mark : verdict", set: m(nft.TypeMark, nft.TypeVerdict)},
		{name: mapRows, text: "type mark . mark : mark", set: m(markPair, nft.TypeMark)},
		{name: mapNodes, text: "type mark : mark", set: m(nft.TypeMark, nft.TypeMark)},
		{name: mapMembers, text: "type mark . mark : mark", set: m(markPair, nft.TypeMark)},
		{name: mapEndpoints, text: "type mark : " + address + "; counter", set: counted(m(nft.TypeMark, l.address))},
	}
	for _, k := range limitKinds() {
		out = append(out, keySet{name: k.verdicts, text: "type " + frontend + " : verdict", set: m(l.frontendType(), nft.TypeVerdict)})
	}
	for i := range out {
		s := &out[i].set
		s.Name = out[i].name
		s.Concatenation = strings.Contains(s.KeyType.Name, " . ")
		if s.KeyType.Name == nft.TypeMark.Name || s.KeyType.Name == markPair.Name {
			s.KeyByteOrder = binaryutil.NativeEndian
		}
	}
	return out
}

// chains returns the fixed chains, called ones before their callers.
func (l layout) chains() []chain {
	chains := []chain{
		{name: "refuse", rules: [][]statement{
			{isProtocol("tcp", 6), count(counterRefused), rejectReset()},
			{count(counterRefused), l.rejectUnreachable()},
		}},
	}
	chains = append(chains, endChains()...)
	for asks := 1; asks <= model.MaxAsks; asks++ {
		chains = append(chains, l.askChain(asks))
	}
	chains = append(chains, []chain{
		// The list's chain returns to who asked, and not here: where the map says nothing, such as while it changes, nobody is let in.
		{name: "check_source", rules: [][]statement{
			{l.frontendVerdict(mapRanges)},
			{count(counterNotAllowed), drop()},
		}},
		{name: "admit_frontend", rules: [][]statement{
			{l.frontendIn(setRestricted), jump("check_source")},
			{l.frontendVerdict(limitKinds()[1].verdicts)},
			{l.frontendVerdict(limitKinds()[0].verdicts)},
			{markIn(setEmpty), goTo("refuse")},
			{accept()},
		}},
		// What is rewritten is known from its beginning on: a packet of a connection that is not known is of a former owner's, or of one that
		// is forgotten. Its client hears so from here, and no endpoint sees it.
		{name: "check_begun", rules: [][]statement{
			{l.frontendIn(setTransparent), backToCaller()},
			{l.markFromFrontend(mapDirect), backToCaller()},
			{goTo("refuse")},
		}},
		{name: "admit_vip", rules: [][]statement{
			noteClientsEnd(),
			{ctStateHas("established,related", expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept()},
			// A flow that nobody has answered yet is still new to conntrack, but its endpoint is chosen.
			{ctStatusDNAT(), accept()},
			// A proxy that this backend takes over from, or gives way to, has sockets of its own for VIPs, and asks others itself.
			{isNoOpening(), socketIsTransparent(), accept()},
			{isNoOpening(), l.frontendVerdict(mapAsks)},
			// Such as the reset of a connection that nobody knows: routed as it is it would only come back.
			{ctStateHas("invalid", expr.CtStateBitINVALID), drop()},
			{isNoOpening(), jump("check_begun")},
			{isTCPOrUDP(l.protocols()), l.markFromFrontend(mapPools), goTo("admit_frontend")},
			{isTCPOrUDP(l.protocols()), goTo("refuse")},
			{l.isEcho(), limitTo(1000), accept()},
			{drop()},
		}},
		{name: "forward", rules: [][]statement{
			{takeFlow(flowMark)},
			{isTCPOrUDP(l.protocols()), l.frontendIn(setTransparent), takeFlow(transparentMark)},
			{isTCPOrUDP(l.protocols()), l.ctMarkFromFrontend(mapDirect)},
			{isTCPOrUDP(l.protocols()), l.forward(mapEndpoints, mapPorts)},
		}},
		{name: "spread", rules: [][]statement{
			{markVerdict(mapFlows)},
			{jump("forward")},
			// Between a packet's looks at two maps a change may come: what was chosen is no more. It is lost as packets are, and not
			// left to the routes, with all that follow it.
			{drop()},
		}},
		// It returns if the frontend's pool has not the node.
		{name: "forward_to_node", rules: [][]statement{
			{ctMarkFromMark()},
			{isTCPOrUDP(l.protocols()), l.markFromFrontend(mapPools)},
			{handleFromRow(mapMembers), jump("forward")},
		}},
	}...)
	for _, size := range maglev.Sizes() {
		chains = append(chains,
			chain{name: flowChain(size), rules: [][]statement{{l.rowFromFlow(size)}, {handleFromRow(mapRows)}}},
			chain{name: sourceChain(size), rules: [][]statement{{l.rowFromSource(size)}, {handleFromRow(mapRows)}}})
	}
	chains = append(chains, l.directChains()...)
	chains = append(chains, l.affinityChains(longestTimeout)...)
	masquerades := chain{name: chainMasquerade}
	for _, protocol := range masqueraded() {
		masquerades.rules = append(masquerades.rules, []statement{protocol, clearCtMark(), masquerade()})
	}
	chains = append(chains, masquerades)
	return append(chains, l.baseChains()...)
}

// untouchedTTL is that of a packet about which nobody has been asked yet, when it is sent on; leastTTL that of one about which all have that
// may be.
const (
	untouchedTTL = 255
	leastTTL     = untouchedTTL - model.MaxAsks
)

// askChain sends a packet of a connection that is not known here to the next gateway that may know it, unless so many have been asked,
// which its TTL says: see model.Handover. The kernel takes one from it when it sends the copy.
func (l layout) askChain(asks int) chain {
	return chain{name: askChain(uint8(asks)), rules: [][]statement{
		{l.ttlFrom(leastTTL, untouchedTTL-asks), goTo("refuse")},
		{l.ttlBelow(leastTTL), l.setTTL(untouchedTTL)},
		{l.sendCopyTo(mapNext), drop()},
		{drop()},
	}}
}

func askChain(asks uint8) string { return fmt.Sprintf("ask-%d", asks) }

func (l layout) baseChains() []chain {
	prerouting := nft.ChainHookPrerouting
	return []chain{
		{name: "admit", hook: prerouting, kind: nft.ChainTypeFilter, priority: -110, text: "type filter hook prerouting priority -110; policy accept;",
			rules: [][]statement{{l.destinationIn(setVIPs), jump("admit_vip")}}},
		{name: "prerouting", hook: prerouting, kind: nft.ChainTypeNAT, priority: -100, text: "type nat hook prerouting priority dstnat; policy accept;",
			rules: [][]statement{
				{isTCPOrUDP(l.protocols()), l.frontendVerdict(mapAffinities)},
				{isTCPOrUDP(l.protocols()), l.markFromFrontend(mapPools), goTo("spread")},
				{l.destinationIn(setVIPs), l.isEcho(), redirect()},
			}},
		{name: "scrub", hook: prerouting, kind: nft.ChainTypeFilter, priority: -90, text: "type filter hook prerouting priority -90; policy accept;",
			rules: [][]statement{
				{ctStateHas("new", expr.CtStateBitNEW), isFlow(flowMark), clearMark()},
				{ctStateHas("new", expr.CtStateBitNEW), isFlow(transparentMark), clearMark(), clearCtMark()},
				{ctStateHas("new", expr.CtStateBitNEW), isDirectFlow(), clearMark()},
			}},
		{name: "postrouting", hook: nft.ChainHookPostrouting, kind: nft.ChainTypeNAT, priority: 100, text: "type nat hook postrouting priority srcnat; policy accept;",
			rules: [][]statement{
				{ctStatusDNAT(), isFlow(flowMark), jump(chainMasquerade)},
			}},
	}
}

// affinityChains serve all frontends with one affinity timeout: the client's node of before if the pool has it and it gets new flows,
// else the row of the client's address, remembered.
func (l layout) affinityChains(timeout time.Duration) []chain {
	choose := fmt.Sprintf("choose-%d", int(timeout.Seconds()))
	again := fmt.Sprintf("again-%d", int(timeout.Seconds()))
	return []chain{
		{name: choose, rules: [][]statement{
			{isTCPOrUDP(l.protocols()), l.markFromFrontend(mapPools)},
			{markVerdict(mapSources)},
			{markFromMark(mapNodes)},
			{isTCPOrUDP(l.protocols()), l.ctMarkFromFrontend(mapAffinity)},
			{l.forgetClient(mapClients)},
			{l.rememberClient(mapClients, timeout)},
			{jump("forward_to_node")},
			{drop()},
		}},
		{name: again, rules: [][]statement{
			{l.rememberClient(mapClients, timeout)},
			{jump("forward_to_node")},
			{goTo(choose)},
		}},
		{name: affinityChain(timeout), rules: [][]statement{
			{isTCPOrUDP(l.protocols()), l.ctMarkFromFrontend(mapAffinity)},
			{l.nodeFromClient(mapClients), goTo(again)},
			{goTo(choose)},
		}},
	}
}

func affinityChain(timeout time.Duration) string {
	return fmt.Sprintf("affinity-%d", int(timeout.Seconds()))
}
func flowChain(size int) string   { return fmt.Sprintf("flow-%d", size) }
func sourceChain(size int) string { return fmt.Sprintf("source-%d", size) }
