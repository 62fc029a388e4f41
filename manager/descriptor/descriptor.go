// Package descriptor gives access to the file descriptor of a connection, for options for which package net has no method.
package descriptor

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// With calls do with the connection's descriptor, which stays open during the call, and returns the error of do.
func With(c syscall.Conn, do func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = do(int(fd)) })
	return errors.Join(err, failed)
}

// Join makes an interface receive more frames, such as those of a multicast group, until the packet socket is closed (packet(7)).
func Join(c syscall.Conn, membership unix.PacketMreq) error {
	return With(c, func(fd int) error {
		return unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &membership)
	})
}
