package ipam

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// trial is an allocator with what stands on record outside of it, as in statuses, and a manager that feeds it.
type trial struct {
	a      *Allocator
	pools  []Pool
	record map[string]recorded
	// asked is what each holder's object says now; earlier is the record as it was some steps ago.
	asked   map[string]Wish
	earlier map[string]recorded
	// loose are holders whose last write failed, of which the manager cannot know what is on record; of unsettled ones it may be something
	// that they have given back.
	loose, unsettled map[string]bool
	// flaw is what is wrong with the manager; nothing if empty.
	flaw string
	t    *testing.T
}

// recorded is what a status says, and by what claim its holder has got it, or had it when a manager began.
type recorded struct {
	grants []Grant
	claim  Claim
}

var (
	plans    = [][]string{{"203.0.113.0/28"}, {"203.0.113.0/29", "2001:db8::/124"}, {"203.0.113.4-203.0.113.12", "2001:db8::/125"}, {"2001:db8::/126"}}
	families = [][]Family{nil, {IPv4}, {IPv6}, {IPv4, IPv6}, {IPv6, IPv4}, {IPv6, IPv6}}
	policies = []Policy{"", SingleStack, PreferDualStack, RequireDualStack}
	requests = [][]string{{"203.0.113.5"}, {"2001:db8::2"}, {"192.0.2.1"}, {"203.0.113.5", "2001:db8::2"}, {"2001:db8::3", "203.0.113.6"}, {"203.0.113.5", "203.0.113.6"}}
	claims   = []Claim{{}, {}, {Ports: []Port{{"TCP", 80}}}, {"key", []Port{{"TCP", 80}}}, {"key", []Port{{"TCP", 443}}}, {"key", []Port{{"UDP", 80}, {"TCP", 81}}}, {"other", []Port{{"TCP", 443}}}}
)

// Flaws of a manager, all of which the properties have to find.
const (
	forgetsAStatus       = "a restart forgets one status"
	readsAStaleCache     = "a restart reads statuses as they were a while ago"
	dealsTwice           = "an address that was granted is free still"
	keepsWhatIsReleased  = "what is released is held on"
	dealsAnewAtEachWrite = "a write that failed is tried again with another address"
	sharesByKeyAlone     = "an address is shared whatever the ports"
	dropsAWish           = "the pool that is asked for is forgotten"
	freesTooEarly        = "what is given back is free before that is on record"
)

// run takes four bytes for each step: an allocation, a release, a restart with what is on record, a crash before something is on record,
// a write that fails or seems to, or other pools. No address is ever held twice but by those who may share it, none changes unless its holder
// asks for something else, and the counts are right. It returns what is not so.
func run(t *testing.T, schedule []byte, flaw string) string {
	trial := &trial{t: t, flaw: flaw, record: map[string]recorded{}, asked: map[string]Wish{}, earlier: map[string]recorded{}, loose: map[string]bool{}, unsettled: map[string]bool{}}
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
	holder := fmt.Sprintf("tenant-%d/%d", who%2, who%20)
	switch action % 12 {
	case 0:
		if t.flaw != keepsWhatIsReleased {
			t.a.Release(holder)
		}
		delete(t.record, holder)
		delete(t.asked, holder)
		delete(t.loose, holder)
		delete(t.unsettled, holder)
	case 1:
		t.restart(more)
	case 2:
		t.pools = []Pool{{Name: "p", Ranges: ranges(t.t, detail&1 == 0, plans[int(who)%len(plans)]...), AutoAssign: detail&2 == 0, Draining: more%8 == 0}}
		if detail&4 == 0 {
			t.pools = append(t.pools, Pool{Name: "q", Ranges: ranges(t.t, true, plans[int(detail>>3)%len(plans)]...), Tenants: []string{"t"}, AutoAssign: true, Priority: int32(more & 1)})
		}
		t.a.SetPools(t.pools)
	default:
		wish := Wish{Tenant: "t", Families: families[int(detail>>2)%len(families)], Policy: policies[detail%4], Claim: claims[int(more)%len(claims)]}
		if action%12 == 3 {
			for _, text := range requests[int(detail>>5)%len(requests)] {
				wish.Requested = append(wish.Requested, netip.MustParseAddr(text))
			}
		}
		if action%12 == 3 || action%12 == 7 {
			wish.Pool = []string{"", "p", "q"}[int(more>>4)%3]
		}
		t.asked[holder] = wish
		return t.allocate(holder, wish, action%12, more)
	}
	return ""
}

