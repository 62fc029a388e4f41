package translate

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestValidateListEntrySaysWhyTheHubsSchemaRefusesATarget(t *testing.T) {
	for _, good := range []Address{{IP: "198.51.100.11"}, {IP: "10.0.0.1"}, {IP: "2001:db8::1"}, {IP: "fd00::1"}, {Hostname: "n1.example"}} {
		if why := ValidateListEntry(good); why != "" {
			t.Error(why)
		}
	}
	for want, bad := range map[string]Address{
		"169.254.1.0 is a link-local address": {IP: "169.254.1.0"}, "fe80::1 is a link-local address": {IP: "fe80::1"}, "127.0.1.1 is a loopback address": {IP: "127.0.1.1"},
		"0.0.0.0 is the unspecified address": {IP: "0.0.0.0"}, "ff02::1 is a multicast or broadcast address": {IP: "ff02::1"},
		"255.255.255.255 is a multicast or broadcast address": {IP: "255.255.255.255"}, "2001:db8::1%eth0 has a zone": {IP: "2001:db8::1%eth0"}, `"1.2.3" is not an IP address`: {IP: "1.2.3"},
		`"a b" is not a host name`: {Hostname: "a b"}, "a host name of 254 characters is longer than 253": {Hostname: strings.Repeat("a", 254)}, "a target has neither an address nor a host name": {},
	} {
		if why := ValidateListEntry(bad); why != want {
			t.Errorf("%q, not %q", why, want)
		}
	}
}

func TestTargetsAreListedUpToTheBoundsOfTheHubsSchema(t *testing.T) {
	var many []Address
	for i := range MaxTargets + 7 {
		many = append(many, Address{IP: fmt.Sprintf("10.0.%d.%d", i/256, i%256)}, Address{IP: fmt.Sprintf("10.0.%d.%d", i/256, i%256)})
	}
	if kept, beyond := LimitTargets(many, MaxHostnameCharacters); beyond != 7 || len(kept) != MaxTargets || kept[0].IP != "10.0.0.0" {
		t.Error(len(kept), beyond, kept[0])
	}
	named := []Address{{IP: "10.0.0.1"}}
	for i := range 70 {
		named = append(named, Address{Hostname: fmt.Sprintf("%0250d", i)})
	}
	kept, beyond := LimitTargets(named, MaxOwnHostnameCharacters)
	if len(kept) != 1+MaxOwnHostnameCharacters/250 || beyond != len(named)-len(kept) || !slices.Contains(kept, Address{IP: "10.0.0.1"}) {
		t.Error(len(kept), beyond)
	}
}

// A Service of policy Local with a node in an AddressPool keeps its other nodes.
func TestARefusedTargetCostsALoadBalancerNoOtherTarget(t *testing.T) {
	h := testHub()
	h.SetAddresses(addressesOf("tenant-a"))
	h.SetLoadBalancer(lb("tenant-a", "web", local("198.51.100.11", "203.0.113.9", "198.51.100.12")))
	if got := snapshot(t, h); strings.Count(got, "endpoint 198.51.100.1") != 2 || strings.Contains(got, "endpoint 203.0.113.9") {
		t.Error(got)
	}
}
