package translate

import (
	"fmt"
	"strings"
	"testing"
)

// large returns a LoadBalancer with so many ports and source ranges, a new one each time.
func large(ports, ranges int, change ...func(*LoadBalancer)) LoadBalancer {
	return lb("tenant-a", "large", append([]func(*LoadBalancer){vips("203.0.113.1", "2001:db8::1"), func(lb *LoadBalancer) {
		lb.Ports, lb.EndpointPorts, lb.SourceRanges = nil, nil, nil
		for i := range ports {
			lb.Ports = append(lb.Ports, Port{Number: int32(1 + i), Protocol: "TCP"})
			lb.EndpointPorts = append(lb.EndpointPorts, Port{Number: int32(30000 + i), Protocol: "TCP"})
		}
		for i := range ranges {
			lb.SourceRanges = append(lb.SourceRanges, fmt.Sprintf("192.0.2.%d/32", i))
		}
	}}, change...)...)
}

func hubWithNodes() *Translator {
	h := testHub()
	h.SetAddresses(addressesOf("tenant-a", "198.51.100.11", "2001:db8:1::11"))
	return h
}

func TestAChangeOfAStatusTranslatesNothingAgain(t *testing.T) {
	h := hubWithNodes()
	h.SetLoadBalancer(large(256, 128))
	h.Flush()
	h.SetLoadBalancer(large(256, 128))
	if len(h.dirtyLBs) > 0 {
		t.Error("an unchanged LoadBalancer is translated again")
	}
	h.SetLoadBalancer(large(256, 128, func(lb *LoadBalancer) { lb.Affinity = true }))
	if c := h.Flush(); len(c.Model.UpsertFrontends) != 512 {
		t.Errorf("of 512 frontends %d change", len(c.Model.UpsertFrontends))
	}
}

func TestTheCostOfAStatusChangeDoesNotDependOnTheTargets(t *testing.T) {
	allocations := func(targets int) float64 {
		is := large(1, 1, func(l *LoadBalancer) {
			l.Reference = nil
			for i := range targets {
				l.Addresses = append(l.Addresses, longTarget(1, i))
			}
		}).packed()
		h := hubWithNodes()
		h.SetLoadBalancer(is)
		h.Flush()
		// A cache has an equal text of the next version in another place.
		is.Packed.Addresses = Packed(strings.Clone(string(is.Packed.Addresses)))
		return testing.AllocsPerRun(10, func() { h.SetLoadBalancer(is) })
	}
	if one, many := allocations(1), allocations(MaxTargets); many > one {
		t.Errorf("%g allocations for one target, %g for %d", one, many, MaxTargets)
	}
}

func TestTheCostOfAChangeIsLinearInPortsAndRanges(t *testing.T) {
	allocations := func(ports, ranges int) float64 {
		h, affinity := hubWithNodes(), false
		states := map[bool]LoadBalancer{}
		for _, is := range []bool{false, true} {
			states[is] = large(ports, ranges, func(lb *LoadBalancer) { lb.Affinity = is })
		}
		return testing.AllocsPerRun(3, func() {
			affinity = !affinity
			h.SetLoadBalancer(states[affinity])
			h.Flush()
		})
	}
	both, one, other := allocations(256, 128), allocations(256, 1), allocations(1, 128)
	if both > 2*(one+other) {
		t.Errorf("%g allocations for 256 ports and 128 ranges; 256 ports alone take %g, 128 ranges alone %g", both, one, other)
	}
}

func TestATenantsListTranslatesOnlyAffectedTenantsAgain(t *testing.T) {
	ips := []string{"198.51.100.11", "198.51.100.12", "198.51.100.13"}
	h := shared()
	h.setHeld(addressesOf("tenant-old", ips...))
	for i := range 5 {
		h.SetLoadBalancer(lb("tenant-old", fmt.Sprint(i), func(l *LoadBalancer) { l.Reference, l.Addresses = nil, addressesOf("", ips...).List }))
	}
	h.SetLoadBalancer(lb("tenant-old", "web", vips("203.0.113.2")))
	h.Flush()
	again := addressesOf("tenant-old", ips...)
	again.Name = "again"
	for _, a := range []Addresses{addressesOf("tenant-young", ips...), addressesOf("tenant-young"), again} {
		h.SetAddresses(a)
		if len(h.dirtyLBs)+len(h.dirtyPools) > 0 {
			t.Errorf("%s lists %d: %d LoadBalancers and %d pools are translated again", a.Namespace, len(a.List), len(h.dirtyLBs), len(h.dirtyPools))
		}
		h.Flush()
	}
	// A tenant that does not have them on record loses them.
	h.DeleteAddresses(addressesOf("tenant-old").ObjectName)
	h.DeleteAddresses(again.ObjectName)
	h.Flush()
	h.SetAddresses(addressesOf("tenant-young", ips[0]))
	if len(h.dirtyLBs) != 5 {
		t.Errorf("of 5 LoadBalancers with another tenant's node %d are translated again", len(h.dirtyLBs))
	}
}