// restart begins a new allocator with what is on record, and with what objects ask for now.
func (t *trial) restart(more byte) {
	t.a = NewAllocator()
	t.a.SetPools(t.pools)
	clear(t.loose)
	clear(t.unsettled)
	from := t.record
	if t.flaw == readsAStaleCache {
		from = t.earlier
	}
	for i, holder := range slices.Sorted(maps.Keys(from)) {
		if t.flaw == forgetsAStatus && i == int(more)%len(from) {
			continue
		}
		t.a.Adopt(holder, t.asked[holder].Claim, from[holder].grants)
	}
	for holder, is := range t.record {
		t.record[holder] = recorded{is.grants, t.asked[holder].Claim}
	}
}

// allocate has the manager serve a holder. It may crash before that is on record, or fail to write it, and try again at once or later.
func (t *trial) allocate(holder string, wish Wish, action, more byte) string {
	before, was := t.record[holder], t.a.HoldingOf(holder)
	if t.unsettled[holder] {
		t.a.Release(holder)
		t.a.Adopt(holder, wish.Claim, before.grants)
		before.claim = wish.Claim
		t.record[holder] = before
	}
	had := t.a.Held(holder)
	grants, refusal := t.a.Allocate(holder, t.flawed(wish))
	const crash, failedWrite, triedAgain = 4, 5, 6
	switch action {
	case crash:
		t.restart(more)
		return ""
	case failedWrite:
		t.failToWrite(holder, was, t.a.HoldingOf(holder), more&1 == 0)
		return ""
	case triedAgain:
		if t.flaw == dealsAnewAtEachWrite {
			t.a.Release(holder)
		}
		again, _ := t.a.Allocate(holder, t.flawed(wish))
		if addresses(again) != addresses(grants) {
			return fmt.Sprintf("the same wish again changed %v to %v", grants, again)
		}
	}
	if refusal != nil && addresses(grants) != addresses(had) {
		return fmt.Sprintf("a refusal changed %v to %v", had, grants)
	}
	if len(wish.Requested) == 0 && wish.Pool == "" {
		for _, had := range before.grants {
			for _, has := range grants {
				if FamilyOf(had.Address) == FamilyOf(has.Address) && had != has {
					return fmt.Sprintf("%v became %v", before.grants, grants)
				}
			}
		}
	}
	if refusal != nil {
		return ""
	}
	if wrong := unfulfilled(wish, grants); wrong != "" {
		return fmt.Sprintf("%v of the wish %+v: %s", grants, wish, wrong)
	}
	if wrong := t.notShared(holder, wish, before, grants); wrong != "" {
		return wrong
	}
	t.record[holder] = recorded{grants, wish.Claim}
	delete(t.loose, holder)
	delete(t.unsettled, holder)
	if t.flaw == dealsTwice {
		for _, g := range grants {
			delete(t.a.holders, g.Address)
		}
	}
	return ""
}

// unfulfilled says what of the wish the grants are not; empty if they are all of it (docs/services.md: it never gets something else instead).
func unfulfilled(wish Wish, grants []Grant) string {
	has := map[Family]int{}
	for _, g := range grants {
		has[FamilyOf(g.Address)]++
		if wish.Pool != "" && g.Pool != wish.Pool {
			return fmt.Sprintf("%s is of another pool", g.Address)
		}
	}
	for _, requested := range wish.Requested {
		if !slices.ContainsFunc(grants, func(g Grant) bool { return g.Address == requested }) {
			return fmt.Sprintf("%s is missing", requested)
		}
	}
	dual := wish.Policy == PreferDualStack || wish.Policy == RequireDualStack
	switch {
	case has[IPv4] > 1 || has[IPv6] > 1:
		return "two addresses of a family"
	case len(grants) == 0:
		return "no address"
	case wish.Policy == RequireDualStack && len(grants) < 2:
		return "one family"
	case !dual && len(grants) > 1:
		return "two families"
	case !dual && len(wish.Families) > 0 && FamilyOf(grants[0].Address) != wish.Families[0]:
		return "another family"
	}
	return ""
}

