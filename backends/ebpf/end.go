package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// endTable is a table of nftables that is there while probes are sent.
const endTable = "kubelb-ebpf-end"

// endMark marks what end sends.
const endMark = 0x6b75656e

// end has peers that still wait for an answer find out that their connections, given by what they send, are over. A segment that fits nowhere makes a client
// say where it is (RFC 9293, 3.10.7.4), and who serves the VIP now, or the host, resets what it does not know. Without that a client
// whose request had been acknowledged would wait for ever.
func end(connections map[tuple]bool) error {
	if len(connections) == 0 {
		return nil
	}
	untrack, err := untrackMarked()
	if err != nil {
		return err
	}
	sockets := map[uint8]int{}
	defer func() {
		for _, s := range sockets {
			_ = unix.Close(s)
		}
	}()
	var errs []error
	for c := range connections {
		if _, open := sockets[c.Family]; !open {
			if sockets[c.Family], err = rawSocket(c.Family); err != nil {
				return errors.Join(err, untrack())
			}
		}
		if err := probe(sockets[c.Family], c); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errors.Join(errs...), untrack())
}

// rawSocket sends packets as they are, IP header included.
func rawSocket(family uint8) (int, error) {
	domain := unix.AF_INET6
	if family == ipv4 {
		domain = unix.AF_INET
	}
	s, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return 0, fmt.Errorf("socket to end connections with (needs CAP_NET_RAW): %w", err)
	}
	return s, unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_MARK, endMark)
}

// probe sends an empty segment to the peer that sends what the tuple says, a client or an endpoint.
func probe(socket int, c tuple) error {
	client, vip := c.Source.addr(c.Family), c.Destination.addr(c.Family)
	packet := probeOf(netip.AddrPortFrom(vip, c.DestinationPort.number()), netip.AddrPortFrom(client, c.SourcePort.number()))
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: client.As16()}
	if client.Is4() {
		to = &unix.SockaddrInet4{Addr: client.As4()}
	}
	if err := unix.Sendto(socket, packet, 0, to); err != nil {
		return fmt.Errorf("end the connection of %s to %s: %w", client, vip, err)
	}
	return nil
}

const tcpHeader = 20

// probeOf is an ACK, with numbers that fit no connection but by chance.
func probeOf(from, to netip.AddrPort) []byte {
	segment := make([]byte, tcpHeader)
	binary.BigEndian.PutUint16(segment[0:], from.Port())
	binary.BigEndian.PutUint16(segment[2:], to.Port())
	segment[12], segment[13] = tcpHeader/4<<4, 0x10
	sum := sumOf(sumOf(sumOf(uint32(unix.IPPROTO_TCP)+tcpHeader, from.Addr().AsSlice()), to.Addr().AsSlice()), segment)
	binary.BigEndian.PutUint16(segment[16:], folded(sum))
	if from.Addr().Is4() {
		ip := make([]byte, 20) // the kernel fills in length, identification and checksum (raw(7))
		ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_TCP
		copy(ip[12:], from.Addr().AsSlice())
		copy(ip[16:], to.Addr().AsSlice())
		return append(ip, segment...)
	}
	ip := make([]byte, 40)
	ip[0], ip[6], ip[7] = 0x60, unix.IPPROTO_TCP, 64
	binary.BigEndian.PutUint16(ip[4:], tcpHeader)
	copy(ip[8:], from.Addr().AsSlice())
	copy(ip[24:], to.Addr().AsSlice())
	return append(ip, segment...)
}

func sumOf(sum uint32, bytes []byte) uint32 {
	for i := 0; i < len(bytes); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(bytes[i:]))
	}
	return sum
}

// folded is the Internet checksum of a sum of 16-bit words (RFC 1071).
func folded(sum uint32) uint16 {
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// untrackMarked keeps what end sends from connection tracking, which would take the answers for those of a connection that the VIP
// began. It returns what removes it again.
func untrackMarked() (func() error, error) {
	c, err := nft.New()
	if err != nil {
		return nil, fmt.Errorf("connect to nftables: %w", err)
	}
	for _, family := range keepFamilies {
		table := c.AddTable(&nft.Table{Name: endTable, Family: family})
		chain := c.AddChain(&nft.Chain{Table: table, Name: endChain, Type: nft.ChainTypeFilter, Hooknum: nft.ChainHookOutput, Priority: nft.ChainPriorityRaw})
		c.AddRule(&nft.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, endMark)},
			&expr.Notrack{}}})
	}
	if err := c.Flush(); err != nil {
		return nil, fmt.Errorf("make nftables table %s: %w", endTable, err)
	}
	return func() error { return removeTables(endTable) }, nil
}
