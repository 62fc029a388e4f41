package election

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"kubelb.k8c.io/core/ipam"
)

func addresses(n int) (out []netip.Addr) {
	v4, v6 := netip.MustParseAddr("203.0.113.0"), netip.MustParseAddr("2001:db8:f::")
	for range n / 2 {
		out = append(out, v4, v6)
		v4, v6 = v4.Next(), v6.Next()
	}
	return out
}

func gateways(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("gateway-%d", i))
	}
	return out
}

func TestAddressesSpreadEvenly(t *testing.T) {
	for _, n := range []int{2, 3, 5, 10} {
		count := map[string]int{}
		all := addresses(20_000)
		for _, a := range all {
			count[Winner(a, gateways(n), nil)]++
		}
		for name, got := range count {
			if want := len(all) / n; got < want*9/10 || got > want*11/10 {
				t.Errorf("%s of %d has %d addresses, want about %d", name, n, got, want)
			}
		}
	}
}

func TestAGatewayThatLeavesMovesItsOwnAddressesOnly(t *testing.T) {
	five := gateways(5)
	four := slices.Delete(slices.Clone(five), 2, 3)
	for _, a := range addresses(2000) {
		if before, after := Winner(a, five, nil), Winner(a, four, nil); before != after && before != five[2] {
			t.Errorf("%s moves from %s to %s", a, before, after)
		}
	}
}

func TestOnlyServingCandidatesWinInAnyOrder(t *testing.T) {
	names := gateways(4)
	backwards := slices.Clone(names)
	slices.Reverse(backwards)
	serves := func(name string) bool { return name != "gateway-1" }
	for _, a := range addresses(200) {
		if Winner(a, names, nil) != Winner(a, backwards, nil) {
			t.Error(a)
		}
		if Winner(a, names, serves) == "gateway-1" {
			t.Error(a)
		}
	}
	if got := Winner(addresses(2)[0], names, func(string) bool { return false }); got != "" {
		t.Error(got)
	}
}

func TestAGatewayWithoutAFamilyWinsNoAddressOfIt(t *testing.T) {
	all := View{Candidates: gateways(4)}
	some := all
	*some.WithoutFamily(ipam.IPv6) = []string{"gateway-1", "gateway-2"}
	if all.Equal(some) {
		t.Error("the views lead to different choices")
	}
	for _, a := range addresses(2000) {
		before, after := all.Winner(a, nil), some.Winner(a, nil)
		switch {
		case a.Is6() && slices.Contains(some.WithoutIPv6, after):
			t.Errorf("%s wins %s", after, a)
		case before != after && (a.Is4() || !slices.Contains(some.WithoutIPv6, before)):
			t.Errorf("%s moves from %s to %s", a, before, after)
		}
		serves := func(name string) bool { return name == "gateway-1" || name == "gateway-3" }
		if got := some.Winner(a, serves); a.Is6() && got != "gateway-3" || !serves(got) {
			t.Errorf("%s wins %s", got, a)
		}
	}
	some.WithoutIPv6 = all.Candidates
	if got := some.Winner(netip.MustParseAddr("2001:db8::1"), nil); got != "" {
		t.Error(got)
	}
}

// TestNeverDoTwoGatewaysAnswerForAnAddress has gateways learn late, and in any order, of one another. Each acts as a gateway does: it withdraws
// addresses, publishes its view, and claims the addresses that it may claim.
func TestNeverDoTwoGatewaysAnswerForAnAddress(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		f := newFleet(5, r)
		for range 200 {
			f.step(r)
			f.check(t, seed)
		}
		f.settle()
		f.check(t, seed)
		for _, a := range f.addresses {
			if len(f.answering(a)) != 1 {
				t.Fatalf("seed %d: when all gateways agree, %v answer for %s", seed, f.answering(a), a)
			}
		}
	}
}

// fleet is a set of gateways, each of which sees the others' leases late.
type fleet struct {
	names     []string
	addresses []netip.Addr
	alive     map[string]bool // gateways that want to be candidates
	published map[string]View
	answers   map[string]map[netip.Addr]bool
	config    map[string]int
	newest    int
	noIPv6    map[string]bool
}

