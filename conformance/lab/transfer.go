package lab

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// stallAfter is the time without progress after which a transfer fails.
const stallAfter = 5 * time.Second

// progressConn is a connection that fails after a time without progress. It has no ReadFrom and WriteTo, which would set the
// deadline only once.
type progressConn struct {
	conn  *net.TCPConn
	stall time.Duration
}

func (m progressConn) Read(p []byte) (int, error) {
	if err := m.conn.SetDeadline(time.Now().Add(m.stall)); err != nil {
		return 0, err
	}
	return m.conn.Read(p)
}

func (m progressConn) Write(p []byte) (int, error) {
	if err := m.conn.SetDeadline(time.Now().Add(m.stall)); err != nil {
		return 0, err
	}
	return m.conn.Write(p)
}

func (m progressConn) CloseWrite() error { return m.conn.CloseWrite() }

func (m progressConn) Close() error { return m.conn.Close() }

func (h *Host) upload(to netip.AddrPort, n int64) error { return h.over(to, uploadOver(n)) }

func (h *Host) download(to netip.AddrPort, n int64) error { return h.over(to, downloadOver(n)) }

// over makes a transfer over a new connection.
func (h *Host) over(to netip.AddrPort, transfer func(progressConn) error) error {
	c, err := h.Dial("tcp", to, From{})
	if err != nil {
		return err
	}
	defer c.Close()
	return transfer(progressConn{c.(*net.TCPConn), h.patience.For(stallAfter)})
}

// uploadOver uploads n bytes and compares checksums.
func uploadOver(n int64) func(progressConn) error {
	return func(c progressConn) error {
		if _, err := c.Write([]byte(askSum + "\n")); err != nil {
			return err
		}
		sum := crc32.NewIEEE()
		if _, err := io.CopyBuffer(io.MultiWriter(c, sum), io.LimitReader(&Pattern{}, n), make([]byte, 64<<10)); err != nil {
			return err
		}
		if err := c.CloseWrite(); err != nil {
			return err
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			return err
		}
		if want := fmt.Sprintf("%d %08x\n", n, sum.Sum32()); line != want {
			return fmt.Errorf("sent length and CRC %q, the server received %q", want, line)
		}
		return nil
	}
}

// downloadOver downloads n bytes and compares checksums.
func downloadOver(n int64) func(progressConn) error {
	return func(c progressConn) error {
		if _, err := fmt.Fprintln(c, askSend, n); err != nil {
			return err
		}
		got, want := crc32.NewIEEE(), crc32.NewIEEE()
		received, err := io.CopyBuffer(got, c, make([]byte, 256<<10))
		if err != nil {
			return err
		}
		if _, err := io.CopyN(want, &Pattern{}, n); err != nil {
			return err
		}
		if received != n || got.Sum32() != want.Sum32() {
			return fmt.Errorf("%d bytes with CRC %08x were sent, %d bytes with CRC %08x were received", n, want.Sum32(), received, got.Sum32())
		}
		return nil
	}
}

func (h *Host) dialCommand(to netip.AddrPort, command string) (progressConn, error) {
	c, err := h.Dial("tcp", to, From{})
	if err != nil {
		return progressConn{}, err
	}
	m := progressConn{c.(*net.TCPConn), h.patience.For(stallAfter)}
	_, err = m.Write([]byte(command + "\n"))
	return m, err
}

// UploadAndWait sends n bytes, closes its half of the connection, and waits for the server's answer, which comes after the
// pause.
func (h *Host) UploadAndWait(to netip.AddrPort, n int64, pause time.Duration) error {
	c, err := h.dialCommand(to, fmt.Sprint(askLate, " ", pause.Milliseconds()))
	if err != nil {
		return err
	}
	defer c.Close()
	c.stall += pause
	if _, err := io.Copy(c, io.LimitReader(&Pattern{}, n)); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if want := fmt.Sprintf("%d\n", n); err != nil || line != want {
		return fmt.Errorf("after the client closed its half of the connection, want answer %q, got %q: %w", want, line, err)
	}
	return nil
}

// Trickle closes its half of a connection, and receives single bytes for a time. It returns an error if the connection ends
// before that time.
func (h *Host) Trickle(to netip.AddrPort, lasts time.Duration) error {
	c, err := h.dialCommand(to, fmt.Sprint(askTrickle, " ", lasts.Milliseconds()))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.CloseWrite(); err != nil {
		return err
	}
	begin := time.Now()
	if _, err := io.Copy(io.Discard, c); err != nil {
		return fmt.Errorf("%s after the client closed its half of the connection: %w", time.Since(begin).Round(time.Millisecond), err)
	}
	if after := time.Since(begin); after < lasts {
		return fmt.Errorf("the server ended the connection after %s, want %s", after, lasts)
	}
	return nil
}

// RequestReset makes the server reset a connection, and returns an error if the reset does not arrive.
func (h *Host) RequestReset(to netip.AddrPort) error {
	c, err := h.dialCommand(to, askReset)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("the server sent a reset, but the client got: %w", err)
	}
	return nil
}
