package ebpf

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/maglev"
	"kubelb.k8c.io/core/model"
)

// state is the content of the maps.
type state struct {
	pools     map[model.PoolID]*poolState
	frontends map[model.FrontendKey]*frontendState
	// roles counts how many frontends and endpoints use an address, by role.
	roles map[netip.Addr]map[uint32]int
	// removed are endpoints, by handle, that have no pool any more, but may have flows.
	removed map[uint32]endpointState
	last    numbers
	// frequentSweeps counts the frontends with an idle timeout or a limit of connections, which need frequent sweeps.
	frequentSweeps int
	// direct counts the direct frontends, by pool.
	direct                                 map[uint32]int
	freePools, freeServices, freeEndpoints freeNumbers
}

type poolState struct {
	number uint32
	digest model.Digest
	// record is the pool as it was sent. It is nil if it was sent to an earlier process.
	record    *model.Pool
	endpoints map[string]endpointState
}

// isOfFamily reports whether the pool has no endpoints, or endpoints of that family. All endpoints of a pool are of one family.
func (p *poolState) isOfFamily(v4 bool) bool {
	for _, e := range p.endpoints {
		return e.address.Is4() == v4
	}
	return true
}

type endpointState struct {
	handle     uint32
	generation uint32
	address    netip.Addr
	source     netip.Addr
}

// freeNumbers are released numbers, in the order of their release. They are allocated again only after reuseDelay: a running program may still use what it read
// under a number before.
type freeNumbers []freeNumber

type freeNumber struct {
	number uint32
	since  time.Time
}

// reuseDelay is how long a released number is not allocated again.
const reuseDelay = time.Second

func (f *freeNumbers) release(number uint32) {
	*f = append(*f, freeNumber{number, time.Now()})
}

// allocate returns a free number, or the next one after last.
func (f *freeNumbers) allocate(last *uint32) (number uint32, again bool) {
	if len(*f) > 0 && time.Since((*f)[0].since) > reuseDelay {
		number = (*f)[0].number
		*f = (*f)[1:]
		return number, true
	}
	*last++
	return *last, false
}

type frontendState struct {
	number   uint32
	digest   model.Digest
	tenant   string
	ranges   []netip.Prefix
	redirect model.Redirect
	// limit has the limits, without the counts of the programs.
	limit limit
	service
}

func newState() *state {
	return &state{pools: map[model.PoolID]*poolState{}, frontends: map[model.FrontendKey]*frontendState{}, roles: map[netip.Addr]map[uint32]int{}, removed: map[uint32]endpointState{}, direct: map[uint32]int{}, last: numbers{Layout: layoutVersion}}
}

// write writes one element of a map. Without a value it deletes the element.
type write struct {
	mapName    string
	key, value any
}

// plan is the change of one record.
type plan struct {
	writes []write // in this order
	commit func()  // updates the state after the writes
	// roles are changes of VIPs. They are written after all frontends of an Apply: otherwise the programs would refuse connections to frontends that are not
	// written yet, and that another dataplane may still serve.
	roles map[netip.Addr]map[uint32]int
}

func (p *plan) set(table string, key, value any) {
	p.writes = append(p.writes, write{table, key, value})
}
func (p *plan) remove(table string, key any) {
	p.writes = append(p.writes, write{mapName: table, key: key})
}

// Names of maps.
const (
	mapAddresses = "addresses"
	mapFrontends = "frontends"
	mapServices  = "services"
	mapEndpoints = "endpoints"
	mapPools     = "pools"
	mapMembers   = "members"
	mapClients   = "clients"

	mapSourceRanges = "source_ranges"
	mapHandovers    = "handovers"
	mapLimits       = "limits"

	mapServiceCounters  = "service_counters"
	mapEndpointCounters = "endpoint_counters"

	mapNumbers         = "numbers"
	mapPoolRecords     = "pool_records"
	mapEndpointRecords = "endpoint_records"
	mapServiceRecords  = "service_records"
)

// sourceLookup returns the gateway's source address for packets to an endpoint.
type sourceLookup func(netip.Addr) (netip.Addr, error)

