package ebpf

import (
	"errors"
	"fmt"
	"net/netip"
	"unicode/utf8"

	"github.com/cilium/ebpf"

	"kubelb.k8c.io/core/model"
)

// adopt reads the maps of an earlier process. It removes elements that no record refers to. A record that is damaged or of another version is removed as well, or
// loses its digest, so that the manager sends it again.
func (k *kernel) adopt() (*state, error) {
	s := newState()
	if err := k.maps[mapNumbers].Lookup(uint32(0), &s.last); err != nil {
		return nil, fmt.Errorf("map %s: %w", mapNumbers, err)
	}
	s.last.Layout = layoutVersion
	for _, step := range []func(*state) error{k.adoptPools, k.adoptMembers, k.adoptServices, k.adoptAddresses} {
		if err := step(s); err != nil {
			return nil, fmt.Errorf("adopt the maps in %s: %w", k.dir, err)
		}
	}
	return s, nil
}

// isValidNumber tells whether the table has an element with this number. Number 0 is not allocated.
func isValidNumber(number uint32, table *ebpf.Map) bool {
	return number > 0 && number < table.MaxEntries()
}

// isValidName tells whether a record's name can be sent to the manager.
func isValidName(text string) bool { return text != "" && utf8.ValidString(text) }

// isValidAddress tells whether records of the model may have the address.
func isValidAddress(a netip.Addr) bool { return a.IsValid() && !a.Is4In6() && !a.IsUnspecified() }

func (k *kernel) adoptPools(s *state) error {
	byNumber := map[uint32]*poolState{}
	orphans := &plan{}
	var number uint32
	var record poolRecord
	pools := k.maps[mapPoolRecords].Iterate()
	for pools.Next(&number, &record) {
		id := model.PoolID(nameOf(record.ID[:]))
		if !isValidNumber(number, k.objects.Pools) || !isValidName(string(id)) || s.pools[id] != nil {
			if isValidNumber(number, k.objects.Pools) {
				orphans.remove(mapPools, number)
			}
			orphans.remove(mapPoolRecords, number)
			continue
		}
		byNumber[number] = &poolState{number: number, digest: model.ParseDigest(string(record.Digest[:])), endpoints: map[string]endpointState{}}
		var table ebpf.MapID
		if err := k.objects.Pools.Lookup(number, &table); errors.Is(err, ebpf.ErrKeyNotExist) {
			byNumber[number].digest = "" // its table is missing: the manager sends the pool again
		} else if err != nil {
			return err
		}
		s.pools[id] = byNumber[number]
	}
	if err := pools.Err(); err != nil {
		return err
	}
	s.freePools = freeNumbersOf(byNumber, &s.last.Pool, k.objects.Pools)
	if err := k.adoptEndpoints(s, byNumber, orphans); err != nil {
		return err
	}
	return k.apply(orphans.writes)
}

func (k *kernel) adoptEndpoints(s *state, byNumber map[uint32]*poolState, orphans *plan) error {
	used, invalid := map[uint32]bool{}, map[uint32]bool{}
	var handle uint32
	var record endpointRecord
	endpoints := k.maps[mapEndpointRecords].Iterate()
	for endpoints.Next(&handle, &record) {
		if !isValidNumber(handle, k.maps[mapEndpoints]) {
			orphans.remove(mapEndpointRecords, handle)
			continue
		}
		pool := byNumber[record.Pool]
		var e endpoint
		if err := k.maps[mapEndpoints].Lookup(handle, &e); err != nil {
			return err
		}
		if e.State == endpointUnused || record.Pool != 0 && pool == nil {
			orphans.set(mapEndpoints, handle, endpoint{})
			orphans.remove(mapEndpointRecords, handle)
			continue
		}
		used[handle] = true
		family := e.family()
		adopted := endpointState{handle: handle, generation: e.Generation, address: e.Address.addr(family), source: e.Source.addr(family)}
		s.last.Generation = max(s.last.Generation, e.Generation)
		countRole(s.roles, adopted.source, roleSource, 1)
		countRole(s.roles, adopted.address, roleEndpoint, 1)
		if pool == nil {
			s.removed[handle] = adopted
			continue
		}
		id := nameOf(record.ID[:])
		if _, duplicate := pool.endpoints[id]; duplicate || !isValidName(id) || !isValidAddress(adopted.address) || !isValidAddress(adopted.source) {
			orphans.removeEndpoint(adopted)
			s.removed[handle] = adopted
			invalid[record.Pool] = true
			continue
		}
		if e.State > endpointActive {
			pool.digest = ""
		}
		pool.endpoints[id] = adopted
	}
	s.freeEndpoints = freeNumbersOf(used, &s.last.Endpoint, k.maps[mapEndpoints])
	for id, pool := range s.pools {
		if invalid[pool.number] {
			orphans.writes = append(orphans.writes, s.invalidatePool(id)...)
		}
	}
	return endpoints.Err()
}

// adoptMembers corrects the map of members by the endpoints of pools. Before layout 5 the map did not exist.
func (k *kernel) adoptMembers(s *state) error {
	want := map[memberKey]uint32{}
	for _, pool := range s.pools {
		for _, e := range pool.endpoints {
			want[memberKey{pool.number, addressOf(e.address)}] = e.handle
		}
	}
	fix := &plan{}
	var key memberKey
	var found uint32
	members := k.maps[mapMembers].Iterate()
	for members.Next(&key, &found) {
		switch handle, known := want[key]; {
		case !known:
			fix.remove(mapMembers, key)
		case handle == found:
			delete(want, key)
		}
	}
	if err := members.Err(); err != nil {
		return err
	}
	for key, handle := range want {
		fix.set(mapMembers, key, handle)
	}
	return k.apply(fix.writes)
}

