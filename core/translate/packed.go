package translate

import (
	"encoding/binary"
	"net/netip"
	"strings"
)

// Packed is a list of targets in less memory: an IPv4 address takes 5 bytes and an IPv6 address 17, instead of 48 and 80 as text. Two lists with the same
// targets in the same order and notation are equal when they are packed.
type Packed string

// PackedTargets are the targets in a LoadBalancer itself. Comparing them costs as much as comparing two strings.
type PackedTargets struct{ Addresses, Local Packed }

// The first byte of a target says what follows: the bytes of an address, or two texts, each preceded by its length.
const (
	packedIPv4 = 4
	packedIPv6 = 6
	packedText = 0
	lengthSize = 4
)

// Pack packs a list.
func Pack(list []Address) Packed {
	size := 0
	for _, a := range list {
		size += packedSize(a)
	}
	if size == 0 {
		return ""
	}
	out := make([]byte, 0, size)
	for _, a := range list {
		address, plain := a.plain()
		kind := byte(packedIPv6)
		switch {
		case !plain:
			out = appendText(appendText(append(out, packedText), a.IP), a.Hostname)
			continue
		case address.Is4():
			kind = packedIPv4
		}
		out = append(append(out, kind), address.AsSlice()...)
	}
	return Packed(out)
}

func appendText(to []byte, text string) []byte {
	return append(binary.BigEndian.AppendUint32(to, uint32(len(text))), text...)
}

// packedSize returns how many bytes the packed target takes.
func packedSize(a Address) int {
	if address, plain := a.plain(); plain {
		return 1 + address.BitLen()/8
	}
	return 1 + 2*lengthSize + len(a.IP) + len(a.Hostname)
}

// plain returns the target's address, and whether the target can be restored from it: whether it has no host name and the usual notation.
func (a Address) plain() (netip.Addr, bool) {
	address, err := netip.ParseAddr(a.IP)
	return address, err == nil && a.Hostname == "" && address.Zone() == "" && address.String() == a.IP
}

// cut returns the first target, an address or else two texts, and the others.
func (p Packed) cut() (address netip.Addr, texts Address, rest Packed) {
	text := string(p[1:])
	switch p[0] {
	case packedIPv4:
		address, _ = netip.AddrFromSlice([]byte(text[:4]))
		text = text[4:]
	case packedIPv6:
		address, _ = netip.AddrFromSlice([]byte(text[:16]))
		text = text[16:]
	default:
		texts.IP, text = cutText(text)
		texts.Hostname, text = cutText(text)
	}
	return address, texts, Packed(text)
}

func cutText(from string) (text, rest string) {
	length := binary.BigEndian.Uint32([]byte(from[:lengthSize]))
	from = from[lengthSize:]
	return from[:length], from[length:]
}

// Unpack returns the list. It does not keep the packed one in memory.
func (p Packed) Unpack() []Address {
	out := make([]Address, 0, 1+len(p)/17) // it grows if there are IPv4 addresses
	for p != "" {
		var address netip.Addr
		var texts Address
		if address, texts, p = p.cut(); address.IsValid() {
			texts.IP = address.String()
		}
		out = append(out, Address{strings.Clone(texts.IP), strings.Clone(texts.Hostname)})
	}
	return out
}

// Each calls do with the address of each target that has one.
func (p Packed) Each(do func(netip.Addr)) {
	for p != "" {
		var address netip.Addr
		var texts Address
		if address, texts, p = p.cut(); !address.IsValid() {
			var err error
			if address, err = netip.ParseAddr(texts.IP); err != nil {
				continue
			}
		}
		do(address)
	}
}

// packed returns the LoadBalancer with its targets in Packed.
func (lb LoadBalancer) packed() LoadBalancer {
	if len(lb.Addresses) > 0 {
		lb.Packed.Addresses = Pack(lb.Addresses)
	}
	if lb.Addresses = nil; lb.Local == nil {
		return lb
	}
	if len(*lb.Local) > 0 {
		lb.Packed.Local = Pack(*lb.Local)
	}
	lb.Local = &[]Address{}
	return lb
}

// own returns the targets in Addresses, packed or not.
func (lb *LoadBalancer) own() []Address {
	if lb.Packed.Addresses != "" {
		return lb.Packed.Addresses.Unpack()
	}
	return lb.Addresses
}

// local returns the targets in Local, packed or not.
func (lb *LoadBalancer) local() []Address {
	switch {
	case lb.Local == nil:
		return nil
	case lb.Packed.Local != "":
		return lb.Packed.Local.Unpack()
	}
	return *lb.Local
}
