package connect

import (
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAnEndpointThatResetsAtOnceHasAnswered(t *testing.T) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	}()
	for range 500 {
		accepted, err := Try(t.Context(), l.Addr().String(), time.Second, time.Second)
		require.ErrorIs(t, err, syscall.ECONNRESET)
		require.True(t, accepted)
	}
}
