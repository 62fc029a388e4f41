package election

import (
	"net/netip"
	"slices"
	"testing"

	"kubelb.k8c.io/core/ipam"
)

// wonBy returns an address of each family that the gateway wins among the candidates.
func wonBy(t *testing.T, name string, candidates ...string) (won []netip.Addr) {
	t.Helper()
	for _, family := range []ipam.Family{ipam.IPv4, ipam.IPv6} {
		at := slices.IndexFunc(addresses(200), func(a netip.Addr) bool { return ipam.FamilyOf(a) == family && Winner(a, candidates, nil) == name })
		if at < 0 {
			t.Fatalf("%s wins no %s address", name, family)
		}
		won = append(won, addresses(200)[at])
	}
	return won
}

func view(configuration string, candidates ...string) View {
	return View{Configuration: configuration, Candidates: candidates}
}

func TestAWinnerMayAnswerOnceItHasPublishedAViewByWhichItWins(t *testing.T) {
	own := view("c", "a", "b")
	for _, address := range wonBy(t, "b", "a", "b") {
		for name, c := range map[string]struct {
			peers []Peer
			want  bool
		}{
			"it is gone":                       {nil, false},
			"it has the same view":             {[]Peer{{"b", own}}, true},
			"by its view it is alone":          {[]Peer{{"b", view("c", "b")}}, true},
			"it is no candidate in its view":   {[]Peer{{"b", view("c", "a")}}, false},
			"it has published nothing":         {[]Peer{{"b", View{}}}, false},
			"it has another configuration":     {[]Peer{{"b", view("d", "a", "b")}}, false},
			"only another peer has the view":   {[]Peer{{"c", own}}, false},
			"another peer is behind, it isn't": {[]Peer{{"c", view("c", "c")}, {"b", own}}, true},
		} {
			if got := MayAnswer("b", "a", address, own, c.peers, nil); got != c.want {
				t.Errorf("%s: b may answer for %s: %v", name, address, got)
			}
		}
		if !MayAnswer("b", "b", address, own, nil, nil) {
			t.Error("a gateway waits for its own view")
		}
		if MayAnswer("b", "a", address, own, []Peer{{"b", own}}, func(name string) bool { return name != "b" }) {
			t.Error("b may answer for an address that it does not serve")
		}
	}
}

func TestAGatewayBeginsWhenNoPeerAnswersForTheAddress(t *testing.T) {
	own := view("c", "a", "b")
	for _, address := range wonBy(t, "a", "a", "b") {
		for name, c := range map[string]struct {
			peer View
			want bool
		}{
			"the peer has the same view":                          {own, true},
			"the peer does not know of this gateway yet":          {view("c", "b"), false},
			"the peer answers for nothing":                        {View{}, true},
			"the peer is about to leave":                          {view("c", "a"), true},
			"the peer answers by another configuration":           {view("d", "a", "b"), false},
			"the peer has another configuration but is no answer": {view("d", "a"), true},
		} {
			if got := MayBegin(address, own, []Peer{{"b", c.peer}}, nil); got != c.want {
				t.Errorf("%s: a may begin with %s: %v", name, address, got)
			}
			if MayBegin(address, own, []Peer{{"c", own}, {"b", c.peer}}, nil) != c.want {
				t.Errorf("%s: a third gateway makes a difference", name)
			}
		}
		onlyOwn := func(name string) bool { return name == "a" }
		if !MayBegin(address, own, []Peer{{"b", view("c", "b")}}, onlyOwn) {
			t.Error("a waits for a peer that does not serve the address")
		}
	}
}

func TestAPeerWithoutAFamilyKeepsNobodyWaitingForItsAddresses(t *testing.T) {
	own, peer := view("c", "a", "b"), view("c", "b")
	peer.WithoutIPv6 = []string{"b"}
	won := wonBy(t, "a", "a", "b")
	if MayBegin(won[0], own, []Peer{{"b", peer}}, nil) {
		t.Errorf("a begins with %s while b answers", won[0])
	}
	if !MayBegin(won[1], own, []Peer{{"b", peer}}, nil) {
		t.Errorf("a waits with %s, which b does not carry", won[1])
	}
}

func TestConfigurationsDifferOnlyFromThoseOfPeersThatAnswer(t *testing.T) {
	own := view("c", "a", "b")
	for name, c := range map[string]struct {
		peers []Peer
		want  bool
	}{
		"no peers":                           {nil, false},
		"the same configuration":             {[]Peer{{"b", view("c", "b")}}, false},
		"another one, and it answers":        {[]Peer{{"b", view("d", "a", "b")}}, true},
		"another one, and it answers not":    {[]Peer{{"b", view("d", "a")}}, false},
		"none, and it answers":               {[]Peer{{"b", view("", "b")}}, true},
		"one of two has another one":         {[]Peer{{"b", own}, {"c", view("d", "c")}}, true},
		"a peer names others with another's": {[]Peer{{"c", view("d", "b")}}, false},
	} {
		if got := ConfigurationsDiffer(own, c.peers); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestViewsAreEqualIfNoFieldDiffers(t *testing.T) {
	whole := View{Candidates: []string{"a", "b"}, WithoutIPv4: []string{"a"}, WithoutIPv6: []string{"b"}, Configuration: "c"}
	same := View{Candidates: slices.Clone(whole.Candidates), WithoutIPv4: []string{"a"}, WithoutIPv6: []string{"b"}, Configuration: "c"}
	if !whole.Equal(same) || !(View{}).Equal(View{Candidates: []string{}}) {
		t.Error("equal views differ")
	}
	for name, change := range map[string]func(*View){
		"a candidate":      func(v *View) { v.Candidates = []string{"a"} },
		"the order":        func(v *View) { v.Candidates = []string{"b", "a"} },
		"without IPv4":     func(v *View) { *v.WithoutFamily(ipam.IPv4) = nil },
		"without IPv6":     func(v *View) { *v.WithoutFamily(ipam.IPv6) = nil },
		"the config":       func(v *View) { v.Configuration = "d" },
		"without too many": func(v *View) { v.WithoutIPv6 = []string{"a", "b"} },
	} {
		other := whole
		change(&other)
		if whole.Equal(other) || other.Equal(whole) {
			t.Errorf("%s makes no difference", name)
		}
	}
}

func TestEachGatewayIsACandidateForItsOwnPartIfNoneIsElected(t *testing.T) {
	address := netip.MustParseAddr("203.0.113.1")
	elected := View{Candidates: []string{"a", "b", "c"}, WithoutIPv4: []string{"c"}}
	serves := func(name string) bool { return name != "b" }
	for name, c := range map[string]struct {
		gateway Gateway
		want    []string
	}{
		"a gateway that carries the family and serves is elected": {Gateway{"b", true, elected}, []string{"a"}},
		"none is elected":                                   {Gateway{"a", false, elected}, []string{"a"}},
		"none is elected, and it does not serve":            {Gateway{"b", false, elected}, nil},
		"an interface without IPv4 concerns elections only": {Gateway{"c", false, elected}, []string{"c"}},
	} {
		if got := c.gateway.Candidates(address, serves); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v", name, got)
		}
	}
}
