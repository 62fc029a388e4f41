package ipam

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// trial is an allocator, the allocations on record (as in the status of LoadBalancers), and a manager that uses the allocator.
type trial struct {
	a      *Allocator
	pools  []Pool
	record map[string]recorded
	// asked is the current request of each owner. earlier is the record some steps ago.
	asked   map[string]Request
	earlier map[string]recorded
	// loose are owners whose last write failed: the manager cannot know what is on record for them. Of unsettled owners, addresses may be on
	// record that they have released.
	loose, unsettled map[string]bool
	// flaw is a bug of the manager, or empty.
	flaw string
	t    *testing.T
}

// recorded has the addresses in a status, and the owner's claim when it got them, or when the manager started.
type recorded struct {
	allocations []Allocation
	claim       Claim
}

var (
	plans    = [][]string{{"203.0.113.0/28"}, {"203.0.113.0/29", "2001:db8::/124"}, {"203.0.113.4-203.0.113.12", "2001:db8::/125"}, {"2001:db8::/126"}}
	families = [][]Family{nil, {IPv4}, {IPv6}, {IPv4, IPv6}, {IPv6, IPv4}, {IPv6, IPv6}}
	policies = []Policy{"", SingleStack, PreferDualStack, RequireDualStack}
	requests = [][]string{{"203.0.113.5"}, {"2001:db8::2"}, {"192.0.2.1"}, {"203.0.113.5", "2001:db8::2"}, {"2001:db8::3", "203.0.113.6"}, {"203.0.113.5", "203.0.113.6"}}
	claims   = []Claim{{}, {}, {Ports: []Port{{"TCP", 80}}}, {"key", []Port{{"TCP", 80}}}, {"key", []Port{{"TCP", 443}}}, {"key", []Port{{"UDP", 80}, {"TCP", 81}}}, {"other", []Port{{"TCP", 443}}}}
)

// Flaws of a manager. The properties have to find all of them.
const (
	ignoresAStatus            = "a restart ignores one status"
	readsAStaleCache          = "a restart reads outdated statuses"
	allocatesTwice            = "an allocated address is still free"
	ignoresReleases           = "a released address is not free"
	allocatesAgainAtEachWrite = "a write that failed is tried again with another address"
	sharesWhateverThePorts    = "an address is shared whatever the ports"
	ignoresThePool            = "the requested pool is ignored"
	freesTooEarly             = "a released address is free before the release is on record"
)

// run takes four bytes for each step: an allocation, a release, a restart from the record, a crash before a write, a write that fails or
// seems to fail, or other pools. It checks that an address has two owners only if they may share it, that an address changes only if its owner
// requests something else, and that the counts are right. It returns the first violation, or an empty string.
func run(t *testing.T, schedule []byte, flaw string) string {
	trial := &trial{t: t, flaw: flaw, record: map[string]recorded{}, asked: map[string]Request{}, earlier: map[string]recorded{}, loose: map[string]bool{}, unsettled: map[string]bool{}}
	trial.restart(0)
	for i := 0; len(schedule) >= 4; i, schedule = i+1, schedule[4:] {
		if i%8 == 0 {
			trial.earlier = maps.Clone(trial.record)
		}
		if wrong := trial.step(schedule[0], schedule[1], schedule[2], schedule[3]); wrong != "" {
			return wrong
		}
		if wrong := trial.check(); wrong != "" {
			return wrong
		}
	}
	return ""
}

func (t *trial) step(action, who, detail, more byte) string {
	owner := fmt.Sprintf("tenant-%d/%d", who%2, who%20)
	switch action % 12 {
	case 0:
		if t.flaw != ignoresReleases {
			t.a.Release(owner)
		}
		delete(t.record, owner)
		delete(t.asked, owner)
		delete(t.loose, owner)
		delete(t.unsettled, owner)
	case 1:
		t.restart(more)
	case 2:
		t.pools = []Pool{{Name: "p", Ranges: ranges(t.t, detail&1 == 0, plans[int(who)%len(plans)]...), AutoAssign: detail&2 == 0, Draining: more%8 == 0}}
		if detail&4 == 0 {
			t.pools = append(t.pools, Pool{Name: "q", Ranges: ranges(t.t, true, plans[int(detail>>3)%len(plans)]...), Tenants: []string{"t"}, AutoAssign: true, Priority: int32(more & 1)})
		}
		t.a.SetPools(t.pools)
	default:
		request := Request{Tenant: "t", Families: families[int(detail>>2)%len(families)], Policy: policies[detail%4], Claim: claims[int(more)%len(claims)]}
		if action%12 == 3 {
			for _, text := range requests[int(detail>>5)%len(requests)] {
				request.Requested = append(request.Requested, netip.MustParseAddr(text))
			}
		}
		if action%12 == 3 || action%12 == 7 {
			request.Pool = []string{"", "p", "q"}[int(more>>4)%3]
		}
		t.asked[owner] = request
		return t.allocate(owner, request, action%12, more)
	}
	return ""
}

