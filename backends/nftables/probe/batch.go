// Package probe checks whether this kernel accepts the nftables rules of a dataplane, and names the missing module if it does
// not. It sends the rules in a batch without an end, as nft --check does: the kernel checks all of it, loads the modules that it
// needs, and discards it.
package probe

import (
	"encoding/binary"
	"errors"
	"fmt"

	nft "github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane/preflight"
)

// errCollected ends a transaction whose messages are collected and not sent.
var errCollected = errors.New("collected")

// messages returns the messages of the part's transaction.
func (p Part) messages() ([]netlink.Message, error) {
	var collected []netlink.Message
	c, err := nft.New(nft.WithTestDial(func(sent []netlink.Message) ([]netlink.Message, error) {
		if len(sent) > 0 { // it is also called to receive answers
			collected = sent
		}
		return nil, errCollected
	}))
	if err != nil {
		return nil, err
	}
	if err := p.Add(c); err != nil {
		return nil, err
	}
	if err := c.Flush(); err != nil && !errors.Is(err, errCollected) {
		return nil, err
	}
	if len(collected) < 2 {
		return nil, nil
	}
	return collected[1 : len(collected)-1], nil // without the begin and the end of the batch
}

// kernel tries a batch without an end. It returns the error numbers of refused messages, by their index.
type kernel func([]netlink.Message) (map[int]unix.Errno, error)

// tryBatch is the kernel of this thread's network namespace.
func tryBatch(messages []netlink.Message) (map[int]unix.Errno, error) {
	socket, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("netlink socket for netfilter: %w", err)
	}
	defer unix.Close(socket)
	// Answers without the original messages are short enough for the socket's buffer, even if there are hundreds.
	if err := unix.SetsockoptInt(socket, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1); err != nil {
		return nil, fmt.Errorf("netlink socket for netfilter: %w", err)
	}
	request, err := encode(messages)
	if err != nil {
		return nil, err
	}
	// A large layout needs more than the default maximum.
	_ = unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 2*len(request)+1<<16)
	if err := unix.Sendto(socket, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("send to nftables: %w", err)
	}
	return answers(socket)
}

// batchBegin is the first message of a batch.
func batchBegin() netlink.Message {
	return netlink.Message{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: netlink.Request}, Data: []byte{unix.AF_UNSPEC, 0, 0, unix.NFNL_SUBSYS_NFTABLES}}
}

// encode encodes the messages behind the begin of a batch. The begin has sequence number 0. The kernel answers only errors.
func encode(messages []netlink.Message) ([]byte, error) {
	var out []byte
	for i, m := range append([]netlink.Message{batchBegin()}, messages...) {
		m.Header.Sequence, m.Header.PID = uint32(i), 0
		m.Header.Flags &^= netlink.Acknowledge
		m.Header.Length = uint32(unix.SizeofNlMsghdr + len(m.Data))
		encoded, err := m.MarshalBinary()
		if err != nil {
			return nil, fmt.Errorf("encode nftables message: %w", err)
		}
		out = append(out, encoded...)
	}
	return out, nil
}

// answers reads the errors. The kernel has written all of them before Sendto returns.
func answers(socket int) (map[int]unix.Errno, error) {
	errs := map[int]unix.Errno{}
	buffer := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(socket, buffer, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			return errs, nil
		}
		if err != nil {
			return nil, fmt.Errorf("receive from nftables: %w", err)
		}
		if n < unix.SizeofNlMsghdr+unix.SizeofNlMsgerr || binary.NativeEndian.Uint16(buffer[4:]) != unix.NLMSG_ERROR {
			continue
		}
		errno := -int32(binary.NativeEndian.Uint32(buffer[unix.SizeofNlMsghdr:]))
		sequence := binary.NativeEndian.Uint32(buffer[unix.SizeofNlMsghdr+4+8:]) // in the header of the refused message
		if errno != 0 {
			errs[int(sequence)-1] = unix.Errno(errno)
		}
	}
}

// inNamespace calls f in its own network namespace, so that even the hooks of a chain that is never committed do not affect this host. If that is
// not allowed, it calls f in the current namespace.
func inNamespace(f func()) {
	if !preflight.InNetworkNamespace(f) {
		f()
	}
}
