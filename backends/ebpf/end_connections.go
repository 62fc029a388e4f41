package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane/hostflows"
)

// untrackTable is an nftables table that exists while sendACK is used.
const untrackTable = "kubelb-ebpf-end"

// ackMark is the mark of packets that sendACK sends.
const ackMark = 0x6b75656e

// endConnections ends connections at clients and endpoints. They are given by the tuples of the packets that these send. It sends each of them an ACK with a wrong
// number, which a TCP stack answers with an ACK of its own (RFC 9293, 3.10.7.4). This gateway or another one does not know the connection, and answers that with a
// reset. Without it a client that waits for an answer would wait for ever.
func endConnections(connections map[tuple]bool) error {
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
		if err := sendACK(sockets[c.Family], c); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errors.Join(errs...), untrack())
}

// rawSocket opens a socket that sends packets with their IP header.
func rawSocket(family uint8) (int, error) {
	domain := unix.AF_INET6
	if family == ipv4 {
		domain = unix.AF_INET
	}
	s, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return 0, fmt.Errorf("socket to end connections with (needs CAP_NET_RAW): %w", err)
	}
	return s, unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_MARK, ackMark)
}

// sendACK sends an ACK to the client or endpoint that is the source of the tuple.
func sendACK(socket int, c tuple) error {
	client, vip := c.Source.addr(c.Family), c.Destination.addr(c.Family)
	packet := hostflows.Segment(hostflows.Connection{Local: netip.AddrPortFrom(vip, c.DestinationPort.number()), Remote: netip.AddrPortFrom(client, c.SourcePort.number())}, hostflows.ACK, 0)
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: client.As16()}
	if client.Is4() {
		to = &unix.SockaddrInet4{Addr: client.As4()}
	}
	if err := unix.Sendto(socket, packet, 0, to); err != nil {
		return fmt.Errorf("end the connection of %s to %s: %w", client, vip, err)
	}
	return nil
}

// untrackMarked excludes packets of sendACK from connection tracking, which would otherwise take the answers for answers to a connection that the VIP began. It returns a
// function that removes the rule.
func untrackMarked() (func() error, error) {
	c, err := nft.New()
	if err != nil {
		return nil, fmt.Errorf("connect to nftables: %w", err)
	}
	for _, family := range tableFamilies {
		table := c.AddTable(&nft.Table{Name: untrackTable, Family: family})
		chain := c.AddChain(&nft.Chain{Table: table, Name: untrackChain, Type: nft.ChainTypeFilter, Hooknum: nft.ChainHookOutput, Priority: nft.ChainPriorityRaw})
		c.AddRule(&nft.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, ackMark)},
			&expr.Notrack{}}})
	}
	if err := c.Flush(); err != nil {
		return nil, fmt.Errorf("create nftables table %s: %w", untrackTable, err)
	}
	return func() error { return removeTables(untrackTable) }, nil
}
