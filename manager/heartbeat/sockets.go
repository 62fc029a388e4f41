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

// A message is sent twice: as a frame of its own EtherType and as an IPv6 packet. The EtherType is the first one that IEEE 802 leaves to local
// experiments, and the destination a locally administered multicast MAC address. The frame needs no IPv6, and earlier versions know it. The packet is
// for a group that this host joins by MLD: a switch may pass multicast only to members of its group.
const etherType = 0x88b5

var groupMAC = net.HardwareAddr{0x03, 'k', 'u', 'b', 'e', 'l'}

var (
	// group6 is a link-local group that is not assigned (RFC 4291 section 2.7).
	group6 = netip.AddrFrom16([16]byte{0xff, 0x12, 11: 'k', 12: 'u', 13: 'b', 14: 'e', 15: 'l'})
	// group6MAC is the destination of its packets (RFC 2464 section 7).
	group6MAC = net.HardwareAddr{0x33, 0x33, 'u', 'b', 'e', 'l'}
)

const (
	maxFrame       = 2048
	ethernetHeader = 14
	ipv6Header     = 40
	// noNextHeader makes hosts ignore what follows (RFC 8200 section 4.7), so that only packet sockets receive it.
	noNextHeader = unix.IPPROTO_NONE
)

var (
	errNoInterface = errors.New("no interface has this name")
	errReplaced    = errors.New("another interface has this name now")
)

// sockets send and receive heartbeats at one interface.
type sockets struct {
	frames, packets *packet.Conn
	groups          *uplink.Groups
}

func openSockets(s uplink.State) (*sockets, error) {
	frames, err := uplink.Listen(s, etherType, []bpf.Instruction{bpf.RetConstant{Val: maxFrame}})
	if err != nil {
		return nil, err
	}
	packets, err := uplink.Listen(s, unix.ETH_P_IPV6, group6Filter())
	if err != nil {
		return nil, errors.Join(err, frames.Close())
	}
	p := &sockets{frames, packets, uplink.NewGroups(s.Index)}
	for conn, mac := range map[*packet.Conn]net.HardwareAddr{frames: groupMAC, packets: group6MAC} {
		if err := acceptMulticast(conn, s.Index, mac); err != nil {
			p.close()
			return nil, err
		}
	}
	return p, nil
}

func (p *sockets) close() {
	p.groups.Close()
	p.frames.Close()
	p.packets.Close()
}

// acceptMulticast makes the interface accept frames for a multicast MAC address.
func acceptMulticast(conn *packet.Conn, index int, mac net.HardwareAddr) error {
	membership := unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_MULTICAST, Alen: uint16(len(mac))}
	copy(membership.Address[:], mac)
	return descriptor.Join(conn, membership)
}

// group6Filter passes packets for the group, and nothing else of what a gateway forwards.
func group6Filter() []bpf.Instruction {
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

// toPacket returns the message of a frame as an IPv6 packet. Its source is the unspecified address, so that it announces no address of this host.
func toPacket(frame []byte) []byte {
	message := frame[ethernetHeader:]
	b := append(append([]byte{}, group6MAC...), frame[6:12]...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IPV6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(message)))
	b = append(b, noNextHeader, 255)
	b = append(append(b, netip.IPv6Unspecified().AsSlice()...), group6.AsSlice()...)
	return append(b, message...)
}

// send sends a frame, and its message as a packet. A link that is down is no error.
func (p *sockets) send(frame []byte) error {
	return errors.Join(write(p.frames, frame), write(p.packets, toPacket(frame)))
}

func write(conn *packet.Conn, frame []byte) error {
	_, err := conn.WriteTo(frame, &packet.Addr{HardwareAddr: net.HardwareAddr(frame[:6])})
	if errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ENOBUFS) {
		return nil
	}
	return err
}