// freeNumbersOf returns the unused numbers up to the last one. It raises last to the highest used number, so that no number is allocated twice. It ignores last
// if the table has no such element.
func freeNumbersOf[T any](used map[uint32]T, last *uint32, table *ebpf.Map) (out freeNumbers) {
	if *last >= table.MaxEntries() {
		*last = 0
	}
	for n := range used {
		*last = max(*last, n)
	}
	for n := uint32(1); n <= *last; n++ {
		if _, found := used[n]; !found {
			out.release(n)
		}
	}
	return out
}

// family returns the family of an endpoint's addresses: no IPv6 address of an endpoint begins with twelve zero bytes (RFC 4291, 2.5.5).
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
		served, err := k.isServed(record.Key, number)
		if err != nil {
			return err
		}
		if !served {
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
		countRole(s.roles, key.VIP, roleVIP, 1)
	}
	if err := services.Err(); err != nil {
		return err
	}
	s.freeServices = freeNumbersOf(used, &s.last.Service, k.maps[mapServices])
	if err := k.adoptFrontendOptions(s, orphans); err != nil {
		return err
	}
	var key frontendKey
	frontends := k.maps[mapFrontends].Iterate()
	for frontends.Next(&key, &number) {
		if f := s.frontends[key.model()]; f != nil && f.number == number && frontendKeyOf(key.model()) == key {
			continue
		}
		orphans.remove(mapFrontends, key)
		if isValidNumber(number, k.maps[mapServices]) && !used[number] {
			orphans.set(mapServices, number, service{})
		}
	}
	if err := frontends.Err(); err != nil {
		return err
	}
	return k.apply(orphans.writes)
}

// isServed tells whether the programs find the service of this number under the key, and whether the key is valid. Records are written last and removed first, so
// a record without its service is damaged.
func (k *kernel) isServed(key frontendKey, number uint32) (bool, error) {
	frontend := key.model()
	if !isValidNumber(number, k.maps[mapServices]) || frontendKeyOf(frontend) != key || !isValidAddress(frontend.VIP) || frontend.Protocol != model.TCP && frontend.Protocol != model.UDP {
		return false, nil
	}
	var found uint32
	err := k.maps[mapFrontends].Lookup(key, &found)
	return err == nil && found == number, ignoreMissing(err)
}

// adoptAddresses corrects the roles of addresses by pools and services.
func (k *kernel) adoptAddresses(s *state) error {
	want := map[netip.Addr]uint32{}
	for a, roles := range s.roles {
		for role, n := range roles {
			if n > 0 {
				want[a] |= role
			}
		}
	}
	fix := &plan{}
	var key addressKey
	var found uint32
	addresses := k.maps[mapAddresses].Iterate()
	for addresses.Next(&key, &found) {
		a := key.Address.addr(uint8(key.Family))
		if want[a] == 0 || addressKeyOf(a) != key {
			fix.remove(mapAddresses, key)
			continue
		}
		if want[a] == found {
			delete(want, a)
		}
	}
	if err := addresses.Err(); err != nil {
		return err
	}
	for a, roles := range want {
		fix.set(mapAddresses, addressKeyOf(a), roles)
	}
	return k.apply(fix.writes)
}

// adoptFrontendOptions reads the source ranges, limits and redirects of frontends, by their numbers. It removes invalid elements, and the digest of their frontend,
// so that the manager sends that again.
func (k *kernel) adoptFrontendOptions(s *state, orphans *plan) error {
	byNumber := map[uint32]model.FrontendKey{}
	for key, f := range s.frontends {
		byNumber[f.number] = key
	}
	drop := func(frontend model.FrontendKey, known bool, mapName string, key any) {
		orphans.remove(mapName, key)
		if known {
			s.frontends[frontend].digest = ""
			orphans.set(mapServiceRecords, s.frontends[frontend].number, serviceRecord{Key: frontendKeyOf(frontend)})
		}
	}
	var key rangeKey
	var value uint8
	ranges := k.maps[mapSourceRanges].Iterate()
	for ranges.Next(&key, &value) {
		frontend, known := byNumber[key.Service]
		p := key.prefix(familyOf(frontend.VIP))
		if !known || !p.IsValid() || rangeKeyOf(key.Service, p) != key {
			drop(frontend, known, mapSourceRanges, key)
			continue
		}
		s.frontends[frontend].ranges = append(s.frontends[frontend].ranges, p)
	}
	var number uint32
	var l limit
	limits := k.maps[mapLimits].Iterate()
	for limits.Next(&number, &l) {
		frontend, known := byNumber[number]
		// The next sweep counts the flows again.
		l = limit{MaxFlows: l.MaxFlows, MaxNewPerSecond: l.MaxNewPerSecond}
		if !known || l == (limit{}) {
			drop(frontend, known, mapLimits, number)
			continue
		}
		next := *s.frontends[frontend]
		next.limit = l
		s.setFrontend(frontend, &next)
	}
	var r redirect
	handovers := k.maps[mapHandovers].Iterate()
	for handovers.Next(&number, &r) {
		frontend, known := byNumber[number]
		next := r.Next.addr(familyOf(frontend.VIP))
		if !known || !isValidAddress(next) || r.MaxRedirects < 1 || r.MaxRedirects > model.MaxRedirects {
			drop(frontend, known, mapHandovers, number)
			continue
		}
		s.frontends[frontend].redirect = model.Redirect{Next: next, Limit: r.MaxRedirects}
	}
	return errors.Join(ranges.Err(), limits.Err(), handovers.Err())
}
