package ebpf

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane/golden"
	"kubelb.k8c.io/core/model"
)

func anySource(to netip.Addr) (netip.Addr, error) {
	if to.Is4() {
		return netip.MustParseAddr("198.51.100.1"), nil
	}
	return netip.MustParseAddr("2001:db8:1::1"), nil
}

// carry commits a plan without a kernel, with the roles of its VIPs.
func (s *state) carry(t *testing.T, p *plan, err error) {
	t.Helper()
	require.NoError(t, err)
	p.commit()
	s.commitRoles(p.roles)
}

func TestAddressesOfDeletedRecordsAreForgotten(t *testing.T) {
	s := newState()
	records := golden.Example()
	for _, p := range records.Pools {
		plan, err := s.planPool(p, anySource)
		s.carry(t, plan, err)
	}
	for _, f := range records.Frontends {
		plan, err := s.planFrontend(f)
		s.carry(t, plan, err)
	}
	require.Positive(t, s.roles[records.Frontends[0].VIP][roleVIP])
	for _, f := range records.Frontends {
		s.carry(t, s.planDeleteFrontend(f.FrontendKey), nil)
	}
	for _, p := range records.Pools {
		s.carry(t, s.planDeletePool(p.ID), nil)
	}
	require.NotEmpty(t, s.roles, "connections to the removed endpoints go on")
	for handle := range s.removed {
		s.carry(t, s.planFreeEndpoint(handle), nil)
	}
	require.Empty(t, s.roles)
}

func TestEndpointsThatComeAndGoLeaveNoAddresses(t *testing.T) {
	s := newState()
	for i := range 20 {
		a := netip.AddrFrom4([4]byte{198, 51, 100, byte(100 + i)})
		plan, err := s.planPool(model.Pool{ID: "a/p", Tenant: "a", Endpoints: []model.Endpoint{{ID: fmt.Sprint(i), Address: a, Weight: 1}}}, anySource)
		s.carry(t, plan, err)
		for handle := range s.removed {
			s.carry(t, s.planFreeEndpoint(handle), nil)
		}
		require.Len(t, s.roles, 2, "the endpoint, and the gateway's address towards it")
		require.Equal(t, map[uint32]int{roleEndpoint: 1}, s.roles[a])
	}
}
