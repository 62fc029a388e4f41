package redirect

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestARedirectIsPendingUntilTheDataplaneAnswers(t *testing.T) {
	one, two := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")
	var p Pending
	require.True(t, p.Empty())
	require.False(t, p.Has(one))
	p.Add(one)
	require.False(t, p.Empty())
	require.True(t, p.Has(one))

	require.Equal(t, map[netip.Addr]bool{one: true}, p.Begin())
	require.True(t, p.Empty())
	require.True(t, p.Has(one), "it is being sent")
	p.Add(two) // during the call of the dataplane
	require.True(t, p.Has(one) && p.Has(two))
	p.End()
	require.False(t, p.Has(one))
	require.True(t, p.Has(two))
	p.Clear()
	require.True(t, p.Empty())
	require.False(t, p.Has(two))
}
