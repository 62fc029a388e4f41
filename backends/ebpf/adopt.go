package ebpf

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"kubelb.k8c.io/core/model"
)

// adopt reads what an earlier process left, and removes what it had begun and not recorded.
func (k *kernel) adopt() (*state, error) {
	s := newState()
	if err := k.maps[mapNumbers].Lookup(uint32(0), &s.last); err != nil {
		return nil, fmt.Errorf("map %s: %w", mapNumbers, err)
	}
	s.last.Layout = layoutVersion
	for _, step := range []func(*state) error{k.adoptPools, k.adoptServices, k.adoptAddresses} {
		if err := step(s); err != nil {
			return nil, fmt.Errorf("take over what is in %s: %w", k.dir, err)
		}
	}
	return s, nil
}

func (k *kernel) adoptPools(s *state) error {
	byNumber := map[uint32]*poolState{}
	var number uint32
	var record poolRecord
	pools := k.maps[mapPoolRecords].Iterate()
	for pools.Next(&number, &record) {
		byNumber[number] = &poolState{number: number, digest: model.Digest(record.Digest[:]), endpoints: map[string]endpointState{}}
		var id ebpf.MapID
		if err := k.objects.Pools.Lookup(number, &id); errors.Is(err, ebpf.ErrKeyNotExist) {
			byNumber[number].digest = "" // its rows are not there: it is asked for again
		} else if err != nil {
			return err
		}
		s.pools[model.PoolID(nameOf(record.ID[:]))] = byNumber[number]
	}
	if err := pools.Err(); err != nil {
		return err
	}
	s.freePools = unused(byNumber, s.last.Pool)
	orphans := &plan{}
	used := map[uint32]bool{}
	var handle uint32
	var of endpointRecord
	endpoints := k.maps[mapEndpointRecords].Iterate()
	for endpoints.Next(&handle, &of) {
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
		if pool == nil {
			s.left[handle] = is
		} else {
			pool.endpoints[nameOf(of.ID[:])] = is
		}
		count(s.roles, e.Source.addr(family), roleSource, 1)
		count(s.roles, e.Address.addr(family), roleEndpoint, 1)
	}
	if err := endpoints.Err(); err != nil {
		return err
	}
	s.freeEndpoints = unused(used, s.last.Endpoint)
	return k.apply(orphans.writes)
}

// unused are the numbers up to the last one that nobody has.
func unused[T any](used map[uint32]T, last uint32) (out freeNumbers) {
	for n := uint32(1); n <= last; n++ {
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
	var number uint32
	tenants := map[uint32]string{}
	for id, pool := range s.pools {
		tenants[pool.number] = id.Tenant()
	}
	used := map[uint32]bool{}
	var record serviceRecord
	services := k.maps[mapServiceRecords].Iterate()
	for services.Next(&number, &record) {
		key := record.Key.model()
		f := &frontendState{number: number, digest: model.Digest(record.Digest[:])}
		if err := k.maps[mapServices].Lookup(number, &f.service); err != nil {
			return err
		}
		f.tenant = tenants[f.Pool]
		s.setFrontend(key, f)
		used[number] = true
		count(s.roles, key.VIP, roleVIP, 1)
	}
	if err := services.Err(); err != nil {
		return err
	}
	s.freeServices = unused(used, s.last.Service)
	orphans := &plan{}
	if err := k.adoptExtras(s, orphans); err != nil {
		return err
	}
	var key frontendKey
	frontends := k.maps[mapFrontends].Iterate()
	for frontends.Next(&key, &number) {
		if f := s.frontends[key.model()]; f == nil || f.number != number {
			orphans.remove(mapFrontends, key)
			orphans.set(mapServices, number, service{})
		}
	}
	if err := frontends.Err(); err != nil {
		return err
	}
	return k.apply(orphans.writes)
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
		if is[a] == 0 {
			fix.remove(mapAddresses, key)
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

// adoptExtras reads what frontends may have besides, by their numbers.
func (k *kernel) adoptExtras(s *state, orphans *plan) error {
	byNumber := map[uint32]model.FrontendKey{}
	for key, f := range s.frontends {
		byNumber[f.number] = key
	}
	var key rangeKey
	var value uint8
	ranges := k.maps[mapSourceRanges].Iterate()
	for ranges.Next(&key, &value) {
		if of, known := byNumber[key.Service]; known {
			s.frontends[of].ranges = append(s.frontends[of].ranges, key.prefix(familyOf(of.VIP)))
		} else {
			orphans.remove(mapSourceRanges, key)
		}
	}
	var number uint32
	var l limit
	limits := k.maps[mapLimits].Iterate()
	for limits.Next(&number, &l) {
		if of, known := byNumber[number]; known {
			// Counted anew, with its limit.
			next := *s.frontends[of]
			next.limit = limit{FlowsAtOnce: l.FlowsAtOnce, FlowsASecond: l.FlowsASecond}
			s.setFrontend(of, &next)
		} else {
			orphans.remove(mapLimits, number)
		}
	}
	var to handover
	handovers := k.maps[mapHandovers].Iterate()
	for handovers.Next(&number, &to) {
		if of, known := byNumber[number]; known {
			s.frontends[of].handover = model.Handover{Next: to.Next.addr(familyOf(of.VIP)), Asks: to.Asks}
		} else {
			orphans.remove(mapHandovers, number)
		}
	}
	return errors.Join(ranges.Err(), limits.Err(), handovers.Err())
}
