package ebpf

import (
	"encoding/binary"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/ebpf/bpf"
	"kubelb.k8c.io/core/model"
)

// adoptedMaps are the maps that adopt reads. The fuzzer uses their indexes. Of the map pools it only writes whether a pool has a table.
var adoptedMaps = []string{mapNumbers, mapPoolRecords, mapEndpointRecords, mapServiceRecords, mapEndpoints, mapServices, mapFrontends, mapSourceRanges, mapLimits, mapHandovers, mapAddresses, mapPools, mapMembers}

// testMapSize is the size of maps here: the kernel visits all slots of a map when it lists the elements. maxElements leaves room for the test's own elements.
const testMapSize, maxElements = 512, 300

// newTestMaps returns a kernel that has maps and no programs. The maps are not pinned, so they disappear with the process.
func newTestMaps(t testing.TB) *kernel {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("maps are made by root only")
	}
	spec, err := bpf.LoadTc()
	require.NoError(t, err)
	k := &kernel{maps: map[string]*ebpf.Map{}, pendingTables: map[uint32]*ebpf.Map{}, dir: "maps"}
	specs := recordMaps()
	for name, m := range spec.Maps {
		if slices.Contains(append(adoptedMaps, mapServiceCounters, mapEndpointCounters, mapClients), name) {
			specs = append(specs, m)
		}
	}
	for _, m := range specs {
		m.MaxEntries = min(m.MaxEntries, testMapSize)
		made, err := ebpf.NewMap(m)
		require.NoError(t, err)
		t.Cleanup(func() { made.Close() })
		k.maps[m.Name] = made
	}
	k.objects.Pools, k.objects.Endpoints = k.maps[mapPools], k.maps[mapEndpoints]
	return k
}

// element is one element of a map as the fuzzer writes it: the map, the key and the value.
func element(t testing.TB, k *kernel, table string, key, value any) []byte {
	t.Helper()
	out := []byte{byte(slices.Index(adoptedMaps, table))}
	for _, part := range []any{key, value} {
		var err error
		out, err = binary.Append(out, binary.NativeEndian, part)
		require.NoError(t, err)
	}
	require.Len(t, out, k.elementSize(table), table)
	return out
}

func (k *kernel) elementSize(table string) int {
	m := k.maps[table]
	if table == mapPools {
		return 1 + 4
	}
	return 1 + int(m.KeySize()+m.ValueSize())
}

// writeElements writes the elements that the kernel accepts, and returns the written indexes of arrays.
func (k *kernel) writeElements(t testing.TB, text []byte) (places map[string][]uint32) {
	t.Helper()
	places = map[string][]uint32{}
	for n := 0; len(text) > 0 && n < maxElements; n++ {
		table := adoptedMaps[int(text[0])%len(adoptedMaps)]
		one := make([]byte, k.elementSize(table))
		text = text[copy(one, text):]
		m := k.maps[table]
		key, value := one[1:1+m.KeySize()], any(one[1+m.KeySize():])
		number := binary.NativeEndian.Uint32(key)
		switch table {
		case mapPools:
			if number >= m.MaxEntries() {
				continue
			}
			rows, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 2, Flags: innerMap})
			require.NoError(t, err)
			k.queueTable(number, rows)
			places[table] = append(places[table], number)
		case mapServices, mapEndpoints:
			if m.Put(key, value) == nil {
				places[table] = append(places[table], number)
			}
		default:
			_ = m.Put(key, value)
		}
	}
	require.NoError(t, k.installTables())
	return places
}

// empty removes all elements, and resets these indexes of arrays.
func (k *kernel) empty(t testing.TB, places map[string][]uint32) {
	t.Helper()
	for _, table := range adoptedMaps {
		m := k.maps[table]
		switch table {
		case mapNumbers:
			require.NoError(t, m.Put(uint32(0), numbers{}))
			continue
		case mapPools:
			for _, n := range places[table] {
				var id ebpf.MapID
				if m.Lookup(n, &id) == nil { // a delete takes the kernel long
					require.NoError(t, m.Delete(n))
				}
			}
			continue
		case mapServices, mapEndpoints:
			for _, n := range places[table] {
				require.NoError(t, m.Put(n, make([]byte, m.ValueSize())))
			}
			continue
		}
		for _, key := range keysOf(t, m) {
			require.NoError(t, m.Delete(key))
		}
	}
}