func newFleet(n int, r *rand.Rand) *fleet {
	f := &fleet{names: gateways(n), addresses: addresses(40), alive: map[string]bool{}, published: map[string]View{}, answers: map[string]map[netip.Addr]bool{}, config: map[string]int{}, noIPv6: map[string]bool{}}
	for _, name := range f.names {
		f.alive[name] = r.IntN(2) == 0
		f.answers[name] = map[netip.Addr]bool{}
	}
	return f
}

func (f *fleet) step(r *rand.Rand) {
	name := f.names[r.IntN(len(f.names))]
	switch r.IntN(9) {
	case 8:
		f.noIPv6[name] = !f.noIPv6[name]
	case 0:
		f.alive[name] = !f.alive[name]
	case 1: // its lease ends: it stops answering, and peers ignore it
		delete(f.published, name)
		clear(f.answers[name])
	case 2:
		f.newest++
		f.config[name] = f.newest
	case 3:
		f.config[name] = f.newest
	default:
		// What it believes of each gateway may be outdated.
		var candidates []string
		for _, other := range f.names {
			if f.alive[other] != (r.IntN(4) == 0) {
				candidates = append(candidates, other)
			}
		}
		f.act(name, candidates, func(other string) bool { return f.noIPv6[other] != (r.IntN(4) == 0) })
	}
}

func (f *fleet) act(name string, candidates []string, without func(string) bool) {
	own := View{Candidates: candidates, Configuration: fmt.Sprint(f.config[name])}
	for _, other := range candidates {
		if without(other) {
			own.WithoutIPv6 = append(own.WithoutIPv6, other)
		}
	}
	// In each configuration another gateway serves no address.
	serves := func(other string) bool { return other != f.names[f.config[name]%len(f.names)] }
	for a := range f.answers[name] {
		if own.Winner(a, serves) != name {
			delete(f.answers[name], a)
		}
	}
	f.published[name] = own
	var peers []Peer
	for other, v := range f.published {
		if other != name {
			peers = append(peers, Peer{other, v})
		}
	}
	for _, a := range f.addresses {
		if own.Winner(a, serves) == name && MayBegin(a, own, peers, serves) {
			f.answers[name][a] = true
		}
	}
}

// settle has all gateways see the same.
func (f *fleet) settle() {
	var candidates []string
	f.alive[f.names[0]], f.alive[f.names[1]] = true, true
	f.noIPv6[f.names[0]], f.noIPv6[f.names[1]] = false, false
	for _, name := range f.names {
		if f.config[name] = f.newest; f.alive[name] {
			candidates = append(candidates, name)
		}
	}
	for range 2 {
		for _, name := range f.names {
			f.act(name, candidates, func(other string) bool { return f.noIPv6[other] })
		}
	}
}

func (f *fleet) answering(a netip.Addr) (who []string) {
	for _, name := range f.names {
		if f.answers[name][a] {
			who = append(who, name)
		}
	}
	return who
}

func (f *fleet) check(t *testing.T, seed uint64) {
	for _, a := range f.addresses {
		if who := f.answering(a); len(who) > 1 {
			t.Fatalf("seed %d: %v answer for %s", seed, who, a)
		}
	}
}

func TestTheAnswererIsTheWinnerOfAViewOrAGatewayThatDoesNotElectItself(t *testing.T) {
	six := netip.MustParseAddr("2001:db8::1")
	only := func(names ...string) func(string) bool {
		return func(name string) bool { return slices.Contains(names, name) }
	}
	view := View{Candidates: []string{"a", "b", "c"}, WithoutIPv6: []string{"a"}}
	elects, other := Gateway{Name: "z", Elects: true, View: view}, Gateway{Name: "z", View: view}
	if got := elects.AnswererOf(six, nil); got != view.Winner(six, nil) || got == "a" {
		t.Errorf("%q answers", got)
	}
	if got := elects.Candidates(six, only("a", "b")); !slices.Equal(got, []string{"b"}) {
		t.Errorf("candidates that carry the family and serve the address: %v", got)
	}
	if got := elects.AnswererOf(six, only("a")); got != "" {
		t.Errorf("%q answers, and does not carry the family", got)
	}
	if got := other.AnswererOf(six, nil); got != "z" {
		t.Errorf("%q answers for a gateway that does not elect", got)
	}
	if got := other.AnswererOf(six, only("a")); got != "" || other.Candidates(six, only("a")) != nil {
		t.Errorf("%q answers, and does not serve the address", got)
	}
}
