package connect

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/manager/connect/connecttest"
)

func TestAConnectionThatStaysOpenOrBringsDataWorks(t *testing.T) {
	for says, then := range map[string]func(*net.TCPConn){
		"it stays open":  func(c *net.TCPConn) { t.Cleanup(func() { c.Close() }) },
		"it brings data": func(c *net.TCPConn) { _, _ = c.Write([]byte("220 ready\r\n")); _ = c.Close() },
	} {
		at := connecttest.Serve(t, netip.MustParseAddrPort("127.0.0.1:0"), then)
		accepted, err := Try(t.Context(), at.String(), time.Second, 50*time.Millisecond)
		require.NoError(t, err, says)
		require.True(t, accepted, says)
	}
}

func TestAConnectionThatEndsBeforeAByteSaysHow(t *testing.T) {
	at := connecttest.Serve(t, netip.MustParseAddrPort("127.0.0.1:0"), func(c *net.TCPConn) { _ = c.Close() })
	accepted, err := Try(t.Context(), at.String(), time.Second, time.Second)
	require.ErrorIs(t, err, io.EOF)
	require.True(t, accepted)
}

func TestAPortAtWhichNobodyListensRefuses(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	accepted, err := Try(t.Context(), l.Addr().String(), time.Second, time.Second)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	require.False(t, accepted)
	require.Equal(t, "connection refused", Cause(err))
}

func TestACallThatEndsIsNoAcceptedConnection(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	accepted, err := Try(ended, "127.0.0.1:9", time.Second, time.Second)
	require.Error(t, err)
	require.False(t, accepted)
}

func TestTheCauseIsAFewWords(t *testing.T) {
	for want, err := range map[string]error{
		"no answer":        &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded},
		"no route to host": &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)},
		"EOF":              io.EOF,
		"something else":   errors.New("something else"),
	} {
		require.Equal(t, want, Cause(err))
	}
}
