package nftables

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/nftables/elements"
	"kubelb.k8c.io/core/maglev"
	"kubelb.k8c.io/core/model"
)

// state is the content of one family's table.
type state struct {
	family     family
	pools      map[model.PoolID]*poolState
	poolOf     map[uint32]model.PoolID
	frontends  map[model.FrontendKey]*frontendState
	vips       map[netip.Addr]int
	slow       map[netip.Addr]int // number of frontends that keep the flows of an address out of the flowtable
	timeouts   map[time.Duration]bool
	limits     limits
	ranges     map[string]int // number of frontends that use each list of source ranges
	nodes      map[nodeKey]node
	lastPool   uint32
	lastNode   uint32
	lastHandle uint32
	lastNumber uint32
	lastDirect uint32
	// created is set if there was no table before this process created it.
	created bool
	// staleClients is set if the kernel's map may have clients of a number that no frontend has.
	staleClients bool
}

// poolState is a pool in the kernel.
type poolState struct {
	mark   uint32
	digest model.Digest
	size   int
	// rows has the handle in each row. It is nil after adoption: only the number of rows is known.
	rows []uint32
	// endpoints are by id. The kernel does not have endpoints that get no new flows: after adoption they are unknown.
	endpoints map[string]endpointState
	// complete is set once this process has got the pool's content.
	complete bool
}

// nodeKey identifies the node of endpoints in different pools.
type nodeKey struct {
	id      string
	address netip.Addr
}

// node has a number that is never used for another node.
type node struct {
	number uint32
	users  int // endpoints
}

// endpointState is an endpoint in the kernel.
type endpointState struct {
	handle     uint32
	node       uint32 // the number of its node, 0 if it has not been listed yet
	address    netip.Addr
	listed     bool // it has an element, and gets new flows
	keepsFlows bool // its flows go on
}

// frontendState is a frontend in the kernel.
type frontendState struct {
	digest     model.Digest
	pool       uint32
	target     uint16
	number     uint32 // 0 without affinity
	timeout    time.Duration
	ranges     string // the name of its list of source ranges, empty for none
	forwarding model.Forwarding
	redirect   model.Redirect
	limits     map[string]uint32
	// direct is the number of a frontend that is direct, or was: its flows have the number as connection mark.
	direct uint32
}

// Handles of endpoints have the top bit set, and marks of pools do not, so that they are never confused.
const handleBit = 1 << 31

func newState(f family) *state {
	return &state{
		family: f, pools: map[model.PoolID]*poolState{}, poolOf: map[uint32]model.PoolID{},
		frontends: map[model.FrontendKey]*frontendState{}, vips: map[netip.Addr]int{}, slow: map[netip.Addr]int{},
		timeouts: map[time.Duration]bool{longestTimeout: true}, limits: newLimits(), ranges: map[string]int{}, nodes: map[nodeKey]node{}, lastHandle: handleBit, lastDirect: directNumbers,
	}
}

// edit adds or removes one element.
type edit struct {
	set     string
	remove  bool
	element nft.SetElement
}

// plan is the change of one record, which is sent in one transaction.
type plan struct {
	edits []edit
	// vips changes the number of frontends that use an address, slow the number of those that keep its flows out of the flowtable.
	vips, slow map[netip.Addr]int
	// timeout is an affinity timeout that may need new chains, limits are limits that may need new chains.
	timeout time.Duration
	limits  map[string]uint32
	// ranges are lists of source ranges that get one user more or less.
	ranges rangeChanges
	// toUncount are elements to delete from sets to which the kernel adds elements itself.
	toUncount []edit
	// commit applies the change to the state once the kernel has it.
	commit func()
	// stale is set if connection tracking may have flows to an endpoint that they must not reach any more.
	stale bool
	// removed and added are frontends, see ended.
	removed, added []model.FrontendKey
}

func (p *plan) add(set string, key, value []byte, comment string) {
	p.edits = append(p.edits, edit{set: set, element: nft.SetElement{Key: key, Val: value, Comment: comment}})
}

func (p *plan) goTo(set string, key []byte, kind expr.VerdictKind, chain string) {
	p.edits = append(p.edits, edit{set: set, element: nft.SetElement{Key: key, VerdictData: &expr.Verdict{Kind: kind, Chain: chain}}})
}

func (p *plan) remove(set string, key []byte) {
	p.edits = append(p.edits, edit{set: set, remove: true, element: nft.SetElement{Key: key}})
}

// setMember adds the key to a set or removes it.
func (p *plan) setMember(set string, key []byte, before, after bool) {
	switch {
	case before && !after:
		p.remove(set, key)
	case after && !before:
		p.add(set, key, nil, "")
	}
}

