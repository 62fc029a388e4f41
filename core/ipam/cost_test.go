package ipam

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// wide returns an allocator with one large pool, of which other tenants have addresses.
func wide(others int) *Allocator {
	a := NewAllocator()
	a.SetPools([]Pool{{Name: "p", AutoAssign: true, Ranges: []Range{{netip.MustParseAddr("203.0.0.0"), netip.MustParseAddr("203.0.255.255")}}}})
	for i := range others {
		a.Allocate(fmt.Sprintf("tenant-%d/web", i), Request{Families: []Family{IPv4}})
	}
	return a
}

func sharing(first, n int) Request {
	request := Request{Families: []Family{IPv4}, Claim: Claim{Sharing: "k"}}
	for i := range n {
		request.Ports = append(request.Ports, Port{"TCP", int32(first + i)})
	}
	return request
}

// timeToShare returns the shortest time that it takes for one more LoadBalancer to share the tenant's address, but at least what a clock can measure.
func timeToShare(t *testing.T, a *Allocator, held, request Request) time.Duration {
	t.Helper()
	a.Allocate("tenant-a/one", held)
	fastest := time.Hour
	for range 20 {
		began := time.Now()
		got, _ := a.Allocate("tenant-a/two", request)
		fastest = min(fastest, time.Since(began))
		if len(got) != 1 || len(a.OwnersOf(got[0].Address)) != 2 {
			t.Fatalf("%v is not shared", got)
		}
		a.Release("tenant-a/two")
	}
	return max(fastest, 20*time.Microsecond)
}

// The times of one run are compared with one another, and the margins are wide.

func TestSharingLooksAtNoOtherTenantsAddresses(t *testing.T) {
	few, many := timeToShare(t, wide(10), sharing(1, 1), sharing(2, 1)), timeToShare(t, wide(10_000), sharing(1, 1), sharing(2, 1))
	if many > 30*few { // a thousand times as many
		t.Errorf("%s beside 10 others, %s beside 10000", few, many)
	}
}

func TestTheCostOfSharingIsLinearInThePorts(t *testing.T) {
	few, many := timeToShare(t, wide(0), sharing(1, 5000), sharing(6000, 16)), timeToShare(t, wide(0), sharing(1, 5000), sharing(6000, 1024))
	if many > 16*few { // 64 times as many ports; to compare each with 5000 would take 64 times as long
		t.Errorf("%s for 16 ports beside 5000, %s for 1024", few, many)
	}
}