func keysOf(t testing.TB, m *ebpf.Map) (keys [][]byte) {
	t.Helper()
	var key, value []byte
	all := m.Iterate()
	for all.Next(&key, &value) {
		keys = append(keys, slices.Clone(key))
	}
	require.NoError(t, all.Err())
	return keys
}

// execute executes a plan, as apply does.
func (k *kernel) execute(t testing.TB, p *plan, err error) {
	t.Helper()
	require.NoError(t, err)
	require.NoError(t, k.apply(p.writes))
	p.commit()
}

// serve creates and updates pools and frontends.
func (k *kernel) serve(t testing.TB, s *state, pools []model.Pool, frontends []model.Frontend) {
	t.Helper()
	source := func(a netip.Addr) (netip.Addr, error) {
		if a.Is4() {
			return netip.MustParseAddr("198.51.100.1"), nil
		}
		return netip.MustParseAddr("2001:db8:1::1"), nil
	}
	for _, pool := range pools {
		p, err := s.planPool(pool, source)
		k.execute(t, p, err)
	}
	require.NoError(t, k.installTables())
	for _, f := range frontends {
		p, err := s.planFrontend(f)
		k.execute(t, p, err)
		lures := &plan{commit: func() { s.commitRoles(p.roles) }}
		s.planRoles(lures, p.roles)
		k.execute(t, lures, nil)
	}
}

// purge deletes all frontends and pools, and frees all removed endpoints.
func (k *kernel) purge(t testing.TB, s *state) {
	t.Helper()
	for key := range s.frontends {
		k.execute(t, s.planDeleteFrontend(key), nil)
	}
	for id := range s.pools {
		k.execute(t, s.planDeletePool(id), nil)
	}
	for handle := range s.removed {
		k.execute(t, s.planFreeEndpoint(handle), nil)
	}
}

// requireValid checks that no number is used twice, that all numbers are valid, and that all records can be sent to the manager.
func (s *state) requireValid(t testing.TB, k *kernel) {
	t.Helper()
	numbers := map[string]map[uint32]string{mapPools: {}, mapServices: {}, mapEndpoints: {}}
	take := func(table string, number uint32, what string) {
		require.Empty(t, numbers[table][number], "%s and %s have the number %d", what, numbers[table][number], number)
		require.True(t, isValidNumber(number, k.maps[table]), "%s: %d", what, number)
		numbers[table][number] = what
	}
	for id, p := range s.pools {
		require.True(t, id != "" && utf8.ValidString(string(id)))
		take(mapPools, p.number, "pool "+string(id))
		for name, e := range p.endpoints {
			require.True(t, utf8.ValidString(name))
			take(mapEndpoints, e.handle, "endpoint "+name)
		}
	}
	for handle := range s.removed {
		take(mapEndpoints, handle, "a removed endpoint")
	}
	for key, f := range s.frontends {
		take(mapServices, f.number, key.String())
		valid := model.Frontend{FrontendKey: key, Tenant: "a", Pool: "a/p", TargetPort: 1, Restricted: true, SourceRanges: f.ranges, Redirect: f.redirect}
		if key.Port == 0 {
			valid.Port = 1
		}
		if key.Protocol != model.TCP {
			valid.Redirect = model.Redirect{}
		}
		require.NoError(t, valid.Validate())
	}
	for table, free := range map[string]freeNumbers{mapPools: s.freePools, mapServices: s.freeServices, mapEndpoints: s.freeEndpoints} {
		for i, f := range free {
			take(table, f.number, "a free number")
			free[i].since = time.Time{} // without reuseDelay
		}
		last := map[string]uint32{mapPools: s.last.Pool, mapServices: s.last.Service, mapEndpoints: s.last.Endpoint}[table]
		for number := range numbers[table] {
			require.LessOrEqual(t, number, last, "the next allocated number would be a used one")
		}
	}
	digests := s.digests()
	for what, digest := range digests.Pools {
		require.True(t, utf8.ValidString(string(digest)), what)
	}
	for what, digest := range digests.Frontends {
		require.True(t, utf8.ValidString(string(digest)), what.String())
	}
}

