package shares

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheLastQuarterIsReservedForTenantsWithLittleUsage(t *testing.T) {
	s := New([]Resource{{Unit: "ports", Size: 100, Advice: "use fewer ports"}})
	none := Usage{0}
	for range 75 {
		require.NoError(t, s.Replace("hostile", none, Usage{1}))
	}
	require.EqualError(t, s.Replace("hostile", none, Usage{1}), "tenant hostile would have 76 ports at this gateway, and less than a quarter of 100 would be left for other tenants; use fewer ports")
	require.NoError(t, s.Replace("a", none, Usage{25}), "no more than a quarter")
	require.NoError(t, s.Replace("hostile", Usage{2}, Usage{2}), "unchanged usage is never refused")
	require.NoError(t, s.Replace("hostile", Usage{3}, Usage{1}), "a decrease is never refused")
	require.Error(t, s.Replace("hostile", none, Usage{1}), "the last quarter is used")
	require.Equal(t, Usage{73}, s.Usage("hostile"))
	require.Equal(t, Usage{25}, s.Usage("a"))
	require.Equal(t, none, s.Usage("unknown"))
}

func TestARefusalOfOneResourceUsesNothingOfAnother(t *testing.T) {
	s := New([]Resource{{Unit: "ports", Size: 100}, {Unit: "endpoints", Size: 100}})
	s.Add("a", Usage{1, 75})
	require.ErrorContains(t, s.Replace("a", Usage{0, 0}, Usage{1, 1}), "76 endpoints")
	require.Equal(t, Usage{1, 75}, s.Usage("a"))
	require.NoError(t, s.Replace("a", Usage{0, 0}, Usage{5, 0}))
}
