package descriptor

import (
	"errors"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestTheDescriptorIsOfTheConnectionAndItsErrorIsReturned(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, With(conn, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, 7) }))
	require.NoError(t, With(conn, func(fd int) error {
		ttl, err := unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL)
		require.Equal(t, 7, ttl)
		return err
	}))
	wrong := errors.New("wrong")
	require.ErrorIs(t, With(conn, func(int) error { return wrong }), wrong)
	require.Error(t, Join(conn, unix.PacketMreq{}), "the socket is not a packet socket")
	conn.Close()
	require.ErrorIs(t, With(conn, func(int) error { return nil }), net.ErrClosed)
}
