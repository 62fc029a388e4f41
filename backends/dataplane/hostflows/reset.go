package hostflows

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Reset resets TCP connections that this host forwarded, at the host Remote, which believes that it is connected to Local. Nothing may forward their
// packets any more.
//
// Only Remote knows the number that a valid reset has. So Reset sends an ACK with a wrong number, which a TCP stack answers with an ACK of its own
// (RFC 9293, 3.10.7.4), and answers that with the reset. It repeats this for hosts that do not answer, for a second. Without it a host that waits for
// data would wait for ever.
func Reset(ctx context.Context, connections []Connection) error {
	if len(connections) == 0 {
		return nil
	}
	open := map[Connection]bool{}
	for _, c := range connections {
		open[c] = true
	}
	r := resetter{open: open}
	defer r.close()
	if err := r.start(); err != nil {
		return err
	}
	var err error
	for range resetRounds {
		err = errors.Join(r.ask(), r.answer(ctx, resetWait))
		if len(open) == 0 || ctx.Err() != nil {
			break
		}
	}
	return errors.Join(err, forget(connections))
}

// EndsOf returns a connection that a dataplane has forwarded, as its client has it and as its endpoint has it. The endpoint got packets from source. With
// direct the endpoint cannot be reached by an address, and learns of the end when it sends something to the client.
func EndsOf(client, vip, source, endpoint netip.AddrPort, direct bool) []Connection {
	ends := []Connection{{Local: vip, Remote: client}}
	if !direct {
		ends = append(ends, Connection{Local: source, Remote: endpoint})
	}
	return ends
}

// resetRounds is how often a host is asked at most, and resetWait how long its answer may take each time. Linux answers wrong numbers of one
// connection twice a second at most (net.ipv4.tcp_invalid_ratelimit).
const (
	resetRounds = 2
	resetWait   = 600 * time.Millisecond
)

// forget deletes what connection tracking has noted of the packets of Reset.
func forget(connections []Connection) error {
	sent := map[Connection]bool{}
	for _, c := range connections {
		sent[c] = true
	}
	var errs []error
	for _, v4 := range []bool{true, false} {
		errs = append(errs, EachTracked(v4, func(f *Flow) bool {
			return !f.IsRewritten() && sent[Connection{netip.AddrPortFrom(f.Client, f.ClientPort), netip.AddrPortFrom(f.VIP, f.VIPPort)}]
		}))
	}
	return errors.Join(errs...)
}

// resetter sends by raw sockets, and receives by a packet socket, which sees packets that are forwarded.
type resetter struct {
	open                   map[Connection]bool
	send4, send6, received int
	opened                 []int
	// without6 is why there is no socket for IPv6.
	without6 error
}

func (r *resetter) start() (err error) {
	for _, s := range []struct {
		into                   *int
		family, kind, protocol int
	}{
		{&r.send4, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW},
		{&r.send6, unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_RAW},
		{&r.received, unix.AF_PACKET, unix.SOCK_DGRAM, int(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL)))},
	} {
		*s.into, err = unix.Socket(s.family, s.kind|unix.SOCK_CLOEXEC, s.protocol)
		if err != nil && s.family == unix.AF_INET6 {
			r.without6 = err
			continue
		}
		if err != nil {
			return fmt.Errorf("socket to end connections with (needs CAP_NET_RAW): %w", err)
		}
		r.opened = append(r.opened, *s.into)
	}
	const room = 16 << 20
	_ = unix.SetsockoptInt(r.received, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room) // if an answer is lost, the host is asked again
	return nil
}

func (r *resetter) close() {
	for _, s := range r.opened {
		_ = unix.Close(s)
	}
}

// ask sends an ACK for each connection.
func (r *resetter) ask() error {
	failed, cause := 0, error(nil)
	for c := range r.open {
		if err := r.send(c, ACK, 0); err != nil {
			failed, cause = failed+1, err
		}
	}
	if failed > 0 {
		return fmt.Errorf("end %d of %d connections: %w", failed, len(r.open), cause)
	}
	return nil
}

// answer resets the connections whose hosts answer within the time.
func (r *resetter) answer(ctx context.Context, wait time.Duration) error {
	buffer := make([]byte, 256)
	for end := time.Now().Add(wait); len(r.open) > 0 && ctx.Err() == nil; {
		left := time.Until(end)
		if left <= 0 {
			return nil
		}
		timeout := unix.NsecToTimeval(left.Nanoseconds())
		if err := unix.SetsockoptTimeval(r.received, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
			return err
		}
		n, from, err := unix.Recvfrom(r.received, buffer, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive answers of connections to end: %w", err)
		}
		if link, ok := from.(*unix.SockaddrLinklayer); ok && link.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		c, flags, acknowledged, ok := parseSegment(buffer[:n])
		if !ok || !r.open[c] {
			continue
		}
		if flags&flagRST == 0 {
			if flags&ACK == 0 {
				continue
			}
			if err := r.send(c, flagRST, acknowledged); err != nil {
				return err
			}
		}
		delete(r.open, c)
	}
	return nil
}

// send sends a segment to the remote host, as if it came from the local one.
func (r *resetter) send(c Connection, flags byte, sequence uint32) error {
	packet := Segment(c, flags, sequence)
	to := c.Remote.Addr()
	err := r.without6
	if to.Is4() {
		err = unix.Sendto(r.send4, packet, 0, &unix.SockaddrInet4{Addr: to.As4()})
	} else if err == nil {
		err = unix.Sendto(r.send6, packet, 0, &unix.SockaddrInet6{Addr: to.As16()})
	}
	if err != nil {
		return fmt.Errorf("end the connection of %s to %s: %w", c.Remote, c.Local, err)
	}
	return nil
}