// restart makes a new allocator from the record and the current requests.
func (t *trial) restart(more byte) {
	t.a = NewAllocator()
	t.a.SetPools(t.pools)
	clear(t.loose)
	clear(t.unsettled)
	from := t.record
	if t.flaw == readsAStaleCache {
		from = t.earlier
	}
	for i, owner := range slices.Sorted(maps.Keys(from)) {
		if t.flaw == ignoresAStatus && i == int(more)%len(from) {
			continue
		}
		t.a.Adopt(owner, t.asked[owner].Claim, from[owner].allocations)
	}
	for owner, is := range t.record {
		t.record[owner] = recorded{is.allocations, t.asked[owner].Claim}
	}
}

// allocate has the manager serve an owner. The manager may crash before its write, or fail to write, and try again at once or later.
func (t *trial) allocate(owner string, request Request, action, more byte) string {
	before, was := t.record[owner], t.a.StateOf(owner)
	if t.unsettled[owner] {
		t.a.Release(owner)
		t.a.Adopt(owner, request.Claim, before.allocations)
		before.claim = request.Claim
		t.record[owner] = before
	}
	had := t.a.AllocationsOf(owner)
	allocations, refusal := t.a.Allocate(owner, t.flawed(request))
	const crash, failedWrite, triedAgain = 4, 5, 6
	switch action {
	case crash:
		t.restart(more)
		return ""
	case failedWrite:
		t.failToWrite(owner, was, t.a.StateOf(owner), more&1 == 0)
		return ""
	case triedAgain:
		if t.flaw == allocatesAgainAtEachWrite {
			t.a.Release(owner)
		}
		again, _ := t.a.Allocate(owner, t.flawed(request))
		if addresses(again) != addresses(allocations) {
			return fmt.Sprintf("the same request again changed %v to %v", allocations, again)
		}
	}
	if refusal != nil && addresses(allocations) != addresses(had) {
		return fmt.Sprintf("a refusal changed %v to %v", had, allocations)
	}
	if len(request.Requested) == 0 && request.Pool == "" {
		for _, had := range before.allocations {
			for _, has := range allocations {
				if FamilyOf(had.Address) == FamilyOf(has.Address) && had != has {
					return fmt.Sprintf("%v became %v", before.allocations, allocations)
				}
			}
		}
	}
	if refusal != nil {
		return ""
	}
	if wrong := unfulfilled(request, allocations); wrong != "" {
		return fmt.Sprintf("%v for the request %+v: %s", allocations, request, wrong)
	}
	if wrong := t.notShared(owner, request, before, allocations); wrong != "" {
		return wrong
	}
	t.record[owner] = recorded{allocations, request.Claim}
	delete(t.loose, owner)
	delete(t.unsettled, owner)
	if t.flaw == allocatesTwice {
		for _, g := range allocations {
			delete(t.a.owners, g.Address)
		}
	}
	return ""
}

// unfulfilled returns the part of the request that the allocations do not fulfil, or an empty string (docs/services.md: it never gets something else instead).
func unfulfilled(request Request, allocations []Allocation) string {
	has := map[Family]int{}
	for _, g := range allocations {
		has[FamilyOf(g.Address)]++
		if request.Pool != "" && g.Pool != request.Pool {
			return fmt.Sprintf("%s is of another pool", g.Address)
		}
	}
	for _, requested := range request.Requested {
		if !slices.ContainsFunc(allocations, func(g Allocation) bool { return g.Address == requested }) {
			return fmt.Sprintf("%s is missing", requested)
		}
	}
	dual := request.Policy == PreferDualStack || request.Policy == RequireDualStack
	switch {
	case has[IPv4] > 1 || has[IPv6] > 1:
		return "two addresses of a family"
	case len(allocations) == 0:
		return "no address"
	case request.Policy == RequireDualStack && len(allocations) < 2:
		return "one family"
	case !dual && len(allocations) > 1:
		return "two families"
	case !dual && len(request.Families) > 0 && FamilyOf(allocations[0].Address) != request.Families[0]:
		return "another family"
	}
	return ""
}

