package translate

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestAPackedListIsTheListInFewBytes(t *testing.T) {
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
		t.Error("the same list is the same packed")
	}
	var many []Address
	for i := range MaxTargets {
		many = append(many, Address{IP: fmt.Sprintf("10.0.%d.%d", i/256, i%256)})
	}
	if size := len(Pack(many)); size != 5*MaxTargets {
		t.Errorf("%d bytes for each", size/MaxTargets)
	}
}
