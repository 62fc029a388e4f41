package announce

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/manager/uplink"
)

const (
	etherTypeARP        = 0x0806
	etherTypeIPv6       = 0x86dd
	maxFrame            = 2048
	ethernetHeader      = 14
	arpLength           = 28
	ipv6Header          = 40
	ipv6NextHeader      = 6 // offset
	solicitation        = 135
	advertisement       = 136
	flagSolicited  byte = 0x40
	flagOverride   byte = 0x20
)

var (
	allNodes    = netip.MustParseAddr("ff02::1")
	allNodesMAC = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	broadcast   = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	noMAC       = net.HardwareAddr{0, 0, 0, 0, 0, 0}
)

// passAllFrames is a filter that passes all frames of a socket for ARP.
func passAllFrames() []bpf.Instruction { return []bpf.Instruction{bpf.RetConstant{Val: maxFrame}} }

// onlyNeighbourDiscovery is a filter that passes only neighbour solicitations and advertisements. Without it, the socket would get a copy of each IPv6
// packet that the gateway forwards, and would lose solicitations.
func onlyNeighbourDiscovery() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: ethernetHeader + ipv6NextHeader, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_ICMPV6, SkipFalse: 4},
		bpf.LoadAbsolute{Off: ethernetHeader + ipv6Header, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: solicitation, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: advertisement, SkipFalse: 1},
		bpf.RetConstant{Val: maxFrame},
		bpf.RetConstant{Val: 0},
	}
}

// send sends a frame to its destination MAC address.
func send(c *packet.Conn, frame []byte) error {
	_, err := c.WriteTo(frame, &packet.Addr{HardwareAddr: net.HardwareAddr(frame[:6])})
	return err
}

// arpFrame returns an ARP packet that says that the address is at the MAC address from.
func arpFrame(from net.HardwareAddr, operation uint16, to net.HardwareAddr, address netip.Addr, target net.HardwareAddr, targetAddress netip.Addr) []byte {
	b := append(append([]byte{}, to...), from...)
	b = binary.BigEndian.AppendUint16(b, etherTypeARP)
	b = append(b, 0, 1, 8, 0, 6, 4)
	b = binary.BigEndian.AppendUint16(b, operation)
	b = append(append(b, from...), address.AsSlice()...)
	return append(append(b, target...), targetAddress.AsSlice()...)
}

// announcementOf returns a gratuitous ARP request, which more hosts accept than a reply, or an unsolicited advertisement.
func announcementOf(from net.HardwareAddr, a netip.Addr) []byte {
	if a.Is4() {
		return arpFrame(from, 1, broadcast, a, noMAC, a)
	}
	return advertisementOf(from, allNodesMAC, allNodes, a, flagOverride)
}

// queryFor returns an ARP probe (RFC 5227 section 2.1.1), or a neighbour solicitation for duplicate address detection (RFC 4862 section 5.4.2). Neither
// announces the address.
func queryFor(from net.HardwareAddr, a netip.Addr) []byte {
	if a.Is4() {
		return arpFrame(from, 1, broadcast, netip.IPv4Unspecified(), noMAC, a)
	}
	return solicitationOf(from, a)
}

// solicitationOf returns a neighbour solicitation for the address, from the unspecified address.
func solicitationOf(from net.HardwareAddr, a netip.Addr) []byte {
	group, low := uplink.SolicitedNode(a), a.As16()
	to := net.HardwareAddr{0x33, 0x33, 0xff, low[13], low[14], low[15]}
	return icmp6Frame(from, to, netip.IPv6Unspecified(), group, append([]byte{solicitation, 0, 0, 0, 0, 0, 0, 0}, low[:]...))
}

// advertisementOf returns a neighbour advertisement from the address itself, with the MAC address from as the target's.
func advertisementOf(from, mac net.HardwareAddr, to, address netip.Addr, flags byte) []byte {
	icmp := append([]byte{advertisement, 0, 0, 0, flags, 0, 0, 0}, address.AsSlice()...)
	return icmp6Frame(from, mac, address, to, append(append(icmp, 2, 1), from...))
}

// icmp6Frame returns a frame with an ICMPv6 message, to which it adds the checksum.
func icmp6Frame(fromMAC, mac net.HardwareAddr, from, to netip.Addr, icmp []byte) []byte {
	binary.BigEndian.PutUint16(icmp[2:], checksum(from, to, icmp))
	b := append(append([]byte{}, mac...), fromMAC...)
	b = binary.BigEndian.AppendUint16(b, etherTypeIPv6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(icmp)))
	b = append(b, unix.IPPROTO_ICMPV6, 255)
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	return append(b, icmp...)
}

// checksum returns the checksum of ICMPv6, over the pseudo header (RFC 8200 section 8.1).
func checksum(from, to netip.Addr, icmp []byte) uint16 {
	b := append(append(from.AsSlice(), to.AsSlice()...), 0, 0, byte(len(icmp)>>8), byte(len(icmp)), 0, 0, 0, unix.IPPROTO_ICMPV6)
	return uplink.Checksum(append(b, icmp...))
}

// answerARP returns the reply to an ARP request for an address of ours; nil for no reply. It also passes the sender's address to observe.
func (l *Layer2) answerARP(k *link, frame []byte) []byte {
	if len(frame) < ethernetHeader+arpLength {
		return nil
	}
	p := frame[ethernetHeader:]
	if [4]byte(p[2:6]) != [4]byte{8, 0, 6, 4} {
		return nil
	}
	senderMAC, target, sender := net.HardwareAddr(p[8:14]), netip.AddrFrom4([4]byte(p[24:28])), netip.AddrFrom4([4]byte(p[14:18]))
	l.observe(sender, senderMAC)
	mac, owns := l.owns(k, target)
	if binary.BigEndian.Uint16(p[6:]) != 1 || !owns || sender == target {
		return nil
	}
	return arpFrame(mac, 2, senderMAC, target, senderMAC, sender)
}

// answerNDP returns the advertisement for a solicitation for an address of ours, also in duplicate address detection; nil for no answer. It also passes the
// sender's address to observe.
func (l *Layer2) answerNDP(k *link, frame []byte) []byte {
	const solicitationLength = 24
	if len(frame) < ethernetHeader+ipv6Header+solicitationLength {
		return nil
	}
	ip := frame[ethernetHeader:]
	icmp := ip[ipv6Header:]
	// Next header ICMPv6, hop limit 255 (RFC 4861 section 7.1.1), type and code.
	if ip[ipv6NextHeader] != unix.IPPROTO_ICMPV6 || ip[7] != 255 || icmp[1] != 0 {
		return nil
	}
	target, source := netip.AddrFrom16([16]byte(icmp[8:24])), netip.AddrFrom16([16]byte(ip[8:24]))
	claimed := source
	if icmp[0] == advertisement {
		claimed = target
	}
	l.observe(claimed, net.HardwareAddr(frame[6:12]))
	mac, owns := l.owns(k, target)
	if icmp[0] != solicitation || !owns {
		return nil
	}
	if source.IsUnspecified() {
		return advertisementOf(mac, allNodesMAC, allNodes, target, flagOverride)
	}
	return advertisementOf(mac, net.HardwareAddr(frame[6:12]), source, target, flagSolicited|flagOverride)
}
