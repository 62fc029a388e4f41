package hostflows

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane/preflight"
)

func TestAHostIsToldThatItsIdleConnectionHasEnded(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		var ended, other error
		require.True(t, preflight.InNetworkNamespace(func() { ended, other = resetOneOfTwo(t, address) }))
		require.ErrorIs(t, ended, unix.ECONNRESET, "%s: a client that sends nothing", address)
		require.NoError(t, other, "%s: another connection", address)
	}
}

// resetOneOfTwo resets the client of one of two connections to a server.
func resetOneOfTwo(t *testing.T, address string) (ended, other error) {
	link, err := netlink.LinkByName("lo")
	if err := errors.Join(err, netlink.LinkSetUp(link)); err != nil {
		return err, err
	}
	server, err := net.Listen("tcp", address)
	if err != nil {
		return err, err
	}
	defer server.Close()
	go echo(server)
	var connections []net.Conn
	for range 2 {
		c, err := net.Dial("tcp", server.Addr().String())
		if err != nil {
			return err, err
		}
		defer c.Close()
		if err := roundTrip(c); err != nil {
			return err, err
		}
		connections = append(connections, c)
	}
	at := func(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }
	if err := Reset(t.Context(), []Connection{{Local: at(connections[0].RemoteAddr()), Remote: at(connections[0].LocalAddr())}}); err != nil {
		return err, err
	}
	if err := connections[0].SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err, err
	}
	_, ended = connections[0].Read(make([]byte, 1))
	return ended, roundTrip(connections[1])
}
