package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Packet is an IP packet that a host received or sent.
type Packet struct {
	Time time.Time
	// Out means that the host sent the packet.
	Out      bool
	Source   netip.AddrPort
	Target   netip.AddrPort
	Protocol uint8
	// TCPFlags are the flags of a TCP segment, ICMPType is the type of an ICMP message.
	TCPFlags, ICMPType uint8
	Length             int
	// Bytes is the packet from its IP header on, if the capture selects packets.
	Bytes []byte
}

// Protocol numbers (RFC 790, RFC 8200).
const (
	ICMP   = 1
	TCP    = 6
	UDP    = 17
	ICMPv6 = 58
)

// IsSYN reports whether the packet is the first one of a TCP connection.
func (p Packet) IsSYN() bool { return p.Protocol == TCP && p.TCPFlags&0x12 == 0x02 }

// String describes the packet in one line.
func (p Packet) String() string {
	direction := "in "
	if p.Out {
		direction = "out"
	}
	what := fmt.Sprintf("protocol %d", p.Protocol)
	switch p.Protocol {
	case TCP:
		what = "TCP " + flagsText(p.TCPFlags)
	case UDP:
		what = "UDP"
	case ICMP, ICMPv6:
		what = fmt.Sprintf("ICMP type %d", p.ICMPType)
	}
	return fmt.Sprintf("%s %s %s > %s %s, %d bytes", p.Time.Format("15:04:05.000000"), direction, p.Source, p.Target, what, p.Length)
}

func flagsText(flags uint8) string {
	var out []string
	for i, name := range []string{"FIN", "SYN", "RST", "PSH", "ACK"} {
		if flags&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return strings.Join(out, ",")
}

// Capture has the last packets of a host, from all its interfaces.
type Capture struct {
	socket *os.File
	done   chan struct{}
	keep   func(Packet) bool

	mu    sync.Mutex
	last  []Packet
	total int
}

// maxPackets is the number of packets that a capture keeps at most.
const maxPackets = 20000

// Capture starts a capture of the packets for which keep returns true, or of all packets if keep is nil. Close ends it.
func (h *Host) Capture(keep func(Packet) bool) (*Capture, error) {
	socket, err := h.packetSocket()
	if err != nil {
		return nil, err
	}
	c := &Capture{socket: socket, done: make(chan struct{}), keep: keep}
	go func() {
		defer close(c.done)
		readPackets(socket, c.read)
	}()
	return c, nil
}

// packetSocket returns a socket that gets all packets of the host.
func (h *Host) packetSocket() (socket *os.File, err error) {
	err = h.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(hostToNetwork(unix.ETH_P_ALL)))
		if err != nil {
			return fmt.Errorf("capture on %s: %w", h.Name, err)
		}
		socket = os.NewFile(uintptr(fd), "capture")
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	})
	return socket, err
}

func hostToNetwork(v uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v))
}

// Close ends the capture and returns its packets.
func (c *Capture) Close() []Packet {
	// Packets in flight arrive within a moment.
	time.Sleep(20 * time.Millisecond)
	c.socket.Close()
	<-c.done
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// read keeps a packet of the host. A switch floods frames for hosts that it does not know.
func (c *Capture) read(b []byte, kind uint8) {
	if p, ok := parse(b); ok && kind != unix.PACKET_OTHERHOST {
		p.Out, p.Bytes = kind == unix.PACKET_OUTGOING, b
		c.add(p)
	}
}

// readPackets calls each for every packet of the socket until the socket is closed. The bytes are valid during the call. The kind is one of
// PACKET_OUTGOING, PACKET_HOST and others (packet(7)).
func readPackets(socket *os.File, each func(b []byte, kind uint8)) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return
	}
	buffer := make([]byte, 1<<16)
	for {
		err := raw.Read(func(fd uintptr) bool { return readPacket(fd, buffer, each) })
		if err != nil {
			return
		}
	}
}

// readPacket calls each for the next packet. It returns false if there is none.
func readPacket(fd uintptr, buffer []byte, each func(b []byte, kind uint8)) bool {
	n, from, err := unix.Recvfrom(int(fd), buffer, 0)
	if link, ok := from.(*unix.SockaddrLinklayer); ok && err == nil {
		each(buffer[:n], link.Pkttype)
	}
	return !errors.Is(err, unix.EAGAIN)
}

func (c *Capture) add(p Packet) {
	if c.keep != nil && !c.keep(p) {
		return
	}
	if p.Bytes = slices.Clone(p.Bytes); c.keep == nil {
		p.Bytes = nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total++
	if len(c.last) == maxPackets {
		c.last = c.last[1:]
	}
	p.Time = time.Now()
	c.last = append(c.last, p)
}

// parse reads the headers of an IP packet. Missing headers leave their fields zero.
func parse(b []byte) (Packet, bool) {
	p := Packet{Length: len(b)}
	var payload []byte
	var source, target netip.Addr
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		source, target = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		p.Protocol = b[9]
		if header := int(b[0]&15) * 4; header <= len(b) && binary.BigEndian.Uint16(b[6:8])&0x1fff == 0 {
			payload = b[header:]
		}
	case len(b) >= 40 && b[0]>>4 == 6:
		source, target = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		p.Protocol, payload = b[6], b[40:]
	default:
		return p, false
	}
	var sourcePort, targetPort uint16
	if (p.Protocol == TCP || p.Protocol == UDP) && len(payload) >= 4 {
		sourcePort, targetPort = binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:])
	}
	if p.Protocol == TCP && len(payload) >= 14 {
		p.TCPFlags = payload[13]
	}
	if (p.Protocol == ICMP || p.Protocol == ICMPv6) && len(payload) > 0 {
		p.ICMPType = payload[0]
	}
	p.Source, p.Target = netip.AddrPortFrom(source, sourcePort), netip.AddrPortFrom(target, targetPort)
	return p, true
}

// Interfaces returns the names of the host's interfaces, without loopback.
func (h *Host) Interfaces() ([]string, error) {
	var names []string
	err := h.Do(func() error {
		list, err := net.Interfaces()
		for _, i := range list {
			if i.Flags&net.FlagLoopback == 0 {
				names = append(names, i.Name)
			}
		}
		return err
	})
	return names, err
}
