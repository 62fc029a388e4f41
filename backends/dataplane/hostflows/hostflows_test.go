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
	"kubelb.k8c.io/core/model"
)

// Two servers have one address. The port of the first one is a frontend that is deleted.
func TestConnectionsOfAFrontendEndAndOthersGoOn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		var ended, other, again error
		require.True(t, preflight.InNetworkNamespace(func() { ended, other, again = endOneOfTwo(address) }))
		require.ErrorIs(t, ended, unix.ECONNRESET)
		require.NoError(t, other)
		require.NoError(t, again, "the server still listens")
	}
}

func endOneOfTwo(address string) (ended, other, again error) {
	link, err := netlink.LinkByName("lo")
	if err := errors.Join(err, netlink.LinkSetUp(link)); err != nil {
		return err, err, err
	}
	var connections []net.Conn
	var servers []netip.AddrPort
	for range 2 {
		server, err := net.Listen("tcp", address)
		if err != nil {
			return err, err, err
		}
		defer server.Close()
		go echo(server)
		c, err := net.Dial("tcp", server.Addr().String())
		if err != nil {
			return err, err, err
		}
		defer c.Close()
		if err := roundTrip(c); err != nil {
			return err, err, err
		}
		connections, servers = append(connections, c), append(servers, server.Addr().(*net.TCPAddr).AddrPort())
	}
	if err := End(map[model.FrontendKey]bool{{VIP: servers[0].Addr().Unmap(), Protocol: model.TCP, Port: servers[0].Port()}: true}); err != nil {
		return err, err, err
	}
	ended, other = roundTrip(connections[0]), roundTrip(connections[1])
	c, err := net.Dial("tcp", servers[0].String())
	if err != nil {
		return ended, other, err
	}
	defer c.Close()
	return ended, other, roundTrip(c)
}

func roundTrip(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("?")); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 1))
	return err
}

func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			b := make([]byte, 1)
			for {
				if _, err := c.Read(b); err != nil {
					return
				}
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		}()
	}
}
