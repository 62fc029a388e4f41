package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// TransferInWindow is like Transfer, with at most about window bytes on the way, so that no queue of the lab overflows.
func (h *Host) TransferInWindow(to netip.AddrPort, n int64, window int) error {
	narrow := func(transfer func(progressConn) error) func(progressConn) error {
		return func(c progressConn) error {
			if err := errors.Join(c.conn.SetWriteBuffer(window), c.conn.SetReadBuffer(window)); err != nil {
				return err
			}
			return transfer(c)
		}
	}
	return errors.Join(h.over(to, narrow(uploadOver(n))), h.over(to, narrow(downloadOver(n))))
}

// EchoInRounds opens UDP flows and sends datagrams on them in rounds, one on each flow. Each datagram has to come back before the next round, once.
func (h *Host) EchoInRounds(to netip.AddrPort, flows, rounds int) error {
	var connections []net.Conn
	defer func() {
		for _, c := range connections {
			c.Close()
		}
	}()
	for range flows {
		c, err := h.Dial("udp", to, From{})
		if err != nil {
			return err
		}
		connections = append(connections, c)
	}
	for round := range rounds {
		for i, c := range connections {
			if _, err := fmt.Fprintf(c, "round %d of flow %d", round, i); err != nil {
				return err
			}
		}
		for i, c := range connections {
			if err := h.expect(c, fmt.Sprintf("round %d of flow %d", round, i)); err != nil {
				return err
			}
		}
	}
	return nil
}

// expect reads one datagram.
func (h *Host) expect(c net.Conn, want string) error {
	if err := c.SetReadDeadline(time.Now().Add(h.patience.For(lostAfter))); err != nil {
		return err
	}
	buffer := make([]byte, 100)
	n, err := c.Read(buffer)
	if err != nil {
		return fmt.Errorf("datagram %q did not come back: %w", want, err)
	}
	if got := string(buffer[:n]); got != want {
		return fmt.Errorf("datagram %q did not come back, but %q", want, got)
	}
	return nil
}

// DialUnsummed opens a UDP flow of IPv4 whose datagrams have no checksum.
func (h *Host) DialUnsummed(to netip.AddrPort) (c net.Conn, err error) {
	control := func(_, _ string, socket syscall.RawConn) error {
		var failed error
		err := socket.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1) })
		return errors.Join(err, failed)
	}
	err = h.Do(func() error {
		dialer := net.Dialer{Control: control}
		c, err = dialer.Dial("udp4", to.String())
		return err
	})
	return c, err
}

// Unexplained returns how many segments the host has retransmitted although nobody has said that they arrived twice: the others were
// only late. Segments of handshakes do not count, as nobody says that of them.
func (h *Host) Unexplained() (int, error) {
	var lost int
	err := h.Do(func() error {
		var errs []error
		count := func(file, line, counter string) int {
			n, err := readCounter(file, line, counter)
			errs = append(errs, err)
			return n
		}
		lost = count("snmp", "Tcp", "RetransSegs") - count("netstat", "TcpExt", "TCPSynRetrans") - count("netstat", "TcpExt", "TCPDSACKRecvSegs")
		return errors.Join(errs...)
	})
	return lost, err
}

// readCounter reads a counter of the thread's network namespace: a line has the names, and the next one the values.
func readCounter(file, line, counter string) (int, error) {
	text, err := os.ReadFile("/proc/thread-self/net/" + file)
	if err != nil {
		return 0, err
	}
	var names []string
	for l := range strings.Lines(string(text)) {
		fields := strings.Fields(l)
		if len(fields) == 0 || fields[0] != line+":" {
			continue
		}
		for i, name := range names {
			if name == counter && i < len(fields) {
				return strconv.Atoi(fields[i])
			}
		}
		names = fields
	}
	return 0, fmt.Errorf("there is no counter %s in %s", counter, file)
}
