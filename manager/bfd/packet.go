// Package bfd detects within less than a second that a router is gone, and lets routers detect that this host is: bidirectional forwarding
// detection (RFC 5880) in asynchronous mode, without authentication, for neighbours on the same link (RFC 5881).
package bfd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// State of a session (RFC 5880, section 4.1).
type State uint8

// The states.
const (
	AdminDown State = iota
	Down
	Init
	Up
)

// String returns the name of the state in RFC 5880.
func (s State) String() string {
	if names := []string{"AdminDown", "Down", "Init", "Up"}; int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Diagnostics: why a session went down.
const (
	noDiagnostic     = 0
	timeExpired      = 1
	neighborSaysDown = 3
	administrative   = 7
)

// packet is a control packet.
type packet struct {
	state       State
	diagnostic  uint8
	poll, final bool
	// mine is the discriminator of the sender. yours is that of the receiver, 0 if the sender does not know it.
	multiplier   uint8
	mine, yours  uint32
	minTx, minRx time.Duration
}

const (
	packetLength = 24
	version      = 1

	flagPoll, flagFinal, flagAuthentication, flagMultipoint = 0x20, 0x10, 0x04, 0x01
)

// bytes encodes the packet.
func (p packet) bytes() []byte {
	b := make([]byte, packetLength)
	b[0] = version<<5 | p.diagnostic
	b[1] = byte(p.state) << 6
	if p.poll {
		b[1] |= flagPoll
	}
	if p.final {
		b[1] |= flagFinal
	}
	b[2], b[3] = p.multiplier, packetLength
	binary.BigEndian.PutUint32(b[4:], p.mine)
	binary.BigEndian.PutUint32(b[8:], p.yours)
	binary.BigEndian.PutUint32(b[12:], uint32(p.minTx.Microseconds()))
	binary.BigEndian.PutUint32(b[16:], uint32(p.minRx.Microseconds()))
	return b
}

// parse decodes a packet, or returns why it has to be discarded (RFC 5880, section 6.8.6).
func parse(b []byte) (p packet, err error) {
	if len(b) < packetLength {
		return p, fmt.Errorf("%d bytes", len(b))
	}
	if v := b[0] >> 5; v != version {
		return p, fmt.Errorf("version %d", v)
	}
	if n := int(b[3]); n < packetLength || n > len(b) {
		return p, fmt.Errorf("length %d in %d bytes", n, len(b))
	}
	if b[1]&(flagAuthentication|flagMultipoint) != 0 {
		return p, errors.New("authentication or multipoint, which is not supported")
	}
	p = packet{state: State(b[1] >> 6), diagnostic: b[0] & 0x1f, poll: b[1]&flagPoll != 0, final: b[1]&flagFinal != 0, multiplier: b[2],
		mine: binary.BigEndian.Uint32(b[4:]), yours: binary.BigEndian.Uint32(b[8:]),
		minTx: time.Duration(binary.BigEndian.Uint32(b[12:])) * time.Microsecond, minRx: time.Duration(binary.BigEndian.Uint32(b[16:])) * time.Microsecond}
	switch {
	case p.multiplier == 0:
		return p, errors.New("detection multiplier 0")
	case p.mine == 0:
		return p, errors.New("discriminator 0")
	case p.yours == 0 && p.state != Down && p.state != AdminDown:
		return p, fmt.Errorf("state %s with discriminator 0 for the receiver", p.state)
	}
	return p, nil
}
