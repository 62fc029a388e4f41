package lab

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/conformance/headers"
)

// Recording has packets of a host, from all its interfaces, with their whole headers.
type Recording struct {
	socket *os.File
	done   chan struct{}
	keep   func(headers.Packet) bool
	// came is signalled when a packet comes.
	came     chan struct{}
	patience Patience
	closed   bool

	mu      sync.Mutex
	in, out []headers.Packet
	errs    []error
	// nextIn and nextOut are the numbers of packets that NextIn and NextOut have returned.
	nextIn, nextOut int
}

// Record starts a recording of the packets for which keep returns true. Close ends it.
func (h *Host) Record(keep func(headers.Packet) bool) (*Recording, error) {
	socket, err := h.packetSocket()
	if err != nil {
		return nil, err
	}
	r := &Recording{socket: socket, done: make(chan struct{}), keep: keep, came: make(chan struct{}, 1), patience: h.patience}
	go func() {
		defer close(r.done)
		readPackets(socket, r.read)
	}()
	return r, nil
}

// read keeps a packet. Frames for other hosts, which a switch floods, count as none.
func (r *Recording) read(b []byte, kind uint8) {
	if kind == unix.PACKET_OTHERHOST || len(b) == 0 || b[0]>>4 != 4 && b[0]>>4 != 6 {
		return
	}
	p, err := headers.Parse(b)
	if err == nil && !r.keep(p) {
		return
	}
	r.mu.Lock()
	switch {
	case err != nil:
		r.errs = append(r.errs, err)
	case kind == unix.PACKET_OUTGOING:
		r.out = append(r.out, p)
	default:
		r.in = append(r.in, p)
	}
	r.mu.Unlock()
	select {
	case r.came <- struct{}{}:
	default:
	}
}

// NextIn returns the next packet that the host gets, or false if none comes in time.
func (r *Recording) NextIn() (headers.Packet, bool) { return r.next(&r.in, &r.nextIn) }

// NextOut returns the next packet that the host sends, or false if none comes in time.
func (r *Recording) NextOut() (headers.Packet, bool) { return r.next(&r.out, &r.nextOut) }

func (r *Recording) next(packets *[]headers.Packet, taken *int) (headers.Packet, bool) {
	timeout := time.After(r.patience.For(lostAfter))
	for {
		r.mu.Lock()
		if len(*packets) > *taken {
			p := (*packets)[*taken]
			*taken++
			r.mu.Unlock()
			return p, true
		}
		r.mu.Unlock()
		select {
		case <-r.came:
		case <-timeout:
			return headers.Packet{}, false
		}
	}
}

// Counts returns how many packets the host has got and sent until now.
func (r *Recording) Counts() (in, out int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.in), len(r.out)
}

// Close ends the recording and returns its packets. It returns an error if the recording missed packets, or got some whose headers are
// incomplete. A second call returns nothing.
func (r *Recording) Close() (in, out []headers.Packet, err error) {
	if r.closed {
		return nil, nil, nil
	}
	r.closed = true
	if err := r.socket.SetReadDeadline(time.Now()); err != nil {
		return nil, nil, err
	}
	<-r.done
	missed, err := r.drain()
	r.socket.Close()
	if err == nil && missed > 0 {
		err = fmt.Errorf("the recording missed %d packets", missed)
	}
	return r.in, r.out, errors.Join(append(r.errs, err)...)
}

// drain reads what is in the socket's buffer. It returns how many packets did not fit into the buffer.
func (r *Recording) drain() (missed uint32, err error) {
	raw, err := r.socket.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		buffer := make([]byte, 1<<16)
		for range maxPackets {
			if !readPacket(fd, buffer, r.read) {
				break
			}
		}
		var stats *unix.TpacketStats
		if stats, failed = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); failed == nil {
			missed = stats.Drops
		}
	})
	return missed, errors.Join(err, failed)
}

// Injector sends packets as they are.
type Injector struct {
	socket *os.File
	v4     bool
}

// Inject returns an injector for packets of a family.
func (h *Host) Inject(v4 bool) (*Injector, error) {
	i := &Injector{v4: v4}
	err := h.Do(func() error {
		family := unix.AF_INET6
		if v4 {
			family = unix.AF_INET
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return fmt.Errorf("make a raw socket on %s: %w", h.Name, err)
		}
		i.socket = os.NewFile(uintptr(fd), "injector")
		return nil
	})
	return i, err
}

// Send sends a packet. The kernel only sets the identification of an IPv4 packet that has none.
func (i *Injector) Send(p headers.Packet) error {
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: p.Target.Addr().As16()}
	if i.v4 {
		to = &unix.SockaddrInet4{Addr: p.Target.Addr().As4()}
	}
	raw, err := i.socket.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.Sendto(int(fd), p.Bytes(), 0, to) })
	if err := errors.Join(err, failed); err != nil {
		return fmt.Errorf("send %s: %w", p, err)
	}
	return nil
}

// Close closes the socket.
func (i *Injector) Close() error { return i.socket.Close() }

// Ignore makes the host drop TCP and UDP packets for a port, so that its kernel does not answer packets of flows that it does not know.
// Recordings still get the packets.
func (h *Host) Ignore(port uint16) error {
	return h.Do(func() error {
		_, err := nft(fmt.Sprintf("add table inet crafted; add chain inet crafted in { type filter hook input priority 0; }; add rule inet crafted in meta l4proto { tcp, udp } th dport %d drop", port))
		return err
	})
}

// Sysctl sets a sysctl of the host, such as net/ipv4/tcp_ecn.
func (h *Host) Sysctl(key, value string) error {
	return h.Do(func() error {
		if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0o644); err != nil {
			return fmt.Errorf("sysctl %s of %s: %w", key, h.Name, err)
		}
		return nil
	})
}
