package ebpf

import (
	"errors"
	"fmt"
	"net/netip"
	"unicode/utf8"

	"github.com/cilium/ebpf"

	"kubelb.k8c.io/core/model"
)

// adopt reads what an earlier process left, and removes what it had begun and not recorded. What makes no sense, since it is damaged or of
// another version, is removed as well, or has no digest, so that it is asked for again.
func (k *kernel) adopt() (*state, error) {
	s := newState()
	if err := k.maps[mapNumbers].Lookup(uint32(0), &s.last); err != nil {
		return nil, fmt.Errorf("map %s: %w", mapNumbers, err)
	}
	s.last.Layout = layoutVersion
	for _, step := range []func(*state) error{k.adoptPools, k.adoptMembers, k.adoptServices, k.adoptAddresses} {
		if err := step(s); err != nil {
			return nil, fmt.Errorf("take over what is in %s: %w", k.dir, err)
		}
	}
	return s, nil
}

// isPlace tells whether a number is one that the table has a place for. The first one is not given.
func isPlace(number uint32, table *ebpf.Map) bool { return number > 0 && number < table.MaxEntries() }

// isName tells whether a record has a name that the manager can be told.
func isName(text string) bool { return text != "" && utf8.ValidString(text) }

// isPlain tells whether it is an address as records of the model have them.
func isPlain(a netip.Addr) bool { return a.IsValid() && !a.Is4In6() && !a.IsUnspecified() }

func (k *kernel) adoptPools(s *state) error {
	byNumber := map[uint32]*poolState{}
	orphans := &plan{}
	var number uint32
	var record poolRecord
	pools := k.maps[mapPoolRecords].Iterate()
	for pools.Next(&number, &record) {
		id := model.PoolID(nameOf(record.ID[:]))
		if !isPlace(number, k.objects.Pools) || !isName(string(id)) || s.pools[id] != nil {
			if isPlace(number, k.objects.Pools) {
				orphans.remove(mapPools, number)
			}
			orphans.remove(mapPoolRecords, number)
			continue
		}
		byNumber[number] = &poolState{number: number, digest: model.ParseDigest(string(record.Digest[:])), endpoints: map[string]endpointState{}}
		var table ebpf.MapID
		if err := k.objects.Pools.Lookup(number, &table); errors.Is(err, ebpf.ErrKeyNotExist) {
			byNumber[number].digest = "" // its rows are not there: it is asked for again
		} else if err != nil {
			return err
		}
		s.pools[id] = byNumber[number]
	}
	if err := pools.Err(); err != nil {
		return err
	}
	s.freePools = unused(byNumber, &s.last.Pool, k.objects.Pools)
	if err := k.adoptEndpoints(s, byNumber, orphans); err != nil {
		return err
	}
	return k.apply(orphans.writes)
}

func (k *kernel) adoptEndpoints(s *state, byNumber map[uint32]*poolState, orphans *plan) error {
	used, doubted := map[uint32]bool{}, map[uint32]bool{}
	var handle uint32
	var of endpointRecord
	endpoints := k.maps[mapEndpointRecords].Iterate()
	for endpoints.Next(&handle, &of) {
		if !isPlace(handle, k.maps[mapEndpoints]) {
			orphans.remove(mapEndpointRecords, handle)
			continue
		}
		pool := byNumber[of.Pool]
		var e endpoint
		if err := k.maps[mapEndpoints].Lookup(handle, &e); err != nil {
			return err
		}
		if e.State == endpointGone || of.Pool != 0 && pool == nil {
			orphans.set(mapEndpoints, handle, endpoint{})
			orphans.remove(mapEndpointRecords, handle)
			continue
		}
		used[handle] = true
		family := e.family()
		is := endpointState{handle: handle, generation: e.Generation, address: e.Address.addr(family), source: e.Source.addr(family)}
		s.last.Generation = max(s.last.Generation, e.Generation)
		count(s.roles, is.source, roleSource, 1)
		count(s.roles, is.address, roleEndpoint, 1)
		if pool == nil {
			s.left[handle] = is
			continue
		}
		id := nameOf(of.ID[:])
		if _, twice := pool.endpoints[id]; twice || !isName(id) || !isPlain(is.address) || !isPlain(is.source) {
			orphans.leave(is)
			s.left[handle] = is
			doubted[of.Pool] = true
			continue
		}
		if e.State > endpointListed {
			pool.digest = ""
		}
		pool.endpoints[id] = is
	}
	s.freeEndpoints = unused(used, &s.last.Endpoint, k.maps[mapEndpoints])
	for id, pool := range s.pools {
		if doubted[pool.number] {
			orphans.writes = append(orphans.writes, s.doubt(id)...)
		}
	}
	return endpoints.Err()
}

