package heartbeat

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/manager/descriptor"
	"kubelb.k8c.io/manager/uplink"
)

// A message goes out twice: as a frame of its own EtherType, the first of those that IEEE 802 leaves to local experiments, to a multicast MAC address
// of local administration, and as an IPv6 packet. The frame needs no IPv6, and earlier versions know it. The packet is for a group of which this host
// is a member and says so (MLD): a switch may pass multicast only to members of its group.
const etherType = 0x88b5

var group = net.HardwareAddr{0x03, 'k', 'u', 'b', 'e', 'l'}

var (
	// group6 is a group that is nobody's by assignment, on this link alone (RFC 4291 section 2.7).
	group6 = netip.AddrFrom16([16]byte{0xff, 0x12, 11: 'k', 12: 'u', 13: 'b', 14: 'e', 15: 'l'})
	// group6MAC is where its packets go (RFC 2464 section 7).
	group6MAC = net.HardwareAddr{0x33, 0x33, 'u', 'b', 'e', 'l'}
)

const (
	maxFrame       = 2048
	ethernetHeader = 14
	ipv6Header     = 40
	// noNextHeader says that hosts are to ignore what follows (RFC 8200 section 4.7): only packet sockets hear it.
	noNextHeader = unix.IPPROTO_NONE
)

var (
	errNotThere = errors.New("no interface has this name")
	errReplaced = errors.New("another interface has its name now")
)

// place is an interface at which heartbeats are sent and heard.
type place struct {
	frames, packets *packet.Conn
	groups          *uplink.Groups
}

func open(s uplink.State) (*place, error) {
	frames, err := uplink.Listen(s, etherType, []bpf.Instruction{bpf.RetConstant{Val: maxFrame}})
	if err != nil {
		return nil, err
	}
	packets, err := uplink.Listen(s, unix.ETH_P_IPV6, forGroup6())
	if err != nil {
		return nil, errors.Join(err, frames.Close())
	}
	p := &place{frames, packets, uplink.NewGroups(s.Index)}
	for conn, mac := range map[*packet.Conn]net.HardwareAddr{frames: group, packets: group6MAC} {
		if err := letIn(conn, s.Index, mac); err != nil {
			p.close()
			return nil, err
		}
	}
	return p, nil
}

func (p *place) close() {
	p.groups.Close()
	p.frames.Close()
	p.packets.Close()
}

// letIn has the interface let frames for a multicast MAC address in.
func letIn(conn *packet.Conn, index int, mac net.HardwareAddr) error {
	membership := unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_MULTICAST, Alen: uint16(len(mac))}
	copy(membership.Address[:], mac)
	return descriptor.Join(conn, membership)
}

// forGroup6 gives a socket what is for the group, and of all else that a gateway forwards nothing.
func forGroup6() []bpf.Instruction {
	const destination = ethernetHeader + 24
	want := group6.As16()
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: ethernetHeader + 6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: noNextHeader, SkipFalse: 5},
		bpf.LoadAbsolute{Off: destination, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(want[:]), SkipFalse: 3},
		bpf.LoadAbsolute{Off: destination + 12, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(want[12:]), SkipFalse: 1},
		bpf.RetConstant{Val: maxFrame},
		bpf.RetConstant{Val: 0},
	}
}

// asPacket is the message of a frame as an IPv6 packet, from no address: it says of none that it is this host's.
func asPacket(frame []byte) []byte {
	message := frame[ethernetHeader:]
	b := append(append([]byte{}, group6MAC...), frame[6:12]...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IPV6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(message)))
	b = append(b, noNextHeader, 255)
	b = append(append(b, netip.IPv6Unspecified().AsSlice()...), group6.AsSlice()...)
	return append(b, message...)
}

// send sends a frame, and its message as a packet. A link that is down is no failure.
func (p *place) send(frame []byte) error {
	return errors.Join(write(p.frames, frame), write(p.packets, asPacket(frame)))
}

func write(conn *packet.Conn, frame []byte) error {
	_, err := conn.WriteTo(frame, &packet.Addr{HardwareAddr: net.HardwareAddr(frame[:6])})
	if errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ENOBUFS) {
		return nil
	}
	return err
}
