// Package probe finds out whether this kernel takes the nftables rules that a dataplane is made of, and names the module that
// lacks where it does not. It sends the rules as a batch that ends without being committed, as nft --check does: the kernel looks
// at all of it, loads the modules that it needs, and drops it.
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

// errGathered ends a transaction that is to be looked at and not to be sent.
var errGathered = errors.New("gathered")

// messages is the part's transaction.
func (p Part) messages() ([]netlink.Message, error) {
	var gathered []netlink.Message
	c, err := nft.New(nft.WithTestDial(func(sent []netlink.Message) ([]netlink.Message, error) {
		if len(sent) > 0 { // it is called for answers as well
			gathered = sent
		}
		return nil, errGathered
	}))
	if err != nil {
		return nil, err
	}
	if err := p.Add(c); err != nil {
		return nil, err
	}
	if err := c.Flush(); err != nil && !errors.Is(err, errGathered) {
		return nil, err
	}
	if len(gathered) < 2 {
		return nil, nil
	}
	return gathered[1 : len(gathered)-1], nil // between the beginning and the end of the batch
}

// kernel tries a batch without its end. It returns an error number for each message that was refused, by the message's place.
type kernel func([]netlink.Message) (map[int]unix.Errno, error)

// try is the kernel of this thread's network namespace.
func try(messages []netlink.Message) (map[int]unix.Errno, error) {
	socket, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("netlink socket for netfilter: %w", err)
	}
	defer unix.Close(socket)
	// Without the messages that they are for, answers to hundreds of them find room.
	if err := unix.SetsockoptInt(socket, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1); err != nil {
		return nil, fmt.Errorf("netlink socket for netfilter: %w", err)
	}
	request, err := encode(messages)
	if err != nil {
		return nil, err
	}
	// Few kernels grant as much as a large layout needs without being forced to.
	_ = unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 2*len(request)+1<<16)
	if err := unix.Sendto(socket, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("send to nftables: %w", err)
	}
	return answers(socket)
}

// batchBegin is the message that a batch begins with.
func batchBegin() netlink.Message {
	return netlink.Message{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: netlink.Request}, Data: []byte{unix.AF_UNSPEC, 0, 0, unix.NFNL_SUBSYS_NFTABLES}}
}

// encode numbers the messages from 1 on, behind the beginning of a batch, which has number 0. Only errors are answered.
func encode(messages []netlink.Message) ([]byte, error) {
	var out []byte
	for i, m := range append([]netlink.Message{batchBegin()}, messages...) {
		m.Header.Sequence, m.Header.PID = uint32(i), 0
		m.Header.Flags &^= netlink.Acknowledge
		m.Header.Length = uint32(unix.SizeofNlMsghdr + len(m.Data))
		one, err := m.MarshalBinary()
		if err != nil {
			return nil, fmt.Errorf("encode nftables message: %w", err)
		}
		out = append(out, one...)
	}
	return out, nil
}

// answers reads the errors. The kernel has written all of them before the batch was sent.
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
		number := -int32(binary.NativeEndian.Uint32(buffer[unix.SizeofNlMsghdr:]))
		of := binary.NativeEndian.Uint32(buffer[unix.SizeofNlMsghdr+4+8:]) // the header of the message that it is for
		if number != 0 {
			errs[int(of)-1] = unix.Errno(number)
		}
	}
}

// inside calls f in a network namespace of its own, so that not even the hooks of a chain that is never committed touch this host. Where
// that is not allowed f is called in the present one.
func inside(f func()) {
	if !preflight.InOwnNetwork(f) {
		f()
	}
}
