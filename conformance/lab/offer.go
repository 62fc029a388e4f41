package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// offerWait is how long a connection of Offer waits for its SYN's answer. The kernel sends the SYN again after a second.
const offerWait = 500 * time.Millisecond

// Offer begins new flows at a steady rate until stop is closed, each from a port of its own: datagrams that servers count, or connections.
func (h *Host) Offer(network string, to netip.AddrPort, firstPort, perSecond int, stop <-chan struct{}) error {
	return h.Do(func() error {
		type waiting struct {
			fd    int
			since time.Time
		}
		var open []waiting
		defer func() {
			for _, w := range open {
				unix.Close(w.fd)
			}
		}()
		const ports = 10000
		for begin, made := time.Now(), 0; ; {
			select {
			case <-stop:
				return nil
			case <-time.After(time.Millisecond):
			}
			for due := int(time.Since(begin).Seconds() * float64(perSecond)); made < due; made++ {
				fd, err := beginFrom(network, firstPort+made%ports, to)
				open = append(open, waiting{fd, time.Now()})
				if err != nil {
					return fmt.Errorf("%s %s, flow %d: %w", network, to, made, err)
				}
			}
			for len(open) > 0 && time.Since(open[0].since) > offerWait {
				unix.Close(open[0].fd)
				open = open[1:]
			}
		}
	})
}

// beginFrom begins a flow and does not wait.
func beginFrom(network string, port int, to netip.AddrPort) (fd int, err error) {
	if network == "udp" {
		return sendFrom(port, to)
	}
	fd, dst, err := socketAt(unix.SOCK_STREAM|unix.SOCK_NONBLOCK, port, to)
	if err != nil {
		return fd, err
	}
	err = errors.Join(unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}), unix.Connect(fd, dst))
	if errors.Is(err, unix.EINPROGRESS) {
		err = nil
	}
	return fd, err
}
