package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// ICMPError is an ICMP error message about a packet (RFC 792, RFC 4443).
type ICMPError struct {
	ICMPErrorKind
	From, To netip.Addr
	// Quoted is the beginning of the packet that the message is about.
	Quoted []byte
	// Invalid says which checksums of a received message are wrong. A sent message gets a wrong checksum if it is not empty.
	Invalid string
}

// ICMPErrorKind says what an ICMP error reports.
type ICMPErrorKind struct {
	Type, Code uint8
	// Second is the second word of the message: an MTU, or a pointer.
	Second uint32
}

// String returns type, code and second word.
func (k ICMPErrorKind) String() string {
	return fmt.Sprintf("ICMP type %d code %d word %#x", k.Type, k.Code, k.Second)
}

// String describes the message in one line.
func (e ICMPError) String() string {
	about := "nothing"
	if p, ok := parse(e.Quoted); ok {
		about = fmt.Sprintf("%s > %s protocol %d, %d bytes", p.Source, p.Target, p.Protocol, len(e.Quoted))
	}
	return fmt.Sprintf("%s, %s > %s, about %s", e.ICMPErrorKind, e.From, e.To, about)
}

// Kinds of ICMP errors that tests name.
const (
	unreachable4, timeExceeded4, parameterProblem4          = 3, 11, 12
	unreachable6, tooBig6, timeExceeded6, parameterProblem6 = 1, 2, 3, 4
)

// TooBig says that a packet is larger than the MTU of the next link.
func TooBig(v4 bool, mtu uint32) ICMPErrorKind {
	if v4 {
		return ICMPErrorKind{unreachable4, 4, mtu}
	}
	return ICMPErrorKind{tooBig6, 0, mtu}
}

// HostUnreachable says that a router has no way to the host.
func HostUnreachable(v4 bool) ICMPErrorKind {
	if v4 {
		return ICMPErrorKind{Type: unreachable4, Code: 1}
	}
	return ICMPErrorKind{Type: unreachable6, Code: 3}
}

// PortUnreachable says that the host has no socket for the packet.
func PortUnreachable(v4 bool) ICMPErrorKind {
	if v4 {
		return ICMPErrorKind{Type: unreachable4, Code: 3}
	}
	return ICMPErrorKind{Type: unreachable6, Code: 4}
}

// ICMPErrorKinds returns the kinds that hosts and routers send: destination unreachable with its codes, packet too big, time exceeded and
// parameter problem.
func ICMPErrorKinds(v4 bool) []ICMPErrorKind {
	out := []ICMPErrorKind{TooBig(v4, 1400)}
	add := func(kind uint8, codes ...uint8) {
		for _, code := range codes {
			out = append(out, ICMPErrorKind{Type: kind, Code: code})
		}
	}
	if v4 {
		add(unreachable4, 0, 1, 2, 3, 5, 9, 10, 13)
		add(timeExceeded4, 0, 1)
		add(parameterProblem4, 1, 2)
		return append(out, extendedError(v4), ICMPErrorKind{parameterProblem4, 0, 9 << 24}) // the pointer is a byte
	}
	add(unreachable6, 0, 1, 2, 3, 4, 5, 6)
	add(timeExceeded6, 0, 1)
	add(parameterProblem6, 1, 2)
	return append(out, extendedError(v4), ICMPErrorKind{parameterProblem6, 0, 6}) // the pointer is a word
}

// extendedLength is the length of the quotation in an error with an extension.
const extendedLength = 128

// extendedError is the kind of an error that quotes 128 bytes, before an extension such as the labels of MPLS (RFC 4884). The message has the
// length in words: for IPv4 of 32 bits in its sixth byte, for IPv6 of 64 bits in its fifth.
func extendedError(v4 bool) ICMPErrorKind {
	if v4 {
		return ICMPErrorKind{timeExceeded4, 0, extendedLength / 4 << 16}
	}
	return ICMPErrorKind{timeExceeded6, 0, extendedLength / 8 << 24}
}

// Extension returns the length of the quotation and the extension that follows it, if errors of this kind have one.
func (k ICMPErrorKind) Extension() (length int, extension []byte) {
	if k != extendedError(true) && k != extendedError(false) {
		return 0, nil
	}
	// Version 2, and an object of a class for private use.
	extension = []byte{2 << 4, 0, 0, 0, 0, 8, 247, 1, 'k', 'u', 'b', 'e'}
	binary.BigEndian.PutUint16(extension[2:], checksum(extension))
	return extendedLength, extension
}

// isICMPError reports whether a message of this type is an error or a redirect of IPv4.
func isICMPError(p Packet) bool {
	if p.Protocol == ICMP {
		return p.ICMPType >= 3 && p.ICMPType <= 5 || p.ICMPType == timeExceeded4 || p.ICMPType == parameterProblem4
	}
	return p.Protocol == ICMPv6 && p.ICMPType < 128
}

