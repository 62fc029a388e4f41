// Package descriptor reaches the file descriptor of a connection, for what package net has no method for.
package descriptor

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// With calls do with the connection's descriptor, which stays open meanwhile, and returns its error.
func With(c syscall.Conn, do func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = do(int(fd)) })
	return errors.Join(err, failed)
}

// Join has an interface let frames in that it would drop otherwise, for as long as the packet socket lives (packet(7)).
func Join(c syscall.Conn, membership unix.PacketMreq) error {
	return With(c, func(fd int) error {
		return unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &membership)
	})
}