func (s *state) planPool(p model.Pool, from sourceLookup) (*plan, error) {
	if len(p.ID) > maxPoolName {
		return nil, fmt.Errorf("pool id of %d characters: at most %d", len(p.ID), maxPoolName)
	}
	old := s.pools[p.ID]
	next := &poolState{digest: p.Digest(), record: &p, endpoints: map[string]endpointState{}}
	if old == nil {
		number, _ := s.freePools.allocate(&s.last.Pool)
		old = &poolState{number: number}
	}
	next.number = old.number
	out := &plan{}
	// The numbers are written first, so that no number is allocated twice if a later write fails. Their values are set at the end.
	out.set(mapNumbers, uint32(0), nil)
	roles := map[netip.Addr]map[uint32]int{}
	table := maglev.Table(p.Endpoints)
	listed := make([]bool, len(p.Endpoints))
	for _, i := range table {
		listed[i] = true
	}
	handles := make([]uint32, len(p.Endpoints))
	addresses := map[netip.Addr]bool{}
	for i, e := range p.Endpoints {
		addresses[e.Address] = true
		if len(e.ID) > maxEndpointName {
			return nil, fmt.Errorf("endpoint id of %d characters: at most %d", len(e.ID), maxEndpointName)
		}
		known, ok := old.endpoints[e.ID]
		source, err := from(e.Address)
		same := ok && known.address == e.Address
		if err != nil && !same {
			return nil, fmt.Errorf("endpoint %s: %w", e.ID, err)
		}
		if !same || err == nil && known.source != source {
			known = s.newEndpoint(out, e.Address, source)
			record := endpointRecord{Pool: next.number}
			copy(record.ID[:], e.ID)
			out.set(mapEndpointRecords, known.handle, record)
			out.set(mapMembers, memberKey{next.number, addressOf(known.address)}, known.handle)
		}
		handles[i] = known.handle
		next.endpoints[e.ID] = known
		countRole(roles, known.source, roleSource, 1)
		countRole(roles, known.address, roleEndpoint, 1)
		state := uint32(endpointConnectionsOnly)
		switch {
		case listed[i]:
			state = endpointActive
		case e.State != model.Unhealthy:
			state = endpointNoNewFlows
		}
		out.set(mapEndpoints, known.handle, endpoint{Address: addressOf(known.address), Source: addressOf(known.source), Generation: known.generation, State: state})
	}
	var removed []endpointState
	for id, e := range old.endpoints {
		if next.endpoints[id].handle != e.handle {
			removed = append(removed, e)
			out.removeEndpoint(e)
			if !addresses[e.address] {
				out.remove(mapMembers, memberKey{old.number, addressOf(e.address)})
			}
			continue
		}
		countRole(roles, e.source, roleSource, -1)
		countRole(roles, e.address, roleEndpoint, -1)
	}
	s.planRoles(out, roles)
	rows := make([]uint32, len(table))
	for row, i := range table {
		rows[row] = handles[i]
	}
	out.set(mapPools, next.number, rows)
	record := poolRecord{Digest: digestOf(next.digest)}
	copy(record.ID[:], p.ID)
	out.set(mapPoolRecords, next.number, record)
	out.writes[0].value = s.last
	out.commit = func() {
		s.pools[p.ID] = next
		s.commitRoles(roles)
		for _, e := range removed {
			s.removed[e.handle] = e
		}
	}
	return out, nil
}

// invalidatePool removes the digest of a pool, so that the manager sends the pool again, to this process or the next one. It returns the writes for that.
func (s *state) invalidatePool(id model.PoolID) []write {
	pool := s.pools[id]
	pool.digest = ""
	record := poolRecord{}
	copy(record.ID[:], id)
	return []write{{mapPoolRecords, pool.number, record}}
}

// removeEndpoint removes an endpoint from its pool. Its connections go on, and it keeps its roles until they have ended.
func (p *plan) removeEndpoint(e endpointState) {
	p.set(mapEndpointRecords, e.handle, endpointRecord{})
	p.set(mapEndpoints, e.handle, endpoint{Address: addressOf(e.address), Source: addressOf(e.source), Generation: e.generation, State: endpointConnectionsOnly})
}

