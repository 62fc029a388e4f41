package hostflows

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/core/model"
)

// Flow is an entry of connection tracking, as far as it is looked at. An entry of another protocol than TCP and UDP has no ports.
type Flow struct {
	Protocol model.Protocol
	// Client began the flow, to the address VIP. Endpoint answers it, to the address Answered.
	Client, VIP, Endpoint, Answered   netip.Addr
	ClientPort, VIPPort, EndpointPort uint16
	Mark                              uint32
	// State is the TCP connection's (nl.TCP_CONNTRACK_...), 0 for what is none, and for what is in a flowtable now.
	State uint8
	// Expires is after how long, in whole seconds, connection tracking forgets the entry unless a packet comes.
	Expires time.Duration
}

// Frontend is where the flow went.
func (f *Flow) Frontend() model.FrontendKey {
	return model.FrontendKey{VIP: f.VIP, Protocol: f.Protocol, Port: f.VIPPort}
}

// IsRewritten reports whether connection tracking leads the flow elsewhere than it went.
func (f *Flow) IsRewritten() bool { return f.Endpoint != f.VIP || f.EndpointPort != f.VIPPort }

// EachTracked calls look with each entry of the family, and deletes the entry if look returns true. The Flow is valid until look returns.
//
// Each is read where it lies, and kept only to be deleted. The library's own way keeps all of them, and takes twice the time: 0.7 s of a
// processor for 100,000 entries.
func EachTracked(v4 bool, look func(*Flow) bool) error { return EachMarked(v4, 0, 0, look) }

// EachMarked is EachTracked for the entries whose mark equals mark in the bits of mask.
func EachMarked(v4 bool, mark, mask uint32, look func(*Flow) bool) error {
	family := uint8(unix.AF_INET6)
	if v4 {
		family = unix.AF_INET
	}
	request := conntrackRequest(family, nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
	if mask != 0 {
		request.AddData(nl.NewRtAttr(nl.CTA_MARK, binary.BigEndian.AppendUint32(nil, mark)))
		request.AddData(nl.NewRtAttr(ctaMarkMask, binary.BigEndian.AppendUint32(nil, mask)))
	}
	var doomed [][]byte
	err := request.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(entry []byte) bool {
		var f Flow
		if f.read(entry) && look(&f) {
			doomed = append(doomed, append([]byte(nil), entry[sizeofNfgenmsg:]...))
		}
		return true
	})
	if errors.Is(err, unix.ENOENT) {
		return nil // there is no connection tracking, and nothing that it knows
	}
	if err != nil {
		return fmt.Errorf("conntrack: %w", err)
	}
	failed, cause := 0, error(nil)
	for _, attributes := range doomed {
		request := conntrackRequest(family, nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK)
		request.AddRawData(attributes)
		if _, err := request.Execute(unix.NETLINK_NETFILTER, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			failed, cause = failed+1, err
		}
	}
	if failed > 0 {
		return fmt.Errorf("conntrack: delete %d of %d flows: %w", failed, len(doomed), cause)
	}
	return nil
}

// ctaMarkMask is CTA_MARK_MASK (linux/netfilter/nfnetlink_conntrack.h).
const ctaMarkMask = 21

// sizeofNfgenmsg is how long the header is before an entry's attributes (linux/netfilter/nfnetlink.h).
const sizeofNfgenmsg = 4

func conntrackRequest(family uint8, operation, flags int) *nl.NetlinkRequest {
	request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|operation, flags)
	request.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	return request
}

// read takes an entry (linux/netfilter/nfnetlink_conntrack.h), and tells whether it could.
func (f *Flow) read(entry []byte) bool {
	if len(entry) < sizeofNfgenmsg {
		return false
	}
	var number uint8
	for kind, value := range attributes(entry[sizeofNfgenmsg:]) {
		switch kind {
		case nl.CTA_TUPLE_ORIG:
			number, f.Client, f.VIP, f.ClientPort, f.VIPPort = tupleOf(value)
		case nl.CTA_TUPLE_REPLY:
			_, f.Endpoint, f.Answered, f.EndpointPort, _ = tupleOf(value)
		case nl.CTA_PROTOINFO:
			tcp := within(value, nl.CTA_PROTOINFO_TCP)
			if state := within(tcp, nl.CTA_PROTOINFO_TCP_STATE); len(state) == 1 {
				f.State = state[0]
			}
		case nl.CTA_TIMEOUT:
			if len(value) == 4 {
				f.Expires = time.Duration(binary.BigEndian.Uint32(value)) * time.Second
			}
		case nl.CTA_MARK:
			if len(value) == 4 {
				f.Mark = binary.BigEndian.Uint32(value)
			}
		}
	}
	f.Protocol = model.Protocol(number)
	return f.VIP.IsValid() && f.Endpoint.IsValid()
}

func tupleOf(tuple []byte) (protocol uint8, source, destination netip.Addr, sourcePort, destinationPort uint16) {
	for kind, value := range attributes(within(tuple, nl.CTA_TUPLE_IP)) {
		switch kind {
		case nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC:
			source, _ = netip.AddrFromSlice(value)
		case nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST:
			destination, _ = netip.AddrFromSlice(value)
		}
	}
	for kind, value := range attributes(within(tuple, nl.CTA_TUPLE_PROTO)) {
		switch {
		case kind == nl.CTA_PROTO_NUM && len(value) == 1:
			protocol = value[0]
		case kind == nl.CTA_PROTO_SRC_PORT && len(value) == 2:
			sourcePort = binary.BigEndian.Uint16(value)
		case kind == nl.CTA_PROTO_DST_PORT && len(value) == 2:
			destinationPort = binary.BigEndian.Uint16(value)
		}
	}
	return protocol, source, destination, sourcePort, destinationPort
}

// within is the value of an attribute among others, empty if it is not there.
func within(b []byte, wanted uint16) []byte {
	for kind, value := range attributes(b) {
		if kind == wanted {
			return value
		}
	}
	return nil
}

// attributes are those of a netlink message (libnl, "Attribute Format"): each has its length and kind in front, and is padded to four bytes.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	const header, kindMask = 4, 1<<14 - 1
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= header {
			length := int(binary.NativeEndian.Uint16(b))
			if length < header || length > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&kindMask, b[header:length]) {
				return
			}
			b = b[min((length+3)&^3, len(b)):]
		}
	}
}
