package ebpf

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane/golden"
	"kubelb.k8c.io/backends/ebpf/bpf"
	"kubelb.k8c.io/core/model"
)

func TestRenderMatchesTheGoldenFile(t *testing.T) {
	text, err := (&Backend{}).Render(t.Context(), golden.Example())
	require.NoError(t, err)
	golden.Compare(t, "example.txt", text)
}

func TestAnIdleTimeoutIsRenderedInWholeSeconds(t *testing.T) {
	snapshot := golden.Example()
	snapshot.Frontends = snapshot.Frontends[:1]
	snapshot.Frontends[0].IdleTimeout = 90 * time.Second
	text, err := (&Backend{}).Render(t.Context(), snapshot)
	require.NoError(t, err)
	require.Contains(t, text, "services 1: pool 1 target 30080 nat affinity 0s checks 0 idle 90s\n")
}

func TestAChangedPoolKeepsItsOtherEndpoints(t *testing.T) {
	s := newState()
	source := func(netip.Addr) (netip.Addr, error) { return netip.MustParseAddr("198.51.100.1"), nil }
	pool := golden.Example().Pools[0]
	first, err := s.planPool(pool, source)
	require.NoError(t, err)
	first.commit()
	pool.Endpoints = append(pool.Endpoints, model.Endpoint{ID: "other", Address: netip.MustParseAddr("198.51.100.12"), Weight: 1})
	second, err := s.planPool(pool, source)
	require.NoError(t, err)
	for _, w := range second.writes {
		require.NotEqual(t, mapFrontends, w.mapName)
		if e, ok := w.value.(endpoint); ok && w.key == uint32(1) {
			require.Equal(t, uint32(1), e.Generation, "an endpoint that stays keeps its generation, and its flows")
		}
	}
}

func TestStructsHaveTheSizesOfTheMaps(t *testing.T) {
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