// newEndpoint allocates a number for an endpoint.
func (s *state) newEndpoint(out *plan, address, source netip.Addr) endpointState {
	handle, again := s.freeEndpoints.allocate(&s.last.Endpoint)
	if again {
		out.set(mapEndpointCounters, handle, zeroCounter{})
	}
	s.last.Generation++
	return endpointState{handle: handle, generation: s.last.Generation, address: address, source: source}
}

// planFreeEndpoint frees a removed endpoint that has no flows any more.
func (s *state) planFreeEndpoint(handle uint32) *plan {
	e := s.removed[handle]
	out := &plan{}
	roles := map[netip.Addr]map[uint32]int{}
	countRole(roles, e.source, roleSource, -1)
	countRole(roles, e.address, roleEndpoint, -1)
	out.set(mapEndpoints, handle, endpoint{})
	out.remove(mapEndpointRecords, handle)
	s.planRoles(out, roles)
	out.commit = func() {
		delete(s.removed, handle)
		s.commitRoles(roles)
		s.freeEndpoints.release(handle)
	}
	return out
}

func countRole(roles map[netip.Addr]map[uint32]int, a netip.Addr, role uint32, change int) {
	if roles[a] == nil {
		roles[a] = map[uint32]int{}
	}
	roles[a][role] += change
}

// planRoles writes the addresses whose roles change.
func (s *state) planRoles(out *plan, changes map[netip.Addr]map[uint32]int) {
	for _, a := range slices.SortedFunc(maps.Keys(changes), netip.Addr.Compare) {
		change := changes[a]
		var was, is uint32
		for _, role := range []uint32{roleVIP, roleSource, roleEndpoint} {
			if s.roles[a][role] > 0 {
				was |= role
			}
			if s.roles[a][role]+change[role] > 0 {
				is |= role
			}
		}
		switch {
		case was == is:
		case is == 0:
			out.remove(mapAddresses, addressKeyOf(a))
		default:
			out.set(mapAddresses, addressKeyOf(a), is)
		}
	}
}

// commitRoles counts the changes. It forgets addresses that nothing uses any more: endpoints come and go, with ever new addresses.
func (s *state) commitRoles(changes map[netip.Addr]map[uint32]int) {
	for a, change := range changes {
		for role, n := range change {
			countRole(s.roles, a, role, n)
		}
		maps.DeleteFunc(s.roles[a], func(_ uint32, n int) bool { return n == 0 })
		if len(s.roles[a]) == 0 {
			delete(s.roles, a)
		}
	}
}

func (s *state) planFrontend(f model.Frontend) (*plan, error) {
	pool := s.pools[f.Pool]
	if pool == nil {
		return nil, dataplane.MissingPool(f.Pool)
	}
	if !pool.isOfFamily(f.VIP.Is4()) {
		return nil, dataplane.OtherFamily(f.Pool)
	}
	old := s.frontends[f.FrontendKey]
	next := &frontendState{digest: f.Digest(), tenant: f.Pool.Tenant(), service: service{Pool: pool.number, TargetPort: portOf(f.TargetPort), Forwarding: uint8(f.Forwarding),
		Affinity: uint32(f.AffinityTimeout / time.Second), Idle: uint32((f.IdleTimeout + time.Second - 1) / time.Second)}, ranges: slices.Clone(f.SourceRanges), redirect: f.Redirect}
	if f.Restricted {
		next.Checks |= checkSource
	}
	if next.limit = (limit{MaxFlows: f.MaxConnections, MaxNewPerSecond: f.MaxNewPerSecond}); next.limit != (limit{}) {
		next.Checks |= checkLimits
	}
	out := &plan{}
	roles := map[netip.Addr]map[uint32]int{}
	if old == nil {
		var again bool
		if next.number, again = s.freeServices.allocate(&s.last.Service); again {
			out.set(mapServiceCounters, next.number, zeroCounter{})
		}
		countRole(roles, f.VIP, roleVIP, 1)
	} else {
		next.number, next.Generation = old.number, old.Generation
	}
	if old == nil || old.tenant != next.tenant || f.Protocol == model.UDP && next.service != old.service {
		// Established connections go on as they began, as long as the tenant owns the frontend. UDP flows do not: a client that never stops would keep the
		// former endpoint for ever.
		s.last.Generation++
		next.Generation = s.last.Generation
	}
	out.writes = append([]write{{mapNumbers, uint32(0), s.last}}, out.writes...)
	var before []netip.Prefix
	if old != nil {
		before = old.ranges
	}
	for _, p := range next.ranges {
		if !slices.Contains(before, p) {
			out.set(mapSourceRanges, rangeKeyOf(next.number, p), uint8(1))
		}
	}
	switch {
	case !next.redirect.IsZero() && (old == nil || old.redirect != next.redirect):
		out.set(mapHandovers, next.number, redirect{Next: addressOf(f.Redirect.Next), MaxRedirects: f.Redirect.Limit})
	case next.redirect.IsZero() && old != nil && !old.redirect.IsZero():
		out.remove(mapHandovers, next.number)
	}
	var was limit
	if old != nil {
		was = old.limit
	}
	if next.limit != (limit{}) && next.limit != was {
		out.set(mapLimits, next.number, next.limit)
	}
	out.set(mapServices, next.number, next.service)
	if next.limit == (limit{}) && was != (limit{}) {
		out.remove(mapLimits, next.number)
	}
	for _, p := range before {
		if !slices.Contains(next.ranges, p) {
			out.remove(mapSourceRanges, rangeKeyOf(next.number, p))
		}
	}
	if old == nil {
		out.set(mapFrontends, frontendKeyOf(f.FrontendKey), next.number)
	}
	out.roles = roles
	out.set(mapServiceRecords, next.number, serviceRecord{Key: frontendKeyOf(f.FrontendKey), Digest: digestOf(next.digest)})
	out.commit = func() {
		s.setFrontend(f.FrontendKey, next)
	}
	return out, nil
}

