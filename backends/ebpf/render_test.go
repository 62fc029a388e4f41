package ebpf

import (
	"encoding/binary"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/ebpf/bpf"
	"kubelb.k8c.io/core/model"
)

var rewrite = flag.Bool("golden", false, "write the golden files anew")

// Address plan: endpoints 198.51.100.11 and 2001:db8:1::11, VIPs 203.0.113.1 and 2001:db8:f::1, clients 192.0.2.0/24.
func example() model.Snapshot {
	key := func(vip string, protocol model.Protocol, port uint16) model.FrontendKey {
		return model.FrontendKey{VIP: netip.MustParseAddr(vip), Protocol: protocol, Port: port}
	}
	endpoint := func(address string) model.Endpoint {
		return model.Endpoint{ID: address, Address: netip.MustParseAddr(address), Weight: 1}
	}
	owner := model.ObjectName{Namespace: "tenant-a", Name: "web"}
	return model.Snapshot{
		Pools: []model.Pool{
			{ID: "a/default.v4", Tenant: "a", Endpoints: []model.Endpoint{endpoint("198.51.100.11")}},
			{ID: "a/default.v6", Tenant: "a", Endpoints: []model.Endpoint{endpoint("2001:db8:1::11")}},
			{ID: "a/none.v4", Tenant: "a"},
		},
		Frontends: []model.Frontend{
			{FrontendKey: key("203.0.113.1", model.TCP, 80), Owner: owner, Tenant: "a", Pool: "a/default.v4", TargetPort: 30080},
			{FrontendKey: key("203.0.113.1", model.UDP, 53), Owner: owner, Tenant: "a", Pool: "a/none.v4", TargetPort: 30053},
			{FrontendKey: key("203.0.113.1", model.TCP, 443), Owner: owner, Tenant: "a", Pool: "a/default.v4", TargetPort: 30443,
				AffinityTimeout: 90 * time.Second, Restricted: true, SourceRanges: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.18.0.1/32")}},
			{FrontendKey: key("2001:db8:f::1", model.TCP, 80), Owner: owner, Tenant: "a", Pool: "a/default.v6", TargetPort: 30080,
				Restricted: true, SourceRanges: []netip.Prefix{netip.MustParsePrefix("2001:db8:c::/64")}},
			{FrontendKey: key("203.0.113.2", model.TCP, 80), Owner: owner, Tenant: "a", Pool: "a/default.v4", TargetPort: 30080, Forwarding: model.Transparent},
			{FrontendKey: key("2001:db8:f::2", model.UDP, 80), Owner: owner, Tenant: "a", Pool: "a/default.v6", TargetPort: 30080, Forwarding: model.Transparent},
		},
	}
}

func TestRenderedTextIsTheGoldenOne(t *testing.T) {
	text, err := (&Backend{}).Render(t.Context(), example())
	require.NoError(t, err)
	golden := filepath.Join("testdata", "example.txt")
	if *rewrite {
		require.NoError(t, os.WriteFile(golden, []byte(text), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), text, "run go test ./backends/ebpf -golden and review the difference")
}

func TestNothingIsWrittenTwiceForTheSameContent(t *testing.T) {
	s := newState()
	source := func(netip.Addr) (netip.Addr, error) { return netip.MustParseAddr("198.51.100.1"), nil }
	pool := example().Pools[0]
	first, err := s.planPool(pool, source)
	require.NoError(t, err)
	first.commit()
	pool.Endpoints = append(pool.Endpoints, model.Endpoint{ID: "other", Address: netip.MustParseAddr("198.51.100.12"), Weight: 1})
	second, err := s.planPool(pool, source)
	require.NoError(t, err)
	for _, w := range second.writes {
		require.NotEqual(t, mapFrontends, w.table)
		if e, ok := w.value.(endpoint); ok && w.key == uint32(1) {
			require.Equal(t, uint32(1), e.Generation, "an endpoint that stays keeps its flows")
		}
	}
}

func TestStructuresHaveTheSizesThatTheProgramsRead(t *testing.T) {
	spec, err := bpf.LoadTc()
	require.NoError(t, err)
	for name, want := range map[string][2]any{
		"addresses": {addressKey{}, uint32(0)}, "frontends": {frontendKey{}, uint32(0)}, "services": {uint32(0), service{}},
		"endpoints": {uint32(0), endpoint{}}, "interfaces": {uint32(0), networkInterface{}}, "flows": {tuple{}, flow{}}, "settings_map": {uint32(0), settings{}}, "source_ranges": {rangeKey{}, uint8(0)},
	} {
		require.EqualValues(t, spec.Maps[name].KeySize, binary.Size(want[0]), name)
		require.EqualValues(t, spec.Maps[name].ValueSize, binary.Size(want[1]), name)
	}
	require.Len(t, reasonNames, int(spec.Maps["reasons"].MaxEntries))
}
