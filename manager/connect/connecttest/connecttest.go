// Package connecttest has TCP servers for tests of connections.
package connecttest

import (
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// Serve accepts connections at an address until the test ends, and passes each to then. Port 0 is any free port. It returns the address with the port.
func Serve(t testing.TB, at netip.AddrPort, then func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			then(c)
		}
	}()
	return netip.AddrPortFrom(at.Addr(), l.Addr().(*net.TCPAddr).AddrPort().Port())
}

// Reset ends a connection by a reset, as a proxy does if it reaches no endpoint.
func Reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
