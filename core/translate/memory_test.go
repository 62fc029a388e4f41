package translate

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"kubelb.k8c.io/core/model"
)

// heap returns the number of reachable bytes.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// longTarget returns a target with the longest text.
func longTarget(list, target int) Address {
	return Address{IP: fmt.Sprintf("fd01:1111:1111:1111:1111:1111:%04x:%04x", 0x1000+list, 0x1000+target)}
}

func boundsTenant() Tenant {
	return Tenant{Name: "a", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("fd01::/16")}, OwnEndpointsPerLoadBalancer: 250}
}

// A tenant may have 500 LoadBalancers with 5,000 targets each. A gateway serves 250 targets of each, but has all in memory.
func TestATargetBeyondTheLimitTakesFewBytes(t *testing.T) {
	const lbs = 20
	h := NewTranslator()
	h.SetTenant(boundsTenant())
	grown := func(targets int) int64 {
		for n := range lbs {
			h.SetLoadBalancer(lb("tenant-a", fmt.Sprint(n), func(l *LoadBalancer) {
				l.Reference, l.Addresses = nil, nil
				l.VIPs = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", 1+n))}
				for i := range targets {
					l.Addresses = append(l.Addresses, longTarget(n, i))
				}
			}))
		}
		h.Flush()
		return heap()
	}
	before := heap()
	few := grown(250)
	many := grown(MaxTargets)
	t.Logf("%d bytes for a target that is served, %d for one that is not", (few-before)/(lbs*250), (many-few)/(lbs*(MaxTargets-250)))
	if each := (many - few) / (lbs * (MaxTargets - 250)); each > 32 {
		t.Errorf("a target that is not served takes %d bytes", each)
	}
	runtime.KeepAlive(h)
}

func TestAListedAddressTakesFewBytesOfClaims(t *testing.T) {
	c := NewNodeOwners()
	before := heap()
	for n := range 4 {
		a := Addresses{ObjectName: model.ObjectName{Namespace: "tenant-a", Name: fmt.Sprint(n)}}
		for i := range MaxTargets {
			a.List = append(a.List, longTarget(n, i))
		}
		c.SetAddresses(a)
	}
	each := (heap() - before) / (4 * MaxTargets)
	t.Logf("%d bytes", each)
	if each > 200 {
		t.Errorf("an address takes %d bytes", each)
	}
	runtime.KeepAlive(c)
}
