package headers

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// Kinds of TCP options (IANA).
const (
	KindMSS           = 2
	KindWindowScale   = 3
	KindSACKPermitted = 4
	KindSACK          = 5
	KindTimestamps    = 8
	KindUserTimeout   = 28
	KindFastOpen      = 34
	KindExperiment    = 253
)

// Option is one option of a TCP header. Padding is no option.
type Option struct {
	Kind uint8
	Data []byte
}

// MSS is the maximum segment size (RFC 9293).
func MSS(size uint16) Option { return Option{KindMSS, binary.BigEndian.AppendUint16(nil, size)} }

// WindowScale is the shift of windows (RFC 7323).
func WindowScale(shift uint8) Option { return Option{KindWindowScale, []byte{shift}} }

// SACKPermitted announces selective acknowledgements (RFC 2018).
func SACKPermitted() Option { return Option{Kind: KindSACKPermitted} }

// SACK has the edges of blocks, two for each block.
func SACK(edges ...uint32) Option {
	o := Option{Kind: KindSACK}
	for _, e := range edges {
		o.Data = binary.BigEndian.AppendUint32(o.Data, e)
	}
	return o
}

// Timestamps has the sender's clock and an echo of the peer's (RFC 7323).
func Timestamps(value, echo uint32) Option {
	return Option{KindTimestamps, binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, value), echo)}
}

// FastOpen has a cookie; without a cookie it requests one (RFC 7413).
func FastOpen(cookie ...byte) Option { return Option{KindFastOpen, cookie} }

// Options returns the options as they are in a header, with no-operations as padding.
func Options(options ...Option) []byte {
	var out []byte
	for _, o := range options {
		out = append(append(out, o.Kind, byte(2+len(o.Data))), o.Data...)
	}
	for len(out)%4 != 0 {
		out = append(out, 1)
	}
	return out
}

// ParseOptions returns the options of a TCP header. An option that is longer than the header ends the list, without its data.
func ParseOptions(b []byte) []Option {
	var out []Option
	for i := 0; i < len(b) && b[i] != 0; {
		if b[i] == 1 {
			i++
			continue
		}
		if i+1 >= len(b) || b[i+1] < 2 || i+int(b[i+1]) > len(b) {
			return append(out, Option{Kind: b[i]})
		}
		length := int(b[i+1])
		out = append(out, Option{b[i], b[i+2 : i+length]})
		i += length
	}
	return out
}

// Option returns the packet's first TCP option of a kind.
func (p Packet) Option(kind uint8) (Option, bool) {
	for _, o := range ParseOptions(p.TCPOptions) {
		if o.Kind == kind {
			return o, true
		}
	}
	return Option{}, false
}

var kindNames = map[uint8]string{KindMSS: "MSS", KindWindowScale: "window scale", KindSACKPermitted: "SACK permitted", KindSACK: "SACK",
	KindTimestamps: "timestamps", KindUserTimeout: "user timeout", KindFastOpen: "Fast Open"}

// String describes the option, such as "MSS 05b4".
func (o Option) String() string {
	name := kindNames[o.Kind]
	if name == "" {
		name = fmt.Sprintf("kind %d", o.Kind)
	}
	return strings.TrimSpace(fmt.Sprintf("%s %x", name, o.Data))
}

var flagNames = [...]string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR", "AE", "reserved 1", "reserved 2", "reserved 3"}

func flagsText(flags uint16) string {
	var out []string
	for i, name := range flagNames {
		if flags&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	if len(out) == 0 {
		return "no flags"
	}
	return strings.Join(out, ",")
}
