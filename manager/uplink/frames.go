package uplink

import (
	"encoding/binary"
	"fmt"
	"net"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// ForThisHost extends a filter to drop frames for another host, and frames of a VLAN. The kernel also passes to packet sockets the frames of VLANs without
// an interface, without their tag and as frames for another host, and all frames of an interface in promiscuous mode. A tag with VLAN 0 has only a priority,
// and is no VLAN (IEEE 802.1Q).
func ForThisHost(filter []bpf.Instruction) []bpf.Instruction {
	const noVLAN, maskVLAN = 0, 0xfff
	return append([]bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PACKET_OTHERHOST, SkipTrue: 5},
		bpf.LoadExtension{Num: bpf.ExtVLANTagPresent},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 4},
		bpf.LoadExtension{Num: bpf.ExtVLANTag},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: maskVLAN},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: noVLAN, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
	}, filter...)
}

// Listen opens a packet socket for frames of an EtherType for this host that pass the filter.
func Listen(s State, etherType int, filter []bpf.Instruction) (*packet.Conn, error) {
	assembled, err := bpf.Assemble(ForThisHost(filter))
	if err != nil {
		return nil, fmt.Errorf("filter of frames: %w", err)
	}
	return packet.Listen(&net.Interface{Index: s.Index, HardwareAddr: s.MAC}, packet.Raw, etherType, &packet.Config{Filter: assembled})
}

// Checksum returns the internet checksum (RFC 1071).
func Checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
