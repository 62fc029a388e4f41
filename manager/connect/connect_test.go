package connect

import (
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/manager/connect/connecttest"
)

func TestAnImmediateResetCountsAsAccepted(t *testing.T) {
	at := connecttest.Serve(t, netip.MustParseAddrPort("127.0.0.1:0"), connecttest.Reset)
	for range 500 {
		accepted, err := Try(t.Context(), at.String(), time.Second, time.Second)
		require.ErrorIs(t, err, syscall.ECONNRESET)
		require.True(t, accepted)
	}
}
