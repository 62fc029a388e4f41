package uplink

import (
	"encoding/binary"
	"fmt"
	"net"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// ForThisHost has a filter, which returns what it gives of a frame, give none that is for another host or of a VLAN. The kernel gives packet sockets
// what no interface of a VLAN takes, without its tag and as if it were for another host, and what comes to an interface in promiscuous mode. A tag
// without a VLAN, which has a priority alone, is none (IEEE 802.1Q).
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

// Listen opens a packet socket for frames of an EtherType that come to the interface for this host, as the filter says.
func Listen(s State, etherType int, filter []bpf.Instruction) (*packet.Conn, error) {
	assembled, err := bpf.Assemble(ForThisHost(filter))
	if err != nil {
		return nil, fmt.Errorf("filter of frames: %w", err)
	}
	return packet.Listen(&net.Interface{Index: s.Index, HardwareAddr: s.MAC}, packet.Raw, etherType, &packet.Config{Filter: assembled})
}

// Checksum is that of the internet protocols (RFC 1071).
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
