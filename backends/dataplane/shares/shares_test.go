package shares

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheLastQuarterIsForThoseWhoHaveLittle(t *testing.T) {
	s := New([]Resource{{Unit: "ports", Size: 100, Advice: "use fewer ports"}})
	none := Usage{0}
	for range 75 {
		require.NoError(t, s.Replace("hostile", Usage{1}, none))
	}
	require.EqualError(t, s.Replace("hostile", Usage{1}, none), "tenant hostile would have 76 ports, at this gateway, where less than a quarter of 100 would be left for others; use fewer ports")
	require.NoError(t, s.Replace("a", Usage{25}, none), "who has no more than a quarter")
	require.NoError(t, s.Replace("hostile", Usage{2}, Usage{2}), "as much as before")
	require.NoError(t, s.Replace("hostile", Usage{1}, Usage{3}), "less than before")
	require.Error(t, s.Replace("hostile", Usage{1}, none), "others have what was left")
	require.Equal(t, Usage{73}, s.Usage("hostile"))
	require.Equal(t, Usage{25}, s.Usage("a"))
	require.Equal(t, none, s.Usage("unknown"))
}

func TestWhatOneRoomRefusesTakesNothingOfAnother(t *testing.T) {
	s := New([]Resource{{Unit: "ports", Size: 100}, {Unit: "endpoints", Size: 100}})
	s.Add("a", Usage{1, 75})
	require.ErrorContains(t, s.Replace("a", Usage{1, 1}, Usage{0, 0}), "76 endpoints")
	require.Equal(t, Usage{1, 75}, s.Usage("a"))
	require.NoError(t, s.Replace("a", Usage{5, 0}, Usage{0, 0}))
}