// fixturesAsElements returns the elements that this version writes for the fixtures.
func fixturesAsElements(t testing.TB, k *kernel) (all []byte) {
	t.Helper()
	s := newState()
	pools, frontends := fixtures()
	for i := range frontends {
		if frontends[i].Protocol == model.TCP && frontends[i].Forwarding == model.NAT {
			frontends[i].Redirect = model.Redirect{Next: frontends[i].VIP.Next(), Limit: 3}
		}
		frontends[i].MaxConnections = uint32(i % 2)
	}
	k.serve(t, s, pools, frontends)
	places := map[string][]uint32{}
	for _, table := range adoptedMaps {
		m, index := k.maps[table], byte(slices.Index(adoptedMaps, table))
		add := func(key, value []byte) { all = append(append(append(all, index), key...), value...) }
		switch table {
		case mapServices, mapEndpoints, mapNumbers, mapPools:
			last := map[string]uint32{mapServices: s.last.Service, mapEndpoints: s.last.Endpoint, mapPools: s.last.Pool}[table]
			for n := range last + 1 {
				key := binary.NativeEndian.AppendUint32(nil, n)
				value := []byte{}
				if table != mapPools {
					require.NoError(t, m.Lookup(n, &value))
				}
				add(key, value)
				places[table] = append(places[table], n)
			}
		default:
			for _, key := range keysOf(t, m) {
				var value []byte
				require.NoError(t, m.Lookup(key, &value))
				add(key, value)
			}
		}
	}
	k.empty(t, places)
	return all
}

// invalidElements returns elements that no version writes. Each one has one fault.
func invalidElements(t testing.TB, k *kernel) (all [][]byte) {
	t.Helper()
	add := func(table string, key, value any) { all = append(all, element(t, k, table, key, value)) }
	name := func(text string) (out poolRecord) {
		copy(out.ID[:], text)
		out.Digest = digestOf("0123456789abcdef01234567")
		return out
	}
	of := func(pool uint32, text string) (out endpointRecord) {
		out.Pool = pool
		copy(out.ID[:], text)
		return out
	}
	vip := frontendKeyOf(model.FrontendKey{VIP: theVIP[true], Protocol: model.TCP, Port: portPlain})
	add(mapNumbers, uint32(0), numbers{layoutVersion, 1<<32 - 1, 1<<32 - 1, 1<<32 - 1, 1<<32 - 1})
	add(mapNumbers, uint32(0), numbers{Layout: layoutVersion})
	add(mapMembers, memberKey{9, addressOf(theNode[true])}, uint32(1))
	add(mapMembers, memberKey{1, addressOf(theNode[true])}, uint32(1<<32-1))
	add(mapPoolRecords, uint32(1<<32-1), name("a/far"))
	add(mapPoolRecords, uint32(0), name("a/none"))
	add(mapPoolRecords, uint32(9), name(""))
	add(mapPoolRecords, uint32(9), name("a/\xff"))
	add(mapPoolRecords, uint32(9), name(string(poolOf("both", true))))
	add(mapPoolRecords, uint32(1), poolRecord{Digest: digest{0xff}, ID: name("a/p").ID})
	add(mapEndpointRecords, uint32(1<<20), of(1, "n1"))
	add(mapEndpointRecords, uint32(0), of(1, "n1"))
	add(mapEndpointRecords, uint32(4), of(1, "n1"))
	add(mapEndpointRecords, uint32(2), of(1, "\xff"))
	add(mapEndpoints, uint32(1), endpoint{Address: address{10: 0xff, 11: 0xff, 12: 1}, State: endpointActive})
	add(mapEndpoints, uint32(1), endpoint{Address: addressOf(theNode[true]), Generation: 1<<32 - 1, State: 99})
	add(mapServiceRecords, uint32(1<<32-1), serviceRecord{Key: vip})
	add(mapServiceRecords, uint32(7), serviceRecord{Key: vip})
	strange := vip
	strange.Family = 9
	add(mapServiceRecords, uint32(1), serviceRecord{Key: strange})
	add(mapFrontends, strange, uint32(1))
	add(mapFrontends, vip, uint32(1<<32-1))
	add(mapFrontends, vip, uint32(2))
	add(mapServices, uint32(1), service{Pool: 1<<32 - 1, Forwarding: 77})
	add(mapSourceRanges, rangeKey{Length: 1, Service: 3}, uint8(1))
	add(mapSourceRanges, rangeKey{Length: 40, Service: 3}, uint8(1))
	add(mapSourceRanges, rangeKey{Length: 160, Service: 3, Source: address{1}}, uint8(1))
	add(mapLimits, uint32(1), limit{Flows: -1})
	add(mapHandovers, uint32(1), redirect{})
	add(mapHandovers, uint32(1), redirect{Next: addressOf(theNode[true]), MaxRedirects: 200})
	add(mapAddresses, addressKey{Address: addressOf(theVIP[true]), Family: 260}, uint32(roleVIP))
	return all
}

