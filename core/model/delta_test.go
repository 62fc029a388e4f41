package model

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

func TestADifferenceFromNothingHasAllRecordsInCanonicalOrder(t *testing.T) {
	d := Difference(NewDigests(), snapshot())
	if d.Empty() || d.Len() != 4 {
		t.Errorf("%d records, not 4", d.Len())
	}
	want := snapshot().Canonical()
	for i, p := range d.UpsertPools {
		if p.Text() != want.Pools[i].Text() {
			t.Errorf("pool %d is %s", i, p.Text())
		}
	}
	for i, f := range d.UpsertFrontends {
		if !f.Equal(want.Frontends[i]) {
			t.Errorf("frontend %d is %s", i, f.Text())
		}
	}
}

func TestADifferenceToNothingDeletesAllRecordsInOrder(t *testing.T) {
	have := NewDigests()
	keys := []FrontendKey{
		{netip.MustParseAddr("203.0.113.1"), TCP, 53}, {netip.MustParseAddr("203.0.113.1"), UDP, 53}, {netip.MustParseAddr("203.0.113.1"), TCP, 443},
		{netip.MustParseAddr("203.0.113.2"), TCP, 1}, {netip.MustParseAddr("2001:db8::1"), TCP, 1},
	}
	for _, key := range keys {
		have.Frontends[key] = "x"
	}
	ids := []PoolID{"a/one", "a/two", "b/one"}
	for _, id := range ids {
		have.Pools[id] = "x"
	}
	for range 5 { // maps are read in random order
		d := Difference(have, Snapshot{})
		if !slices.Equal(d.DeleteFrontends, keys) || !slices.Equal(d.DeletePools, ids) {
			t.Fatalf("deletes %v and %v", d.DeleteFrontends, d.DeletePools)
		}
		if d.Len() != 8 || d.Empty() || len(d.UpsertPools)+len(d.UpsertFrontends) != 0 {
			t.Fatalf("%+v", d)
		}
	}
}

func TestARecordWithAnUnknownDigestIsWrittenAgain(t *testing.T) {
	// A dataplane that cannot read the digest of a record says so with the empty digest.
	have := snapshot().Canonical().Digests()
	have.Pools["a/two"] = ParseDigest("damaged")
	have.Frontends[snapshot().Frontends[0].FrontendKey] = ""
	d := Difference(have, snapshot())
	if d.Len() != 2 || len(d.UpsertPools) != 1 || d.UpsertPools[0].ID != "a/two" || len(d.UpsertFrontends) != 1 || d.UpsertFrontends[0].Protocol != UDP {
		t.Errorf("%+v", d)
	}
}

func TestADeltaIsEmptyIfItHasNoRecordOfAnyKind(t *testing.T) {
	if d := (Delta{}); !d.Empty() || d.Len() != 0 {
		t.Error("the zero delta is not empty")
	}
	for name, d := range map[string]Delta{
		"a pool":             {UpsertPools: make([]Pool, 1)},
		"a frontend":         {UpsertFrontends: make([]Frontend, 1)},
		"a deleted frontend": {DeleteFrontends: make([]FrontendKey, 1)},
		"a deleted pool":     {DeletePools: make([]PoolID, 1)},
	} {
		if d.Empty() || d.Len() != 1 {
			t.Errorf("with %s it has %d records", name, d.Len())
		}
	}
}

func TestTheOrderOfEndpointsAndRangesMakesNoDifference(t *testing.T) {
	have := snapshot().Canonical().Digests()
	turned := snapshot()
	slices.Reverse(turned.Pools)
	slices.Reverse(turned.Pools[1].Endpoints)
	slices.Reverse(turned.Frontends)
	slices.Reverse(turned.Frontends[0].SourceRanges)
	if d := Difference(have, turned); !d.Empty() {
		t.Errorf("%+v", d)
	}
}

func TestCanonicalSortsACopy(t *testing.T) {
	s := snapshot()
	_ = s.Canonical()
	if s.Pools[0].ID != "a/two" || s.Pools[0].Endpoints[0].ID != "n2" || s.Frontends[0].Protocol != UDP || s.Frontends[1].SourceRanges[0].Bits() != 25 {
		t.Errorf("the snapshot itself is sorted now: %+v", s)
	}
}

func TestEachFieldOfAnEndpointChangesThePoolsDigest(t *testing.T) {
	seen := map[Digest]string{}
	for name, change := range map[string]func(*Pool){
		"nothing":       func(*Pool) {},
		"tenant":        func(p *Pool) { p.Tenant = "b" },
		"id":            func(p *Pool) { p.ID = "a/other" },
		"endpoint":      func(p *Pool) { p.Endpoints = p.Endpoints[:1] },
		"endpoint's id": func(p *Pool) { p.Endpoints[0].ID = "n9" },
		"address":       func(p *Pool) { p.Endpoints[0].Address = netip.MustParseAddr("198.51.100.99") },
		"weight":        func(p *Pool) { p.Endpoints[0].Weight++ },
		"active":        func(p *Pool) { p.Endpoints[0].State = Active },
		"unhealthy":     func(p *Pool) { p.Endpoints[0].State = Unhealthy },
	} {
		p := snapshot().Pools[0]
		change(&p)
		if other, twice := seen[p.Digest()]; twice {
			t.Errorf("%s has the digest of %s", name, other)
		}
		seen[p.Digest()] = name
	}
}

func TestPrefixesAreOrderedByAddressAndThenTheLargerNetwork(t *testing.T) {
	var sorted []netip.Prefix
	for _, text := range []string{"10.0.0.0/8", "10.0.0.0/24", "10.0.0.1/32", "192.0.2.0/24", "2001:db8::/32", "2001:db8::/64"} {
		sorted = append(sorted, netip.MustParsePrefix(text))
	}
	turned := slices.Clone(sorted)
	slices.Reverse(turned)
	slices.SortFunc(turned, ComparePrefix)
	if !slices.Equal(turned, sorted) {
		t.Errorf("sorted as %v", turned)
	}
}

func TestTheTextOfAFrontendNamesAllThatIsNotTheDefault(t *testing.T) {
	f := Frontend{FrontendKey: FrontendKey{netip.MustParseAddr("2001:db8::1"), TCP, 443}, Owner: ObjectName{"tenant-a", "web"}, Tenant: "a", Pool: "a/p", TargetPort: 30443,
		Forwarding: Transparent, AffinityTimeout: 3 * time.Hour, Restricted: true, IdleTimeout: 10 * time.Minute, ProxyProtocol: true, MaxConnections: 100, MaxNewPerSecond: 7,
		Redirect: Redirect{netip.MustParseAddr("2001:db8::9"), 3}}
	want := "frontend TCP [2001:db8::1]:443 pool=a/p target=30443 forwarding=transparent affinity=3h0m0s sources=[] idle=10m0s proxy-protocol=v2" +
		" max-connections=100 max-new-per-second=7 handover=2001:db8::9,3 tenant=a owner=tenant-a/web\n"
	if got := f.Text(); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
}