func decodeKey(b []byte) (model.FrontendKey, error) {
	n := len(b) - 8 // protocol and port have four bytes each
	if n < 0 {
		return model.FrontendKey{}, fmt.Errorf("frontend key of %d bytes", len(b))
	}
	vip, ok := netip.AddrFromSlice(b[:n])
	if !ok {
		return model.FrontendKey{}, fmt.Errorf("frontend key of %d bytes", len(b))
	}
	key := model.FrontendKey{VIP: vip, Protocol: model.Protocol(b[n]), Port: binary.BigEndian.Uint16(b[n+4:])}
	// Another key for the same frontend could not be removed by the frontend's own.
	if !bytes.Equal(b, elements.Frontend(key)) {
		return key, fmt.Errorf("frontend key %x: bytes beside protocol and port are not zero", b)
	}
	return key, nil
}

func rowKey(pool uint32, row int) []byte {
	return binary.NativeEndian.AppendUint32(mark(pool), uint32(row))
}

// maxPoolName bounds a pool's comment, so that nft can read it back.
const maxPoolName = 100

// planPool plans to add or change the pool.
func (s *state) planPool(p model.Pool) (*plan, error) {
	if len(p.ID) > maxPoolName {
		return nil, fmt.Errorf("pool id of %d characters: at most %d", len(p.ID), maxPoolName)
	}
	old := s.pools[p.ID]
	if old == nil {
		s.lastPool++
		old = &poolState{mark: s.lastPool, endpoints: map[string]endpointState{}, complete: true}
	}
	out := &plan{}
	next := s.nextPool(p, old)
	s.planRegistry(out, p.ID, old, next)
	planRows(out, old, next)
	planEndpoints(out, p.ID, old, next)
	for id, e := range old.endpoints {
		after := next.endpoints[id]
		out.stale = out.stale || e.keepsFlows && (!after.keepsFlows || after.address != e.address) || e.listed && !after.listed
	}
	out.commit = func() {
		s.useNodes(old, next)
		s.pools[p.ID], s.poolOf[next.mark] = next, p.ID
	}
	return out, nil
}

// nextPool returns the pool's state after the change. Endpoints that stay keep their handles.
func (s *state) nextPool(p model.Pool, old *poolState) *poolState {
	table := maglev.Table(p.Endpoints)
	next := &poolState{mark: old.mark, digest: p.Digest(), size: len(table), rows: make([]uint32, len(table)), endpoints: map[string]endpointState{}, complete: true}
	handles := make([]uint32, len(p.Endpoints))
	for i, e := range p.Endpoints {
		known, ok := old.endpoints[e.ID]
		if !ok || known.address != e.Address {
			s.lastHandle++
			known = endpointState{handle: s.lastHandle}
		}
		handles[i] = known.handle
		next.endpoints[e.ID] = endpointState{handle: known.handle, node: known.node, address: e.Address, keepsFlows: e.State != model.Unhealthy}
	}
	for row := range table {
		i := table[tableRow(row, len(table))]
		next.rows[row] = handles[i]
		id := p.Endpoints[i].ID
		e := next.endpoints[id]
		e.listed, e.keepsFlows = true, true
		if e.node == 0 {
			e.node = s.nodeNumber(nodeKey{id, e.address})
		}
		next.endpoints[id] = e
	}
	return next
}

// nodeNumber returns the number of the node, a new one if no pool has it.
func (s *state) nodeNumber(key nodeKey) uint32 {
	known, found := s.nodes[key]
	if !found {
		s.lastNode++
		known.number = s.lastNode
		s.nodes[key] = known
	}
	return known.number
}

// useNodes updates the numbers of endpoints of nodes when a pool changes. A node that has left all pools gets another number if it comes back, so that
// no client is stored with it.
func (s *state) useNodes(old, next *poolState) {
	count := func(p *poolState, by int) {
		for id, e := range p.endpoints {
			if e.node != 0 {
				key := nodeKey{id, e.address}
				s.nodes[key] = node{e.node, s.nodes[key].users + by}
			}
		}
	}
	count(next, 1)
	count(old, -1)
	for id, e := range old.endpoints {
		if key := (nodeKey{id, e.address}); s.nodes[key].users == 0 {
			delete(s.nodes, key)
		}
	}
}

