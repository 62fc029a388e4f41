package lab

import (
	"bytes"
	"fmt"
	"net"
	"time"
)

// Echo sends a datagram of that size to a server that echoes it, and requires that the same bytes come back.
func (h *Host) Echo(c net.Conn, size int) error { return echo(c, size, h.patience.For(lostAfter)) }

func echo(c net.Conn, size int, wait time.Duration) error {
	sent, buffer := make([]byte, size), make([]byte, 1<<16)
	_, _ = (&Pattern{uint32(size)}).Read(sent)
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	if _, err := c.Write(sent); err != nil {
		return fmt.Errorf("send a datagram of %d bytes: %w", size, err)
	}
	n, err := c.Read(buffer)
	if err != nil {
		return fmt.Errorf("receive the echo of a datagram of %d bytes: %w", size, err)
	}
	if !bytes.Equal(sent, buffer[:n]) {
		return fmt.Errorf("a datagram of %d bytes was sent, %d different bytes came back", size, n)
	}
	return nil
}
