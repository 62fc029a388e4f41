package ipam

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// trial is an allocator with what stands on record outside of it, as in statuses.
type trial struct {
	*testing.T
	a      *Allocator
	pools  []Pool
	record map[string][]Grant
}

var (
	plans    = [][]string{{"203.0.113.0/28"}, {"203.0.113.0/29", "2001:db8::/124"}, {"203.0.113.4-203.0.113.12", "2001:db8::/125"}, {"2001:db8::/126"}}
	families = [][]Family{nil, {IPv4}, {IPv6}, {IPv4, IPv6}, {IPv6, IPv4}, {IPv6, IPv6}}
	policies = []Policy{"", SingleStack, PreferDualStack, RequireDualStack}
	requests = []string{"203.0.113.5", "2001:db8::2", "192.0.2.1"}
)

// run takes three bytes for each step: an allocation, a release, a restart with what is on record, or other pools. No
// address is ever held twice, none changes unless its holder asks for something else, and the counts are right.
func run(t *testing.T, schedule []byte) {
	trial := &trial{T: t, record: map[string][]Grant{}}
	trial.restart()
	for ; len(schedule) >= 3; schedule = schedule[3:] {
		trial.step(schedule[0], schedule[1], schedule[2])
		trial.check()
	}
}

func (t *trial) step(action, who, detail byte) {
	holder := fmt.Sprintf("t/%d", who%20)
	switch action % 8 {
	case 0:
		t.a.Release(holder)
		delete(t.record, holder)
	case 1:
		t.restart()
	case 2:
		t.pools = []Pool{{Name: "p", Ranges: ranges(t.T, detail&1 == 0, plans[int(who)%len(plans)]...), AutoAssign: detail&2 == 0}}
		if detail&4 == 0 {
			t.pools = append(t.pools, Pool{Name: "q", Ranges: ranges(t.T, true, plans[int(detail>>3)%len(plans)]...), Tenants: []string{"t"}, AutoAssign: true})
		}
		t.a.SetPools(t.pools)
	default:
		wish := Wish{Tenant: "t", Families: families[int(detail>>2)%len(families)], Policy: policies[detail%4]}
		if action%8 == 3 {
			wish.Requested = []netip.Addr{netip.MustParseAddr(requests[int(detail>>5)%len(requests)])}
		}
		t.allocate(holder, wish)
	}
}

func (t *trial) restart() {
	t.a = NewAllocator()
	t.a.SetPools(t.pools)
	for holder, grants := range t.record {
		if conflicts := t.a.Adopt(holder, grants); conflicts != nil {
			t.Fatal(conflicts)
		}
	}
}

func (t *trial) allocate(holder string, wish Wish) {
	before := t.record[holder]
	grants, refusal := t.a.Allocate(holder, wish)
	if refusal != nil && addresses(grants) != addresses(before) {
		t.Fatalf("a refusal changed %v to %v", before, grants)
	}
	if len(wish.Requested) == 0 {
		for _, had := range before {
			for _, has := range grants {
				if FamilyOf(had.Address) == FamilyOf(has.Address) && had != has {
					t.Fatalf("%v became %v", before, grants)
				}
			}
		}
		if again, _ := t.a.Allocate(holder, wish); addresses(again) != addresses(grants) {
			t.Fatalf("the same wish again changed %v to %v", grants, again)
		}
	}
	t.record[holder] = grants
}

func (t *trial) check() {
	seen, used := map[netip.Addr]string{}, map[string]int64{}
	overlapping := Overlaps(t.pools)
	for holder, grants := range t.record {
		if addresses(t.a.Held(holder)) != addresses(grants) {
			t.Fatalf("%s holds %v, on record are %v", holder, t.a.Held(holder), grants)
		}
		for _, g := range grants {
			if other, twice := seen[g.Address]; twice {
				t.Fatalf("%s is held by %s and %s", g.Address, holder, other)
			}
			seen[g.Address] = holder
			for i, p := range t.pools {
				if p.Contains(g.Address) && (i == 0 || len(overlapping) == 0) {
					used[p.Name+FamilyOf(g.Address).String()]++
				}
			}
		}
	}
	for _, p := range t.pools {
		for _, family := range []Family{IPv4, IPv6} {
			if usage := t.a.Usage(p.Name, family); usage.Used != used[p.Name+family.String()] || usage.Free.Sign() < 0 {
				t.Fatalf("%s %s: %d used and %s free, but %d are held", p.Name, family, usage.Used, usage.Free, used[p.Name+family.String()])
			}
		}
	}
}

func randomBytes(seed uint64, n int) []byte {
	out := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(out)
	return out
}

func TestNoAddressIsEverDealtTwice(t *testing.T) { run(t, randomBytes(1, 30000)) }

func FuzzAllocator(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(randomBytes(seed, 30*int(seed+1)))
	}
	f.Fuzz(func(t *testing.T, schedule []byte) { run(t, schedule[:min(len(schedule), 3000)]) })
}

func FuzzParseRanges(f *testing.F) {
	for _, entry := range []string{"203.0.113.0/29", "203.0.113.1-203.0.113.6", "2001:db8::/64", "2001:db8::1 - 2001:db8::2", "0.0.0.0/0", "::/0", "203.0.113.0/31", "::ffff:1.2.3.4/120", "fe80::1%eth0-fe80::2%eth0", "::-::ffff:1.2.3.4"} {
		f.Add(entry, "198.51.100.0/24", true)
		f.Add(entry, entry, false)
	}
	f.Fuzz(func(t *testing.T, one, other string, avoid bool) {
		found, err := ParseRanges([]string{one, other}, avoid)
		if err != nil {
			return
		}
		if len(found) != 2 || found[0].Overlaps(found[1]) {
			t.Fatalf("read as %v", found)
		}
		for _, r := range found {
			if r.First.BitLen() != r.Last.BitLen() || r.First.Compare(r.Last) > 0 || r.First.Is4In6() || r.Last.Is4In6() || r.First.Zone()+r.Last.Zone() != "" || r.size().Sign() <= 0 {
				t.Fatalf("read as %v", found)
			}
			again, err := ParseRanges([]string{r.String()}, false)
			if err != nil || again[0] != r {
				t.Fatalf("%s is read as %v: %v", r, again, err)
			}
		}
	})
}