func requireSameDigests(t testing.TB, want, got model.Digests) {
	t.Helper()
	for id, digest := range want.Pools {
		require.Equal(t, digest, got.Pools[id], "%s", id)
	}
	for key, digest := range want.Frontends {
		require.Equal(t, digest, got.Frontends[key], "%s", key)
	}
	require.Len(t, got.Pools, len(want.Pools))
	require.Len(t, got.Frontends, len(want.Frontends))
}

// From any content of the pinned maps, also damaged or of another version, adopt returns a valid state. It can be changed, and a purge leaves no elements.
func FuzzPinnedMaps(f *testing.F) {
	k := newTestMaps(f)
	whole := fixturesAsElements(f, k)
	f.Add(whole)
	all := slices.Clone(whole)
	byMap := map[byte][]byte{}
	for _, one := range invalidElements(f, k) {
		byMap[one[0]] = append(byMap[one[0]], one...)
		all = append(all, one...)
	}
	for _, some := range byMap {
		f.Add(append(slices.Clone(whole), some...))
	}
	f.Add(all)
	f.Fuzz(func(t *testing.T, text []byte) {
		places := k.writeElements(t, text)
		began := time.Now()
		s, err := k.adopt()
		require.NoError(t, err)
		require.Less(t, time.Since(began), 10*time.Second)
		s.requireValid(t, k)
		for _, one := range s.pools {
			places[mapPools] = append(places[mapPools], one.number)
		}
		again, err := k.adopt()
		require.NoError(t, err)
		requireSameDigests(t, s.digests(), again.digests())

		pools, frontends := fixtures()
		k.serve(t, s, pools, frontends)
		served, want := s.digests(), model.Snapshot{Pools: pools, Frontends: frontends}.Digests()
		for id, digest := range want.Pools {
			require.Equal(t, digest, served.Pools[id])
			places[mapPools] = append(places[mapPools], s.pools[id].number)
		}
		for key, digest := range want.Frontends {
			require.Equal(t, digest, served.Frontends[key])
			var number uint32
			var is service
			require.NoError(t, k.maps[mapFrontends].Lookup(frontendKeyOf(key), &number))
			require.NoError(t, k.maps[mapServices].Lookup(number, &is))
			require.Equal(t, s.frontends[key].service, is)
			places[mapServices] = append(places[mapServices], number)
		}
		for n := range s.last.Endpoint {
			if n < 64 {
				places[mapEndpoints] = append(places[mapEndpoints], n)
			}
		}
		s.requireValid(t, k)
		next, err := k.adopt()
		require.NoError(t, err)
		requireSameDigests(t, s.digests(), next.digests())

		k.purge(t, s)
		for _, table := range []string{mapPoolRecords, mapEndpointRecords, mapServiceRecords, mapFrontends, mapSourceRanges, mapLimits, mapHandovers, mapAddresses, mapMembers} {
			require.Empty(t, keysOf(t, k.maps[table]), table)
		}
		k.empty(t, places)
	})
}