// adoptMembers brings the addresses of pools in line with their endpoints. Before layout 5 there were none.
func (k *kernel) adoptMembers(s *state) error {
	is := map[memberKey]uint32{}
	for _, pool := range s.pools {
		for _, e := range pool.endpoints {
			is[memberKey{pool.number, addressOf(e.address)}] = e.handle
		}
	}
	fix := &plan{}
	var key memberKey
	var had uint32
	members := k.maps[mapMembers].Iterate()
	for members.Next(&key, &had) {
		switch handle, known := is[key]; {
		case !known:
			fix.remove(mapMembers, key)
		case handle == had:
			delete(is, key)
		}
	}
	if err := members.Err(); err != nil {
		return err
	}
	for key, handle := range is {
		fix.set(mapMembers, key, handle)
	}
	return k.apply(fix.writes)
}

// unused are the numbers up to the last one that nobody has. The last one is not less than any that is used, or a number would be given twice;
// one that has no place in the table says nothing.
func unused[T any](used map[uint32]T, last *uint32, table *ebpf.Map) (out freeNumbers) {
	if *last >= table.MaxEntries() {
		*last = 0
	}
	for n := range used {
		*last = max(*last, n)
	}
	for n := uint32(1); n <= *last; n++ {
		if _, is := used[n]; !is {
			out.give(n)
		}
	}
	return out
}

// family is that of an endpoint's addresses: no IPv6 address of an endpoint begins with twelve zero bytes (RFC 4291, 2.5.5).
func (e endpoint) family() uint8 {
	if [12]byte(e.Address[:12]) == [12]byte{} {
		return ipv4
	}
	return ipv6
}

func (k *kernel) adoptServices(s *state) error {
	tenants := map[uint32]string{}
	for id, pool := range s.pools {
		tenants[pool.number] = id.Tenant()
	}
	orphans := &plan{}
	used := map[uint32]bool{}
	var number uint32
	var record serviceRecord
	services := k.maps[mapServiceRecords].Iterate()
	for services.Next(&number, &record) {
		leads, err := k.leadsTo(record.Key, number)
		if err != nil {
			return err
		}
		if !leads {
			orphans.remove(mapServiceRecords, number)
			continue
		}
		key := record.Key.model()
		f := &frontendState{number: number, digest: model.ParseDigest(string(record.Digest[:]))}
		if err := k.maps[mapServices].Lookup(number, &f.service); err != nil {
			return err
		}
		tenant, known := tenants[f.Pool]
		if f.tenant = tenant; !known || f.Forwarding > uint8(model.Direct) {
			f.digest = ""
		}
		s.last.Generation = max(s.last.Generation, f.Generation)
		s.setFrontend(key, f)
		used[number] = true
		count(s.roles, key.VIP, roleVIP, 1)
	}
	if err := services.Err(); err != nil {
		return err
	}
	s.freeServices = unused(used, &s.last.Service, k.maps[mapServices])
	if err := k.adoptExtras(s, orphans); err != nil {
		return err
	}
	var key frontendKey
	frontends := k.maps[mapFrontends].Iterate()
	for frontends.Next(&key, &number) {
		if f := s.frontends[key.model()]; f != nil && f.number == number && frontendKeyOf(key.model()) == key {
			continue
		}
		orphans.remove(mapFrontends, key)
		if isPlace(number, k.maps[mapServices]) && !used[number] {
			orphans.set(mapServices, number, service{})
		}
	}
	if err := frontends.Err(); err != nil {
		return err
	}
	return k.apply(orphans.writes)
}

