package translate

import (
	"fmt"
	"testing"
)

// large is a LoadBalancer of so many ports and source ranges, made anew each time.
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

func hubWithNodes() *Hub {
	h := testHub()
	h.SetAddresses(addressesOf("tenant-a", "198.51.100.11", "2001:db8:1::11"))
	return h
}

func TestAChangeOfAStatusHasNothingTranslatedAnew(t *testing.T) {
	h := hubWithNodes()
	h.SetLoadBalancer(large(256, 128))
	h.Flush()
	h.SetLoadBalancer(large(256, 128))
	if len(h.dirtyLBs) > 0 {
		t.Error("a LoadBalancer that is as before is translated anew")
	}
	h.SetLoadBalancer(large(256, 128, func(lb *LoadBalancer) { lb.Affinity = true }))
	if c := h.Flush(); len(c.Model.UpsertFrontends) != 512 {
		t.Errorf("of 512 frontends %d change", len(c.Model.UpsertFrontends))
	}
}

func TestAChangeCostsAsMuchAsThereArePortsAndRangesAndNotTheirProduct(t *testing.T) {
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
		t.Errorf("%g allocations for 256 ports and 128 ranges, of which 256 ports alone take %g, and 128 ranges alone %g", both, one, other)
	}
}
