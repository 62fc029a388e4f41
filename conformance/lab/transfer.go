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

// stall is how long a transfer may stand still before it counts as lost.
const stall = 5 * time.Second

// moving is a connection that fails when nothing moves any more. It has no ReadFrom and WriteTo, which would set the
// deadline but once.
type moving struct {
	conn  *net.TCPConn
	stall time.Duration
}

func (m moving) Read(p []byte) (int, error) {
	if err := m.conn.SetDeadline(time.Now().Add(m.stall)); err != nil {
		return 0, err
	}
	return m.conn.Read(p)
}

func (m moving) Write(p []byte) (int, error) {
	if err := m.conn.SetDeadline(time.Now().Add(m.stall)); err != nil {
		return 0, err
	}
	return m.conn.Write(p)
}

func (m moving) CloseWrite() error { return m.conn.CloseWrite() }

func (m moving) Close() error { return m.conn.Close() }

func (h *Host) upload(to netip.AddrPort, n int64) error {
	c, err := h.openFor(to, askSum)
	if err != nil {
		return err
	}
	defer c.Close()
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

func (h *Host) download(to netip.AddrPort, n int64) error {
	c, err := h.openFor(to, fmt.Sprint(askSend, " ", n))
	if err != nil {
		return err
	}
	defer c.Close()
	got, want := crc32.NewIEEE(), crc32.NewIEEE()
	received, err := io.CopyBuffer(got, c, make([]byte, 256<<10))
	if err != nil {
		return err
	}
	if _, err := io.CopyN(want, &Pattern{}, n); err != nil {
		return err
	}
	if received != n || got.Sum32() != want.Sum32() {
		return fmt.Errorf("%d bytes of CRC %08x were sent, %d of %08x received", n, want.Sum32(), received, got.Sum32())
	}
	return nil
}

func (h *Host) openFor(to netip.AddrPort, command string) (moving, error) {
	c, err := h.Dial("tcp", to, From{})
	if err != nil {
		return moving{}, err
	}
	m := moving{c.(*net.TCPConn), h.patience.For(stall)}
	_, err = m.Write([]byte(command + "\n"))
	return m, err
}

// UploadAndWait sends n bytes, ends its half of the connection, and has the server answer no sooner than the pause later.
func (h *Host) UploadAndWait(to netip.AddrPort, n int64, pause time.Duration) error {
	c, err := h.openFor(to, fmt.Sprint(askLate, " ", pause.Milliseconds()))
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.Copy(c, io.LimitReader(&Pattern{}, n)); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if want := fmt.Sprintf("%d\n", n); err != nil || line != want {
		return fmt.Errorf("the server was to answer %q after half of the connection had ended, it answered %q: %w", want, line, err)
	}
	return nil
}

// Trickle ends its half of a connection, and has the server send now and then for that long. It returns nil if the server ends the connection
// then, and not before.
func (h *Host) Trickle(to netip.AddrPort, lasts time.Duration) error {
	c, err := h.openFor(to, fmt.Sprint(askTrickle, " ", lasts.Milliseconds()))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.CloseWrite(); err != nil {
		return err
	}
	begin := time.Now()
	if _, err := io.Copy(io.Discard, c); err != nil {
		return fmt.Errorf("%s after the client had ended its half: %w", time.Since(begin).Round(time.Millisecond), err)
	}
	if after := time.Since(begin); after < lasts {
		return fmt.Errorf("the server was to send for %s, it ended after %s", lasts, after)
	}
	return nil
}

// AskForReset has the server reset the connection, and returns nil when the reset arrives.
func (h *Host) AskForReset(to netip.AddrPort) error {
	c, err := h.openFor(to, askReset)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("the server sent a reset, the client sees %w", err)
	}
	return nil
}
