package shares

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheLastQuarterIsForThoseWhoHaveLittle(t *testing.T) {
	s := New([]Room{{Of: "ports", Size: 100, Mend: "use fewer ports"}})
	none := Holding{0}
	for range 75 {
		require.NoError(t, s.Take("hostile", Holding{1}, none))
	}
	require.EqualError(t, s.Take("hostile", Holding{1}, none), "tenant hostile would have 76 ports, at this gateway, where less than a quarter of 100 would be left for others; use fewer ports")
	require.NoError(t, s.Take("a", Holding{25}, none), "who has no more than a quarter")
	require.NoError(t, s.Take("hostile", Holding{2}, Holding{2}), "as much as before")
	require.NoError(t, s.Take("hostile", Holding{1}, Holding{3}), "less than before")
	require.Error(t, s.Take("hostile", Holding{1}, none), "others have what was left")
	require.Equal(t, Holding{73}, s.Of("hostile"))
	require.Equal(t, Holding{25}, s.Of("a"))
	require.Equal(t, none, s.Of("unknown"))
}

func TestWhatOneRoomRefusesTakesNothingOfAnother(t *testing.T) {
	s := New([]Room{{Of: "ports", Size: 100}, {Of: "endpoints", Size: 100}})
	s.Count("a", Holding{1, 75})
	require.ErrorContains(t, s.Take("a", Holding{1, 1}, Holding{0, 0}), "76 endpoints")
	require.Equal(t, Holding{1, 75}, s.Of("a"))
	require.NoError(t, s.Take("a", Holding{5, 0}, Holding{0, 0}))
}