// leadsTo tells whether the programs find the service of that number by the key, and the key is one that the model has. A record is written
// after what it tells of, and removed before.
func (k *kernel) leadsTo(key frontendKey, number uint32) (bool, error) {
	is := key.model()
	if !isPlace(number, k.maps[mapServices]) || frontendKeyOf(is) != key || !isPlain(is.VIP) || is.Protocol != model.TCP && is.Protocol != model.UDP {
		return false, nil
	}
	var leads uint32
	err := k.maps[mapFrontends].Lookup(key, &leads)
	return err == nil && leads == number, ignoreMissing(err)
}

// adoptAddresses brings the roles of addresses in line with pools and services.
func (k *kernel) adoptAddresses(s *state) error {
	is := map[netip.Addr]uint32{}
	for a, roles := range s.roles {
		for role, n := range roles {
			if n > 0 {
				is[a] |= role
			}
		}
	}
	fix := &plan{}
	var key addressKey
	var had uint32
	addresses := k.maps[mapAddresses].Iterate()
	for addresses.Next(&key, &had) {
		a := key.Address.addr(uint8(key.Family))
		if is[a] == 0 || addressKeyOf(a) != key {
			fix.remove(mapAddresses, key)
			continue
		}
		if is[a] == had {
			delete(is, a)
		}
	}
	if err := addresses.Err(); err != nil {
		return err
	}
	for a, roles := range is {
		fix.set(mapAddresses, addressKeyOf(a), roles)
	}
	return k.apply(fix.writes)
}

// adoptExtras reads what frontends may have besides, by their numbers. What says nothing is removed, and the frontend asked for again.
func (k *kernel) adoptExtras(s *state, orphans *plan) error {
	byNumber := map[uint32]model.FrontendKey{}
	for key, f := range s.frontends {
		byNumber[f.number] = key
	}
	drop := func(of model.FrontendKey, known bool, table string, key any) {
		orphans.remove(table, key)
		if known {
			s.frontends[of].digest = ""
			orphans.set(mapServiceRecords, s.frontends[of].number, serviceRecord{Key: frontendKeyOf(of)})
		}
	}
	var key rangeKey
	var value uint8
	ranges := k.maps[mapSourceRanges].Iterate()
	for ranges.Next(&key, &value) {
		of, known := byNumber[key.Service]
		p := key.prefix(familyOf(of.VIP))
		if !known || !p.IsValid() || rangeKeyOf(key.Service, p) != key {
			drop(of, known, mapSourceRanges, key)
			continue
		}
		s.frontends[of].ranges = append(s.frontends[of].ranges, p)
	}
	var number uint32
	var l limit
	limits := k.maps[mapLimits].Iterate()
	for limits.Next(&number, &l) {
		of, known := byNumber[number]
		// Counted anew, with its limit.
		l = limit{FlowsAtOnce: l.FlowsAtOnce, FlowsASecond: l.FlowsASecond}
		if !known || l == (limit{}) {
			drop(of, known, mapLimits, number)
			continue
		}
		next := *s.frontends[of]
		next.limit = l
		s.setFrontend(of, &next)
	}
	var to handover
	handovers := k.maps[mapHandovers].Iterate()
	for handovers.Next(&number, &to) {
		of, known := byNumber[number]
		next := to.Next.addr(familyOf(of.VIP))
		if !known || !isPlain(next) || to.Asks < 1 || to.Asks > model.MaxAsks {
			drop(of, known, mapHandovers, number)
			continue
		}
		s.frontends[of].handover = model.Handover{Next: next, Asks: to.Asks}
	}
	return errors.Join(ranges.Err(), limits.Err(), handovers.Err())
}