// failToWrite has the manager believe that its write for the owner failed, whether it did or not.
func (t *trial) failToWrite(owner string, was, given OwnerState, isWritten bool) {
	t.loose[owner] = true
	if slices.ContainsFunc(was.Allocations, func(g Allocation) bool { return !slices.Contains(given.Allocations, g) }) {
		t.unsettled[owner] = true
		if t.flaw != freesTooEarly {
			t.a.Retain(owner, was)
		}
	}
	onRecord := t.record[owner].allocations
	if isWritten {
		onRecord = given.Allocations
	}
	t.record[owner] = recorded{onRecord, given.Claim} // claims come from the objects' spec
}

// flawed returns the request with the manager's flaw.
func (t *trial) flawed(request Request) Request {
	if t.flaw == ignoresThePool {
		request.Pool = ""
	}
	if t.flaw == sharesWhateverThePorts {
		request.Ports = nil
	}
	return request
}

// notShared returns a violation if the owner got an address of another owner without being allowed to share it.
func (t *trial) notShared(owner string, request Request, before recorded, allocations []Allocation) string {
	for other, has := range t.record {
		if other == owner {
			continue
		}
		for _, g := range allocations {
			if slices.Contains(before.allocations, g) || !slices.ContainsFunc(has.allocations, func(h Allocation) bool { return h.Address == g.Address }) {
				continue
			}
			apart := !slices.ContainsFunc(request.Ports, func(p Port) bool { return slices.Contains(has.claim.Ports, p) })
			if tenantOf(other) != tenantOf(owner) || request.Sharing == "" || request.Sharing != has.claim.Sharing || !apart {
				return fmt.Sprintf("%s is held by %s by %v and given to %s by %v", g.Address, other, has.claim, owner, request.Claim)
			}
		}
	}
	return ""
}

func (t *trial) check() string {
	held, used := map[netip.Addr]bool{}, map[string]int64{}
	overlapping := Overlaps(t.pools)
	for owner := range t.asked {
		has, is := t.a.AllocationsOf(owner), t.record[owner]
		notHeld := func(g Allocation) bool { return !slices.Contains(t.a.OwnersOf(g.Address), owner) }
		if !t.loose[owner] && addresses(has) != addresses(is.allocations) || slices.ContainsFunc(is.allocations, notHeld) {
			return fmt.Sprintf("%s holds %v, on record are %v", owner, has, is.allocations)
		}
		for _, g := range has {
			if held[g.Address] {
				continue
			}
			held[g.Address] = true
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
				return fmt.Sprintf("%s %s: %d used and %s free, but %d are held", p.Name, family, usage.Used, usage.Free, used[p.Name+family.String()])
			}
		}
	}
	return ""
}

func randomBytes(seed uint64, n int) []byte {
	out := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(out)
	return out
}

// schedules is the number of random schedules, stepsPerSchedule the length of each.
const schedules, stepsPerSchedule = 2000, 100

func TestNoAddressIsAllocatedTwiceOrChangesByItself(t *testing.T) {
	for seed := range uint64(schedules) {
		if wrong := run(t, randomBytes(seed, 4*stepsPerSchedule), ""); wrong != "" {
			t.Fatalf("seed %d: %s", seed, wrong)
		}
	}
	t.Logf("%d schedules of %d steps", schedules, stepsPerSchedule)
}

// A property that never fails proves nothing.
func TestThePropertiesFindEachFlawOfAManager(t *testing.T) {
	for _, flaw := range []string{ignoresAStatus, readsAStaleCache, allocatesTwice, ignoresReleases, allocatesAgainAtEachWrite, sharesWhateverThePorts, freesTooEarly, ignoresThePool} {
		found, first := 0, ""
		const tried = 200
		for seed := range uint64(tried) {
			if wrong := run(t, randomBytes(seed, 4*stepsPerSchedule), flaw); wrong != "" {
				if found++; first == "" {
					first = wrong
				}
			}
		}
		least := tried / 2
		if flaw == freesTooEarly {
			least = tried / 10 // it shows only when the write of a release fails
		}
		if found < least {
			t.Errorf("%s: found in %d of %d schedules", flaw, found, tried)
		}
		t.Logf("%s: found in %d of %d schedules, such as: %s", flaw, found, tried, first)
	}
}

func FuzzAllocator(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(randomBytes(seed, 30*int(seed+1)))
	}
	f.Fuzz(func(t *testing.T, schedule []byte) {
		if wrong := run(t, schedule[:min(len(schedule), 4000)], ""); wrong != "" {
			t.Fatal(wrong)
		}
	})
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