// bytes returns the message as an IP packet.
func (e ICMPError) bytes() []byte {
	message := make([]byte, 8, 8+len(e.Quoted))
	message[0], message[1] = e.Type, e.Code
	binary.BigEndian.PutUint32(message[4:], e.Second)
	message = append(message, e.Quoted...)
	header := make([]byte, 20)
	var pseudo []byte
	if e.To.Is4() {
		header[0], header[8], header[9] = 4<<4|5, 64, ICMP
		binary.BigEndian.PutUint16(header[2:], uint16(len(header)+len(message)))
		copy(header[12:], e.From.AsSlice())
		copy(header[16:], e.To.AsSlice())
		binary.BigEndian.PutUint16(header[10:], checksum(header))
	} else {
		header = make([]byte, 40)
		header[0], header[6], header[7] = 6<<4, ICMPv6, 64
		binary.BigEndian.PutUint16(header[4:], uint16(len(message)))
		copy(header[8:], e.From.AsSlice())
		copy(header[24:], e.To.AsSlice())
		pseudo = pseudoHeader(header, len(message))
	}
	sum := checksum(pseudo, message)
	if e.Invalid != "" {
		sum ^= 0x0101
	}
	binary.BigEndian.PutUint16(message[2:], sum)
	return append(header, message...)
}

// SetIPv4Checksum writes the checksum of the header of an IPv4 packet without options.
func SetIPv4Checksum(packet []byte) {
	packet[10], packet[11] = 0, 0
	binary.BigEndian.PutUint16(packet[10:], checksum(packet[:20]))
}

// pseudoHeader is what the checksum of an ICMPv6 message covers of the IPv6 header.
func pseudoHeader(header []byte, length int) []byte {
	out := binary.BigEndian.AppendUint32(append([]byte{}, header[8:40]...), uint32(length))
	return binary.BigEndian.AppendUint32(out, ICMPv6)
}

// parseICMPError reads an ICMP error without IP options or extension headers.
func parseICMPError(b []byte) (ICMPError, bool) {
	p, ok := parse(b)
	header := 20
	if ok && p.Source.Addr().Is6() {
		header = 40
	}
	if !ok || !isICMPError(p) || len(b) < header+8 {
		return ICMPError{}, false
	}
	message := b[header:]
	e := ICMPError{ICMPErrorKind: ICMPErrorKind{message[0], message[1], binary.BigEndian.Uint32(message[4:])},
		From: p.Source.Addr(), To: p.Target.Addr(), Quoted: append([]byte{}, message[8:]...)}
	var pseudo []byte
	if header == 40 {
		pseudo = pseudoHeader(b, len(message))
	} else if checksum(b[:header]) != 0 {
		e.Invalid += "the IP checksum is wrong; "
	}
	if checksum(pseudo, message) != 0 {
		e.Invalid += "the ICMP checksum is wrong; "
	}
	if len(e.Quoted) >= 20 && e.Quoted[0]>>4 == 4 && e.Quoted[0]&15 == 5 && checksum(e.Quoted[:20]) != 0 {
		e.Invalid += "the checksum of the quoted IP header is wrong; "
	}
	return e, true
}

// SendICMPErrors sends messages of one family from the host, whatever their source addresses are.
func (h *Host) SendICMPErrors(messages ...ICMPError) error {
	return h.Do(func() error {
		family := unix.AF_INET
		if messages[0].To.Is6() {
			family = unix.AF_INET6
		}
		// The socket takes whole packets, with their IP headers (raw(7)).
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return fmt.Errorf("send ICMP errors: %w", err)
		}
		errs := []error{}
		for _, e := range messages {
			if err := unix.Sendto(fd, e.bytes(), 0, e.sockaddr()); err != nil {
				errs = append(errs, fmt.Errorf("send %s: %w", e, err))
			}
		}
		return errors.Join(append(errs, unix.Close(fd))...)
	})
}

func (e ICMPError) sockaddr() unix.Sockaddr {
	if e.To.Is4() {
		return &unix.SockaddrInet4{Addr: e.To.As4()}
	}
	return &unix.SockaddrInet6{Addr: e.To.As16()}
}

// ICMPErrors are the ICMP errors that a host receives.
type ICMPErrors struct {
	capture  *Capture
	received chan ICMPError
}

// ReceiveICMPErrors starts to collect the ICMP errors that the host receives. Close ends it.
func (h *Host) ReceiveICMPErrors() (*ICMPErrors, error) {
	out := &ICMPErrors{received: make(chan ICMPError, 1000)}
	var err error
	out.capture, err = h.Capture(func(p Packet) bool {
		if e, ok := parseICMPError(p.Bytes); ok && !p.Out {
			select {
			case out.received <- e:
			default: // nobody reads so many
			}
		}
		return false
	})
	return out, err
}

// Next waits for the next message. It returns false if there is none within that time.
func (r *ICMPErrors) Next(within time.Duration) (ICMPError, bool) {
	select {
	case e := <-r.received:
		return e, true
	case <-time.After(within):
		return ICMPError{}, false
	}
}

// Close ends the collection and returns the messages that nobody has read.
func (r *ICMPErrors) Close() []ICMPError {
	r.capture.Close()
	close(r.received)
	var rest []ICMPError
	for e := range r.received {
		rest = append(rest, e)
	}
	return rest
}
