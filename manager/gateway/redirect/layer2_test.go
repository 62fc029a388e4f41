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

func TestPacketsAreRedirectedToTheFormerGatewayForAWhileIfItWorks(t *testing.T) {
	v4, v6 := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:f::1")
	at4, at6 := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8:c::2")
	now := time.Now()
	other, hostAnswers := membership.Peer{Name: "other", RedirectAddresses: []netip.Addr{at6, at4}, Active: true}, true
	alive := func(addresses []netip.Addr) []netip.Addr {
		if hostAnswers {
			return addresses
		}
		return nil
	}
	l := NewLayer2(time.Minute, alive)
	update := func() []netip.Addr {
		changed := l.Update([]membership.Peer{other}, nil, now)
		slices.SortFunc(changed, netip.Addr.Compare)
		return changed
	}
	l.SetOwner(v4, "me", "me", now)
	l.SetOwner(v6, "other", "me", now)
	require.Empty(t, update(), "the first address had no owner, and the second one belongs to another gateway")
	require.Zero(t, l.RedirectOf(v4))
	l.SetOwner(v4, "other", "me", now)
	for _, a := range []netip.Addr{v4, v6} {
		l.SetOwner(a, "me", "me", now)
		l.SetOwner(a, "me", "me", now.Add(time.Second))
	}
	require.Equal(t, []netip.Addr{v4, v6}, update())
	require.Equal(t, model.Redirect{Next: at4, Limit: 3}, l.RedirectOf(v4))
	require.Equal(t, model.Redirect{Next: at6, Limit: 3}, l.RedirectOf(v6))
	require.Empty(t, update(), "nothing has changed")
	require.Equal(t, now.Add(time.Minute), l.NextExpiry())

	other.RedirectAddresses = nil
	require.Equal(t, []netip.Addr{v4, v6}, update(), "the former gateway does not work any more")
	other.RedirectAddresses = []netip.Addr{at4}
	require.Equal(t, []netip.Addr{v4}, update(), "it works again, with one family")
	other.Active = false
	require.Empty(t, update(), "its process has failed, and its host answers")
	hostAnswers = false
	require.Equal(t, []netip.Addr{v4}, update(), "its host does not answer")
	hostAnswers = true
	require.Equal(t, []netip.Addr{v4}, update())

	l.SetOwner(v4, "other", "me", now)
	require.Empty(t, update(), "the new owner redirects to this gateway, which goes on to redirect to the former one")
	now = now.Add(time.Minute)
	require.Equal(t, []netip.Addr{v4}, update(), "the limit is over")
	require.Empty(t, l.former)
	require.Zero(t, l.NextExpiry())
}