// failToWrite is told that what the holder is given could not be written, be it so or not.
func (t *trial) failToWrite(holder string, was, given Holding, isWritten bool) {
	t.loose[holder] = true
	if slices.ContainsFunc(was.Grants, func(g Grant) bool { return !slices.Contains(given.Grants, g) }) {
		t.unsettled[holder] = true
		if t.flaw != freesTooEarly {
			t.a.Retain(holder, was)
		}
	}
	onRecord := t.record[holder].grants
	if isWritten {
		onRecord = given.Grants
	}
	t.record[holder] = recorded{onRecord, given.Claim} // claims are what objects ask for
}

// flawed is the wish as the manager tells it.
func (t *trial) flawed(wish Wish) Wish {
	if t.flaw == dropsAWish {
		wish.Pool = ""
	}
	if t.flaw == sharesByKeyAlone {
		wish.Ports = nil
	}
	return wish
}

// notShared tells of an address that is newly had although others have it who do not share it.
func (t *trial) notShared(holder string, wish Wish, before recorded, grants []Grant) string {
	for other, has := range t.record {
		if other == holder {
			continue
		}
		for _, g := range grants {
			if slices.Contains(before.grants, g) || !slices.ContainsFunc(has.grants, func(h Grant) bool { return h.Address == g.Address }) {
				continue
			}
			apart := !slices.ContainsFunc(wish.Ports, func(p Port) bool { return slices.Contains(has.claim.Ports, p) })
			if tenantOf(other) != tenantOf(holder) || wish.Sharing == "" || wish.Sharing != has.claim.Sharing || !apart {
				return fmt.Sprintf("%s is held by %s by %v and given to %s by %v", g.Address, other, has.claim, holder, wish.Claim)
			}
		}
	}
	return ""
}

func (t *trial) check() string {
	held, used := map[netip.Addr]bool{}, map[string]int64{}
	overlapping := Overlaps(t.pools)
	for holder := range t.asked {
		has, is := t.a.Held(holder), t.record[holder]
		isNotHeld := func(g Grant) bool { return !slices.Contains(t.a.Holders(g.Address), holder) }
		if !t.loose[holder] && addresses(has) != addresses(is.grants) || slices.ContainsFunc(is.grants, isNotHeld) {
			return fmt.Sprintf("%s holds %v, on record are %v", holder, has, is.grants)
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

// schedules is how many random ones are run, and stepsOfSchedule how long they are.
const schedules, stepsOfSchedule = 2000, 100

func TestNoAddressIsEverDealtTwiceOrChangesByItself(t *testing.T) {
	for seed := range uint64(schedules) {
		if wrong := run(t, randomBytes(seed, 4*stepsOfSchedule), ""); wrong != "" {
			t.Fatalf("seed %d: %s", seed, wrong)
		}
	}
	t.Logf("%d schedules of %d steps", schedules, stepsOfSchedule)
}

// A property that finds nothing says nothing.
func TestThePropertiesFindWhatIsWrongWithAManager(t *testing.T) {
	for _, flaw := range []string{forgetsAStatus, readsAStaleCache, dealsTwice, keepsWhatIsReleased, dealsAnewAtEachWrite, sharesByKeyAlone, freesTooEarly, dropsAWish} {
		found, first := 0, ""
		const tried = 200
		for seed := range uint64(tried) {
			if wrong := run(t, randomBytes(seed, 4*stepsOfSchedule), flaw); wrong != "" {
				if found++; first == "" {
					first = wrong
				}
			}
		}
		least := tried / 2
		if flaw == freesTooEarly {
			least = tried / 10 // it shows only where a write fails that gives something back
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
