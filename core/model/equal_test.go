package model

import (
	"net/netip"
	"reflect"
	"testing"
	"time"
)

func TestFrontendsAreEqualIfNoFieldDiffers(t *testing.T) {
	whole := Frontend{FrontendKey: FrontendKey{netip.MustParseAddr("203.0.113.1"), TCP, 80}, Owner: ObjectName{"tenant-a", "web"}, Tenant: "a", Pool: "a/p", TargetPort: 30080,
		Forwarding: Transparent, AffinityTimeout: time.Minute, SourceRanges: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Restricted: true, IdleTimeout: time.Minute,
		ProxyProtocol: true, MaxConnections: 1, MaxNewPerSecond: 1, Redirect: Redirect{netip.MustParseAddr("198.51.100.1"), 1}}
	again := whole
	again.SourceRanges = append([]netip.Prefix{}, whole.SourceRanges...)
	if !whole.Equal(again) {
		t.Error("a copy is not equal")
	}
	for i := range reflect.TypeFor[Frontend]().NumField() {
		name, other := reflect.TypeFor[Frontend]().Field(i).Name, whole
		if reflect.ValueOf(whole).Field(i).IsZero() {
			t.Errorf("%s is not set", name)
		}
		reflect.ValueOf(&other).Elem().Field(i).SetZero()
		if whole.Equal(other) || other.Equal(whole) {
			t.Errorf("equal without %s", name)
		}
	}
}
