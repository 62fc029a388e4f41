package ebpf

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"kubelb.k8c.io/core/model"
)

// address is an address in the maps: an IPv4 address is in the last four bytes.
type address [16]byte

func addressOf(a netip.Addr) (out address) {
	bytes := a.AsSlice()
	copy(out[len(out)-len(bytes):], bytes)
	return out
}

// Values of enum family in bpf/model.h.
const (
	ipv4 = 4
	ipv6 = 6
)

func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

// port is in network order.
type port [2]byte

func portOf(number uint16) (out port) {
	binary.BigEndian.PutUint16(out[:], number)
	return out
}

func (p port) number() uint16 { return binary.BigEndian.Uint16(p[:]) }

// The structures of bpf/model.h.
type (
	addressKey struct {
		Address address
		Family  uint32
	}
	frontendKey struct {
		VIP              address
		Port             port
		Protocol, Family uint8
	}
	service struct {
		Generation, Pool   uint32
		TargetPort         port
		Forwarding, Checks uint8
		Affinity, Idle     uint32
	}
	endpoint struct {
		Address, Source              address
		Generation, State, LastSweep uint32
	}
	rangeKey struct {
		Length, Service uint32
		Source          address
	}
	memberKey struct {
		Pool     uint32
		Endpoint address
	}
	clientKey struct {
		Service uint32
		Client  address
	}
	affinity struct {
		Endpoint address
		Seen     uint32
	}
	tuple struct {
		Source, Destination         address
		SourcePort, DestinationPort port
		Protocol, Family            uint8
		_                           uint16
	}
	flow struct {
		Source, Destination          address
		SourcePort, DestinationPort  port
		Service, ServiceGeneration   uint32
		Endpoint, EndpointGeneration uint32
		Seen                         uint32
		State, Forwarding            uint8
		Started                      uint16
	}
	limit struct {
		MaxFlows, MaxNewPerSecond uint32
		Flows                     int32
		Second, NewInSecond       uint32
		Drift, Counted            int32
	}
	redirect struct {
		Next         address
		MaxRedirects uint8
		_            [3]uint8
	}
	counter struct {
		Connections, Packets, Bytes uint64
	}
	networkInterface struct {
		MAC                   [6]byte
		HasXDP, AcceptsFrames uint8
	}
	ended struct {
		Client, Answers tuple
	}
	sweepRun struct {
		Stamp, Kept, Removed, Now uint32
	}
	settings struct {
		FirstPort, Ports uint16
		Transparent      uint8
		Closing          uint8
		_                [2]byte
	}
)

// Roles of addresses.
const (
	roleVIP      = 1
	roleSource   = 2
	roleEndpoint = 4
)

// Checks before a new flow is created.
const (
	checkSource = 1
	checkLimits = 2
)

// States of flows.
const (
	stateReply  = 1
	stateClosed = 4
)

// States of endpoints.
const (
	endpointUnused = iota
	endpointConnectionsOnly
	endpointNoNewFlows
	endpointActive
)

func addressKeyOf(a netip.Addr) addressKey {
	return addressKey{Address: addressOf(a), Family: uint32(familyOf(a))}
}

func frontendKeyOf(k model.FrontendKey) frontendKey {
	return frontendKey{VIP: addressOf(k.VIP), Port: portOf(k.Port), Protocol: uint8(k.Protocol), Family: familyOf(k.VIP)}
}

// Records that only the plugin reads. The next process adopts the maps with their help.
type (
	// numbers are the last allocated numbers, and the layout of the maps.
	numbers struct{ Layout, Pool, Service, Endpoint, Generation uint32 }

	poolRecord struct {
		Digest digest
		ID     [maxPoolName]byte
	}
	// endpointRecord has pool 0 if the endpoint is removed.
	endpointRecord struct {
		Pool uint32
		ID   [maxEndpointName]byte
	}
	serviceRecord struct {
		Key    frontendKey
		Digest digest
	}
)

// The maximum lengths of the names of pools and endpoints.
const maxPoolName, maxEndpointName = 128, 256

// maxInterfaces is MAX_INTERFACES of bpf/model.h. Interfaces with a higher index have no XDP program.
const maxInterfaces = 1 << 12

// zeroCounter is the value of a write that resets counters.
type zeroCounter struct{}

// digest is a model.Digest.
type digest [24]byte

func digestOf(d model.Digest) (out digest) {
	copy(out[:], d)
	return out
}

// nameOf returns the text before the first zero byte.
func nameOf(bytes []byte) string {
	text, _, _ := strings.Cut(string(bytes), "\x00")
	return text
}

func (a address) addr(family uint8) netip.Addr {
	if family == ipv4 {
		return netip.AddrFrom4([4]byte(a[12:]))
	}
	return netip.AddrFrom16(a)
}

func (k frontendKey) model() model.FrontendKey {
	return model.FrontendKey{VIP: k.VIP.addr(k.Family), Protocol: model.Protocol(k.Protocol), Port: binary.BigEndian.Uint16(k.Port[:])}
}

func rangeKeyOf(service uint32, p netip.Prefix) rangeKey {
	bits := p.Bits() + 32
	if p.Addr().Is4() {
		bits += 96
	}
	return rangeKey{Length: uint32(bits), Service: service, Source: addressOf(p.Masked().Addr())}
}

func (k rangeKey) prefix(family uint8) netip.Prefix {
	bits := int(k.Length) - 32
	if family == ipv4 {
		bits -= 96
	}
	return netip.PrefixFrom(k.Source.addr(family), bits)
}
