package ebpf

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/ebpf/bpf"
	"kubelb.k8c.io/core/model"
)

func TestOneTenantDoesNotFillTheRoomForSourceRanges(t *testing.T) {
	with := func(tenant string, port, ranges int) model.Frontend {
		return model.Frontend{FrontendKey: model.FrontendKey{VIP: netip.MustParseAddr("203.0.113.1"), Protocol: model.TCP, Port: uint16(port)}, Tenant: tenant, Pool: model.PoolID(tenant + "/p"),
			Restricted: true, SourceRanges: make([]netip.Prefix, ranges)}
	}
	s := newState()
	taken := 0
	of := s.shares()
	for port := 1; of.take(with("hostile", port, 128), nil) == nil; port++ {
		taken += 128
		s.setFrontend(with("hostile", port, 128).FrontendKey, &frontendState{tenant: "hostile", ranges: make([]netip.Prefix, 128)})
	}
	require.Equal(t, maxRangesOfTenant, taken)
	require.Equal(t, of, s.shares())
	require.ErrorContains(t, of.take(with("hostile", 9999, 1), nil), "tenant hostile would have 65537 at this gateway")
	require.NoError(t, of.take(with("a", 80, 128), nil), "another one has room")
	old := s.frontends[with("hostile", 1, 0).FrontendKey]
	require.NoError(t, of.take(with("hostile", 1, 100), old), "fewer than before")
	require.NoError(t, of.take(with("hostile", 9999, 28), nil), "what is given back can be had")
}

func TestTheRoomForSourceRangesIsThatOfTheMap(t *testing.T) {
	spec, err := bpf.LoadTc()
	require.NoError(t, err)
	require.Equal(t, ebpf.LPMTrie, spec.Maps[mapSourceRanges].Type)
	require.EqualValues(t, maxRanges, spec.Maps[mapSourceRanges].MaxEntries)
}