// setFrontend sets the state of a frontend. It deletes it if next is nil.
func (s *state) setFrontend(key model.FrontendKey, next *frontendState) {
	if old := s.frontends[key]; old != nil {
		s.countFrontend(old, -1)
	}
	if next == nil {
		delete(s.frontends, key)
		return
	}
	s.countFrontend(next, 1)
	s.frontends[key] = next
}

func (s *state) countFrontend(f *frontendState, change int) {
	if f.Idle > 0 || f.limit.MaxFlows > 0 {
		s.frequentSweeps += change
	}
	if f.Forwarding == uint8(model.Direct) {
		s.direct[f.Pool] += change
	}
}

func (s *state) planDeleteFrontend(key model.FrontendKey) *plan {
	old := s.frontends[key]
	if old == nil {
		return nil
	}
	out := &plan{}
	roles := map[netip.Addr]map[uint32]int{}
	countRole(roles, key.VIP, roleVIP, -1)
	out.remove(mapServiceRecords, old.number)
	out.remove(mapFrontends, frontendKeyOf(key))
	out.set(mapServices, old.number, service{})
	for _, p := range old.ranges {
		out.remove(mapSourceRanges, rangeKeyOf(old.number, p))
	}
	if !old.redirect.IsZero() {
		out.remove(mapHandovers, old.number)
	}
	if old.limit != (limit{}) {
		out.remove(mapLimits, old.number)
	}
	s.planRoles(out, roles)
	out.commit = func() {
		s.setFrontend(key, nil)
		s.commitRoles(roles)
		s.freeServices.release(old.number)
	}
	return out
}

func (s *state) planDeletePool(id model.PoolID) *plan {
	old := s.pools[id]
	if old == nil {
		return nil
	}
	out := &plan{}
	// Connections to its endpoints go on: the frontends may have another pool now.
	for _, e := range old.endpoints {
		out.removeEndpoint(e)
		out.remove(mapMembers, memberKey{old.number, addressOf(e.address)})
	}
	out.remove(mapPools, old.number)
	out.remove(mapPoolRecords, old.number)
	out.commit = func() {
		delete(s.pools, id)
		s.freePools.release(old.number)
		for _, e := range old.endpoints {
			s.removed[e.handle] = e
		}
	}
	return out
}

func (s *state) digests() model.Digests {
	out := model.NewDigests()
	for id, p := range s.pools {
		out.Pools[id] = p.digest
	}
	for key, f := range s.frontends {
		out.Frontends[key] = f.digest
	}
	return out
}
