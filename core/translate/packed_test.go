package translate

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestAPackedListTakesFewBytes(t *testing.T) {
	list := []Address{{IP: "198.51.100.11"}, {IP: "2001:db8::1"}, {IP: "2001:0DB8::1"}, {IP: "::ffff:192.0.2.1"}, {IP: "fe80::1%eth0"}, {IP: "nonsense"}, {Hostname: "n1.example"},
		{IP: "192.0.2.1", Hostname: "both"}, {}, {Hostname: strings.Repeat("x", 300)}}
	packed := Pack(list)
	if got := packed.Unpack(); !reflect.DeepEqual(got, list) {
		t.Errorf("%v, want %v", got, list)
	}
	var got, want []netip.Addr
	eachAddress(list, func(a netip.Addr) { want = append(want, a) })
	if packed.Each(func(a netip.Addr) { got = append(got, a) }); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if Pack(nil) != "" || Pack(slices.Clone(list)) != packed || Pack(list[1:]) == packed {
		t.Error("equal lists are not equal when packed")
	}
	var many []Address
	for i := range MaxTargets {
		many = append(many, Address{IP: fmt.Sprintf("10.0.%d.%d", i/256, i%256)})
	}
	if size := len(Pack(many)); size != 5*MaxTargets {
		t.Errorf("%d bytes for each", size/MaxTargets)
	}
}

func TestALoadBalancerWithPackedTargetsIsTranslatedTheSame(t *testing.T) {
	w := &world{random: rand.New(rand.NewPCG(1, 1))}
	tenant := Tenant{Name: "a", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/126")}, OwnEndpointsPerLoadBalancer: 2}
	for range 2000 {
		list := w.loadBalancer()
		packed := list.packed()
		if packed.Addresses != nil || packed.Local != nil && len(*packed.Local) > 0 {
			t.Fatal("a list is not packed")
		}
		if again := packed.packed(); !reflect.DeepEqual(again, packed) {
			t.Fatalf("%+v is packed to %+v", packed, again)
		}
		if got, want := packed.OwnTargets(), list.OwnTargets(); !reflect.DeepEqual(got, want) {
			t.Fatalf("targets %v, want %v", got, want)
		}
		got, want := Check(&packed, &tenant, nil, TargetFilter{}), Check(&list, &tenant, nil, TargetFilter{})
		if !reflect.DeepEqual(got, want) || !reflect.DeepEqual(packed.endpointFamilies, list.endpointFamilies) {
			t.Fatalf("%v of %v, want %v of %v", got, packed.endpointFamilies, want, list.endpointFamilies)
		}
	}
}
