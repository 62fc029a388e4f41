package routes

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane/preflight/preflighttest"
)

// limit is the longest that a test waits for something that has to happen.
const limit = 30 * time.Second

// ends reports whether the channel is closed in time.
func ends(ended <-chan struct{}) bool {
	select {
	case <-ended:
		return true
	case <-time.After(limit):
		return false
	}
}

func TestListeningEndsWithItsContextAndReportsNoFailure(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var c Changes
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.Listen(ctx, func(err error) { t.Error(err) })
	}()
	require.Eventually(t, c.noted.Load, limit, time.Millisecond, "changes from before it listened are not missed")
	cancel()
	require.True(t, ends(ended))
}

func TestAClosedSocketIsAFailureUnlessTheContextHasEnded(t *testing.T) {
	preflighttest.InNetworkNamespace(t, func() {
		socket, err := subscribe()
		if !assert.NoError(t, err) {
			return
		}
		socket.Close()
		var c Changes
		assert.Error(t, c.receive(t.Context(), socket))
		assert.True(t, c.Due(time.Now()))
	})
}

func TestAnInterfaceThatComesAndGoesIsAChange(t *testing.T) {
	preflighttest.InNetworkNamespace(t, func() {
		socket, err := subscribe()
		if !assert.NoError(t, err) {
			return
		}
		ctx, cancel := context.WithCancel(t.Context())
		var c Changes
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = c.receive(ctx, socket)
		}()
		assert.NoError(t, preflighttest.Plug("one", "192.0.2.1/24"))
		assert.Eventually(t, func() bool { return c.Due(time.Now()) }, limit, time.Millisecond)
		cancel()
		assert.True(t, ends(ended))
	})
}

func TestASegmentMayHaveBothFamilies(t *testing.T) {
	preflighttest.InNetworkNamespace(t, func() {
		if !assert.NoError(t, preflighttest.Plug("one", "192.0.2.1/24", "2001:db8::1/64")) {
			return
		}
		link, err := netlink.LinkByName("one")
		assert.NoError(t, err)
		for _, text := range []string{"192.0.2.9", "2001:db8::9"} {
			index, err := OnLink(netip.MustParseAddr(text))
			assert.NoError(t, err, text)
			assert.Equal(t, link.Attrs().Index, index, text)
		}
	})
}

func TestAChangeWhileTheKernelIsReadMakesItDueAgain(t *testing.T) {
	var c Changes
	began := time.Now()
	require.True(t, c.Due(began))
	c.Note()
	c.MarkRead(began)
	c.took = time.Second
	require.False(t, c.Due(began.Add(time.Second)), "reading takes a second")
	require.True(t, c.Due(began.Add(costFactor*time.Second)))
	c.MarkRead(began.Add(costFactor * time.Second))
	require.False(t, c.Due(began.Add(2*costFactor*time.Second)), "there was no other change")
}