// Until layout 4 the endpoint of a client was recorded by its number, and there was no map of members.
func TestAffinityOfAnEarlierLayoutIsAdopted(t *testing.T) {
	k := newTestMaps(t)
	s := newState()
	pools, frontends := fixtures()
	k.serve(t, s, pools, frontends)
	f := s.frontends[frontends[0].FrontendKey]
	var pool *poolState
	for _, p := range s.pools {
		if p.number == f.Pool {
			pool = p
		}
	}
	former, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 24, ValueSize: 12, MaxEntries: 64})
	require.NoError(t, err)
	defer former.Close()
	type formerKey struct {
		Service, Pool uint32
		Client        address
	}
	want := map[clientKey]affinity{}
	client := netip.MustParseAddr("192.0.2.1")
	for _, e := range pool.endpoints {
		require.NoError(t, former.Put(formerKey{f.number, f.Pool, addressOf(client)}, []uint32{e.handle, e.generation, 7}))
		want[clientKey{f.number, addressOf(client)}] = affinity{addressOf(e.address), 7}
		// With another pool, and with an endpoint of another generation.
		require.NoError(t, former.Put(formerKey{f.number, f.Pool + 1, addressOf(client.Next())}, []uint32{e.handle, e.generation, 7}))
		require.NoError(t, former.Put(formerKey{f.number, f.Pool, addressOf(client.Next())}, []uint32{e.handle, e.generation + 100, 7}))
		client = client.Next().Next()
	}
	require.NotEmpty(t, want)
	require.NoError(t, k.adoptOldClients(former))
	got := map[clientKey]affinity{}
	var key clientKey
	var value affinity
	all := k.maps[mapClients].Iterate()
	for all.Next(&key, &value) {
		got[key] = value
	}
	require.NoError(t, all.Err())
	require.Equal(t, want, got)

	members := keysOf(t, k.maps[mapMembers])
	for _, key := range members {
		require.NoError(t, k.maps[mapMembers].Delete(key))
	}
	_, err = k.adopt()
	require.NoError(t, err)
	require.ElementsMatch(t, members, keysOf(t, k.maps[mapMembers]))
}

func TestUsedNumbersAreNotAllocatedAgain(t *testing.T) {
	k := newTestMaps(t)
	k.writeElements(t, append(fixturesAsElements(t, k), element(t, k, mapNumbers, uint32(0), numbers{Layout: layoutVersion})...))
	s, err := k.adopt()
	require.NoError(t, err)
	was := map[uint32]bool{}
	for _, f := range s.frontends {
		was[f.number] = true
	}
	f := model.Frontend{FrontendKey: model.FrontendKey{VIP: theVIP[true], Protocol: model.TCP, Port: 9999}, Tenant: "a", Pool: poolOf("both", true), TargetPort: 1}
	k.serve(t, s, nil, []model.Frontend{f})
	require.False(t, was[s.frontends[f.FrontendKey].number], "packets for another frontend would go to this one")
}

func TestADamagedRecordOfNumbersIsIgnored(t *testing.T) {
	k := newTestMaps(t)
	k.writeElements(t, append(fixturesAsElements(t, k), element(t, k, mapNumbers, uint32(0), numbers{layoutVersion, 1<<32 - 1, 1<<32 - 1, 1<<32 - 1, 1})...))
	s, err := k.adopt()
	require.NoError(t, err)
	require.Equal(t, numbers{layoutVersion, 4, uint32(len(s.frontends)), 4, s.last.Generation}, s.last, "the highest used numbers")
	require.Empty(t, slices.Concat(s.freePools, s.freeServices, s.freeEndpoints))
}
