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

// The maps. A frontend has two elements (four with affinity). A pool has its rows and three elements for each endpoint, whatever the number of its
// frontends. An endpoint belongs to one pool. A node is the address of endpoints in any pools. With affinity a client is stored with its node,
// so that it keeps the node when the frontend gets another pool.
const (
	setVIPs        = "vips"        // address
	setRestricted  = "restricted"  // frontend with source ranges
	mapRanges      = "ranges"      // frontend -> goto ranges-<digest of its source ranges>
	setTransparent = "transparent" // frontend with forwarding transparent
	setSlowPath    = "slow_path"   // address whose flows stay out of the flowtable
	mapNextGateway = "next"        // frontend -> next gateway of redirected packets
	mapRedirects   = "asks"        // frontend -> goto ask-<maximum number of redirects>
	mapDirect      = "direct"      // frontend with forwarding direct -> its number
	setEmpty       = "empty_pools" // pool without endpoints
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

// counters returns the names of the table's counters.
func counters() []string { return []string{counterRefused, counterNotAllowed, counterLimited} }

// maxClients bounds the stored clients of each family. While the map is full, the endpoint of a new client is chosen by hash alone.
const maxClients = 1 << 20

// maxTimeouts bounds the number of different affinity timeouts, each of which needs chains. Beyond it a timeout is rounded
// up to the next one with chains. The timeout of a day always has chains.
const maxTimeouts = 256

const longestTimeout = 24 * time.Hour

// chain is a chain of a table with its rules.
type chain struct {
	name string
	// hook is nil for a chain that is only called by others.
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
	// protocols returns the anonymous set {tcp, udp} with which every rule with ports begins. Each rule needs its own.
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

// sets returns the named sets and maps in the order in which they are created.
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
	storedClients := nft.Set{IsMap: true, KeyType: clients, DataType: nft.TypeMark, Dynamic: true, HasTimeout: true, Timeout: longestTimeout, Size: maxClients}
	out := []keySet{
		{name: setVIPs, text: "type " + address, set: nft.Set{KeyType: l.address}},
		{name: setRestricted, text: "type " + frontend, set: nft.Set{KeyType: l.frontendType()}},
		{name: mapRanges, text: "type " + frontend + " : verdict", set: m(l.frontendType(), nft.TypeVerdict)},
		{name: setTransparent, text: "type " + frontend, set: nft.Set{KeyType: l.frontendType()}},
		{name: setSlowPath, text: "type " + address, set: nft.Set{KeyType: l.address}},
		{name: mapNextGateway, text: "type " + frontend + " : " + address, set: m(l.frontendType(), l.address)},
		{name: mapRedirects, text: "type " + frontend + " : verdict", set: m(l.frontendType(), nft.TypeVerdict)},
		{name: mapDirect, text: "type " + frontend + " : mark", set: m(l.frontendType(), nft.TypeMark)},
		{name: setEmpty, text: "type mark", set: nft.Set{KeyType: nft.TypeMark}},
		{name: mapPools, text: "type " + frontend + " : mark", set: m(l.frontendType(), nft.TypeMark)},
		{name: mapPorts, text: "type " + frontend + " : inet_service; counter", set: counted(m(l.frontendType(), nft.TypeInetService))},
		{name: mapAffinity, text: "type " + frontend + " : mark", set: m(l.frontendType(), nft.TypeMark)},
		{name: mapAffinities, text: "type " + frontend + " : verdict", set: m(l.frontendType(), nft.TypeVerdict)},
		{name: mapClients, text: fmt.Sprintf("type mark . %s : mark; size %d; flags dynamic,timeout; timeout 1d", address, maxClients), set: storedClients},
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
	for limit := 1; limit <= model.MaxRedirects; limit++ {
		chains = append(chains, l.redirectChain(limit))
	}
	chains = append(chains, []chain{
		// The chain of the source ranges returns to the caller of this chain. If the map has no element, as while it changes, the packet is dropped.
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
		// In mode nat connection tracking sees a connection from its first packet. So a packet of an unknown connection belongs to a former owner,
		// or to a connection that has expired. It is refused here, and no endpoint sees it.
		{name: "check_begun", rules: [][]statement{
			{l.frontendIn(setTransparent), returnToCaller()},
			{l.markFromFrontend(mapDirect), returnToCaller()},
			{goTo("refuse")},
		}},
		{name: "admit_vip", rules: [][]statement{
			noteClientEnd(),
			{ctStateHas("established,related", expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept()},
			// A flow without an answer is still new to connection tracking, but its endpoint is chosen.
			{ctStatusDNAT(), accept()},
			// A proxy that this dataplane replaces, or that replaces it, has its own sockets for VIPs, and redirects packets itself.
			{isNoOpening(), socketIsTransparent(), accept()},
			{isNoOpening(), l.frontendVerdict(mapRedirects)},
			// Such as the reset of an unknown connection, which a router would send back.
			{ctStateHas("invalid", expr.CtStateBitINVALID), drop()},
			{isNoOpening(), jump("check_begun")},
			{isTCPOrUDP(l.protocols()), l.markFromFrontend(mapPools), goTo("admit_frontend")},
			{isTCPOrUDP(l.protocols()), goTo("refuse")},
			{l.isEcho(), limitTo(1000), accept()},
			{drop()},
		}},
		{name: "forward", rules: [][]statement{
			{setFlowMark(flowMark)},
			{isTCPOrUDP(l.protocols()), l.frontendIn(setTransparent), setFlowMark(transparentMark)},
			{isTCPOrUDP(l.protocols()), l.ctMarkFromFrontend(mapDirect)},
			{isTCPOrUDP(l.protocols()), l.forward(mapEndpoints, mapPorts)},
		}},
		{name: "spread", rules: [][]statement{
			{markVerdict(mapFlows)},
			{jump("forward")},
			// The maps may change between two lookups, so that the chosen endpoint is gone. The packet is dropped: otherwise connection tracking
			// would route it, and all packets after it, without NAT.
			{drop()},
		}},
		// It returns if the frontend's pool does not have the node.
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
	masquerading := chain{name: chainMasquerade}
	for _, protocol := range masqueraded() {
		masquerading.rules = append(masquerading.rules, []statement{protocol, clearCtMark(), masquerade()})
	}
	chains = append(chains, masquerading)
	return append(chains, l.baseChains()...)
}

// firstTTL is the TTL with which the first gateway redirects a packet. minTTL is the lowest TTL of a redirected packet, after the maximum
// number of redirects.
const (
	firstTTL = 255
	minTTL   = firstTTL - model.MaxRedirects
)

// redirectChain redirects a packet of an unknown connection to the next gateway, unless its TTL says that it has been redirected often enough: see
// model.Redirect. The kernel lowers the TTL by one when it sends the copy.
func (l layout) redirectChain(limit int) chain {
	return chain{name: redirectChain(uint8(limit)), rules: [][]statement{
		{l.ttlBetween(minTTL, firstTTL-limit), goTo("refuse")},
		{l.ttlBelow(minTTL), l.setTTL(firstTTL)},
		{l.sendCopyTo(mapNextGateway), drop()},
		{drop()},
	}}
}

func redirectChain(limit uint8) string { return fmt.Sprintf("ask-%d", limit) }

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
				{ctStateHas("new", expr.CtStateBitNEW), hasFlowMark(flowMark), clearMark()},
				{ctStateHas("new", expr.CtStateBitNEW), hasFlowMark(transparentMark), clearMark(), clearCtMark()},
				{ctStateHas("new", expr.CtStateBitNEW), isDirectFlow(), clearMark()},
			}},
		{name: "postrouting", hook: nft.ChainHookPostrouting, kind: nft.ChainTypeNAT, priority: 100, text: "type nat hook postrouting priority srcnat; policy accept;",
			rules: [][]statement{
				{ctStatusDNAT(), hasFlowMark(flowMark), jump(chainMasquerade)},
			}},
	}
}

// affinityChains serve all frontends with one affinity timeout. They choose the client's stored node if the pool has it and it gets new flows.
// Otherwise they choose the endpoint of the row for the client's address, and store its node.
func (l layout) affinityChains(timeout time.Duration) []chain {
	choose := fmt.Sprintf("choose-%d", int(timeout.Seconds()))
	again := fmt.Sprintf("again-%d", int(timeout.Seconds()))
	return []chain{
		{name: choose, rules: [][]statement{
			{isTCPOrUDP(l.protocols()), l.markFromFrontend(mapPools)},
			{markVerdict(mapSources)},
			{markFromMark(mapNodes)},
			{isTCPOrUDP(l.protocols()), l.ctMarkFromFrontend(mapAffinity)},
			{l.deleteClient(mapClients)},
			{l.storeClient(mapClients, timeout)},
			{jump("forward_to_node")},
			{drop()},
		}},
		{name: again, rules: [][]statement{
			{l.storeClient(mapClients, timeout)},
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
