package redirect

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/membership"
)

func TestAFormerGatewayIsAskedForAWhileAsLongAsItWorks(t *testing.T) {
	v4, v6 := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:f::1")
	at4, at6 := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8:c::2")
	now := time.Now()
	other, hosts := membership.Peer{Name: "other", RedirectAddresses: []netip.Addr{at6, at4}, Active: true}, true
	alive := func(addresses []netip.Addr) []netip.Addr {
		if hosts {
			return addresses
		}
		return nil
	}
	h := NewLayer2(time.Minute, alive)
	look := func() []netip.Addr {
		changed := h.Update([]membership.Peer{other}, nil, now)
		slices.SortFunc(changed, netip.Addr.Compare)
		return changed
	}
	h.SetOwner(v4, "me", "me", now)
	h.SetOwner(v6, "other", "me", now)
	require.Empty(t, look(), "nobody has had the one before, and the other is not mine")
	require.Zero(t, h.Send(v4))
	h.SetOwner(v4, "other", "me", now)
	for _, a := range []netip.Addr{v4, v6} {
		h.SetOwner(a, "me", "me", now)
		h.SetOwner(a, "me", "me", now.Add(time.Second))
	}
	require.Equal(t, []netip.Addr{v4, v6}, look())
	require.Equal(t, model.Handover{Next: at4, Asks: 3}, h.Send(v4))
	require.Equal(t, model.Handover{Next: at6, Asks: 3}, h.Send(v6))
	require.Empty(t, look(), "nothing new")
	require.Equal(t, now.Add(time.Minute), h.Expires())

	other.RedirectAddresses = nil
	require.Equal(t, []netip.Addr{v4, v6}, look(), "it works no more")
	other.RedirectAddresses = []netip.Addr{at4}
	require.Equal(t, []netip.Addr{v4}, look(), "it does again, in one family")
	other.Active = false
	require.Empty(t, look(), "its process has failed, and its host is there")
	hosts = false
	require.Equal(t, []netip.Addr{v4}, look(), "its host is gone")
	hosts = true
	require.Equal(t, []netip.Addr{v4}, look())

	h.SetOwner(v4, "other", "me", now)
	require.Empty(t, look(), "who has taken it may ask this one, and so whom it has had it from")
	now = now.Add(time.Minute)
	require.Equal(t, []netip.Addr{v4}, look(), "long enough")
	require.Empty(t, h.former)
	require.Zero(t, h.Expires())
}