// planRegistry plans the pool's name and size class, and whether it is empty.
func (s *state) planRegistry(out *plan, id model.PoolID, old, next *poolState) {
	key := mark(next.mark)
	_, existed := s.pools[id]
	if existed {
		out.remove(mapRegistry, key)
	}
	out.add(mapRegistry, key, mark(uint32(next.size)), string(next.digest)+" "+string(id))
	if existed && old.size == next.size {
		return
	}
	switch {
	case existed && old.size == 0:
		out.remove(setEmpty, key)
	case existed:
		out.remove(mapFlows, key)
		out.remove(mapSources, key)
	}
	if next.size == 0 {
		out.add(setEmpty, key, nil, "")
		return
	}
	out.goTo(mapFlows, key, expr.VerdictJump, flowChain(next.size))
	out.goTo(mapSources, key, expr.VerdictJump, sourceChain(next.size))
}

// planEndpoints plans to add and remove endpoints.
func planEndpoints(out *plan, id model.PoolID, old, next *poolState) {
	for _, name := range slices.Sorted(maps.Keys(old.endpoints)) {
		e := old.endpoints[name]
		if after := next.endpoints[name]; e.listed && (!after.listed || after.handle != e.handle) {
			out.remove(mapEndpoints, mark(e.handle))
			out.remove(mapNodes, mark(e.handle))
			out.remove(mapMembers, rowKey(old.mark, int(e.node)))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(next.endpoints)) {
		e := next.endpoints[name]
		if before := old.endpoints[name]; e.listed && (!before.listed || before.handle != e.handle) {
			out.add(mapEndpoints, mark(e.handle), e.address.AsSlice(), fmt.Sprintf("%d %s", next.mark, name))
			out.add(mapNodes, mark(e.handle), mark(e.node), "")
			out.add(mapMembers, rowKey(next.mark, int(e.node)), mark(e.handle), "")
		}
	}
}

// planDeletePool plans to delete the pool.
func (s *state) planDeletePool(id model.PoolID) *plan {
	old := s.pools[id]
	if old == nil {
		return nil
	}
	out := &plan{}
	out.remove(mapRegistry, mark(old.mark))
	if old.size == 0 {
		out.remove(setEmpty, mark(old.mark))
	} else {
		out.remove(mapFlows, mark(old.mark))
		out.remove(mapSources, mark(old.mark))
	}
	empty := &poolState{mark: old.mark}
	planRows(out, old, empty)
	planEndpoints(out, id, old, empty)
	out.commit = func() {
		s.useNodes(old, empty)
		delete(s.pools, id)
		delete(s.poolOf, old.mark)
	}
	return out
}

// planFrontend plans to add or change the frontend.
func (s *state) planFrontend(f model.Frontend) (*plan, error) {
	pool := s.pools[f.Pool]
	if pool == nil {
		return nil, dataplane.MissingPool(f.Pool)
	}
	limits := limitsOf(f)
	if err := s.checkLimits(limits); err != nil {
		return nil, err
	}
	old, existed := s.frontends[f.FrontendKey]
	if !existed {
		old = &frontendState{}
	}
	next := &frontendState{digest: f.Digest(), pool: pool.mark, target: f.TargetPort, timeout: s.timeoutFor(f.AffinityTimeout),
		number: old.number, forwarding: f.Forwarding, redirect: f.Redirect, limits: limits}
	// The frontend keeps its number, with which clients are stored, while it belongs to the same tenant.
	if next.timeout == 0 {
		next.number = 0
	} else if old.number == 0 || s.poolOf[old.pool].Tenant() != f.Tenant {
		s.lastNumber++
		next.number = s.lastNumber
	}
	next.direct = old.direct
	if f.Forwarding == model.Direct {
		next.target = f.Port
		if next.direct == 0 {
			s.lastDirect++
			next.direct = s.lastDirect
		}
	}
	out := &plan{timeout: next.timeout, limits: next.limits}
	key := elements.Frontend(f.FrontendKey)
	if existed {
		out.remove(mapPools, key)
	} else {
		out.vips = map[netip.Addr]int{f.VIP: 1}
	}
	out.add(mapPools, key, mark(next.pool), string(next.digest))
	if old.target != next.target {
		if existed {
			out.remove(mapPorts, key)
		}
		out.add(mapPorts, key, binary.BigEndian.AppendUint16(nil, next.target), "")
	}
	planAffinity(out, key, old, next)
	planLimits(out, f.VIP, key, old.limits, next.limits)
	s.planRanges(out, f, old, next)
	s.planForwarding(out, f.FrontendKey, old, next)
	out.stale = !existed && s.vips[f.VIP] == 0 || existed && (old.pool != next.pool || old.target != next.target || old.forwarding != next.forwarding)
	switch {
	case existed && s.poolOf[old.pool].Tenant() != f.Tenant:
		out.removed, out.stale = []model.FrontendKey{f.FrontendKey}, true
	case !existed && s.created:
		out.added = []model.FrontendKey{f.FrontendKey}
	}
	out.commit = func() {
		s.frontends[f.FrontendKey] = next
		s.staleClients = s.staleClients || old.number != 0 && old.number != next.number
	}
	return out, nil
}

// timeoutFor returns the timeout whose chains serve the requested one.
func (s *state) timeoutFor(requested time.Duration) time.Duration {
	if requested == 0 || s.timeouts[requested] || len(s.timeouts) < maxTimeouts {
		return requested
	}
	best := longestTimeout
	for t := range s.timeouts {
		if t >= requested && t < best {
			best = t
		}
	}
	return best
}

func planAffinity(out *plan, key []byte, old, next *frontendState) {
	if old.number != next.number {
		if old.number != 0 {
			out.remove(mapAffinity, key)
		}
		if next.number != 0 {
			out.add(mapAffinity, key, mark(next.number), "")
		}
	}
	if old.timeout != next.timeout {
		if old.timeout != 0 {
			out.remove(mapAffinities, key)
		}
		if next.timeout != 0 {
			out.goTo(mapAffinities, key, expr.VerdictGoto, affinityChain(next.timeout))
		}
	}
}

func (s *state) planForwarding(out *plan, k model.FrontendKey, old, next *frontendState) {
	key := elements.Frontend(k)
	out.setMember(setTransparent, key, old.forwarding == model.Transparent, next.forwarding == model.Transparent)
	if old.redirect != next.redirect {
		if !old.redirect.IsZero() {
			out.remove(mapRedirects, key)
			out.remove(mapNextGateway, key)
		}
		if h := next.redirect; !h.IsZero() {
			out.add(mapNextGateway, key, h.Next.AsSlice(), "")
			out.goTo(mapRedirects, key, expr.VerdictGoto, redirectChain(h.Limit))
		}
	}
	switch before, after := old.forwarding == model.Direct, next.forwarding == model.Direct; {
	case before && !after:
		out.remove(mapDirect, key)
	case after && !before:
		out.add(mapDirect, key, mark(next.direct), "")
	}
	switch {
	case old.direct == 0 && next.direct != 0:
		out.add(egressVIPMap(s.family), mark(next.direct), k.VIP.AsSlice(), k.String())
	case old.direct != 0 && next.direct == 0:
		out.remove(egressVIPMap(s.family), mark(old.direct))
	}
}

// planDeleteFrontend plans to delete the frontend.
func (s *state) planDeleteFrontend(k model.FrontendKey) *plan {
	old, existed := s.frontends[k]
	if !existed {
		return nil
	}
	out := &plan{vips: map[netip.Addr]int{k.VIP: -1}, stale: true, removed: []model.FrontendKey{k}}
	key := elements.Frontend(k)
	out.remove(mapPools, key)
	out.remove(mapPorts, key)
	planAffinity(out, key, old, &frontendState{})
	planLimits(out, k.VIP, key, old.limits, nil)
	replaceRanges(out, key, old, &frontendState{})
	s.planForwarding(out, k, old, &frontendState{})
	out.commit = func() {
		delete(s.frontends, k)
		s.staleClients = s.staleClients || old.number != 0
	}
	return out
}

// digests adds the digests of all records in the table.
func (s *state) digests(into model.Digests) {
	for id, p := range s.pools {
		into.Pools[id] = p.digest
	}
	for key, f := range s.frontends {
		into.Frontends[key] = f.digest
	}
}

// plansOf returns the plan for the table as a list, which is empty without a plan.
func plansOf(t *table, p *plan) []planned {
	if p == nil {
		return nil
	}
	return []planned{{p, t}}
}

// planPool plans the pool in the table of its family. An empty pool has no family and is in both tables.
func (b *Backend) planPool(p model.Pool) ([]planned, error) {
	var plans []planned
	for _, t := range b.tables {
		if len(p.Endpoints) > 0 && t.layout.v4 != p.Endpoints[0].Address.Is4() {
			plans = append(plans, plansOf(t, t.state.planDeletePool(p.ID))...)
			continue
		}
		plan, err := t.state.planPool(p)
		if err != nil {
			return nil, err
		}
		plans = append(plans, planned{plan, t})
	}
	return plans, nil
}

func (b *Backend) planDeletePool(id model.PoolID) []planned {
	var plans []planned
	for _, t := range b.tables {
		plans = append(plans, plansOf(t, t.state.planDeletePool(id))...)
	}
	return plans
}

func (b *Backend) planFrontend(f model.Frontend) ([]planned, error) {
	t := b.tableFor(f.VIP)
	for _, other := range b.tables {
		if t.state.pools[f.Pool] == nil && other.state.pools[f.Pool] != nil {
			return nil, dataplane.OtherFamily(f.Pool)
		}
	}
	plan, err := t.state.planFrontend(f)
	return plansOf(t, plan), err
}
