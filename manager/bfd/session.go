package bfd

import (
	"math/rand/v2"
	"time"
)

// Timers of a session: the interval of packets, and the number of intervals without a packet after which the other side is gone.
type Timers struct {
	Interval   time.Duration
	Multiplier uint8
}

// slowInterval is the shortest interval of packets while a session is not up (RFC 5880, section 6.8.3).
const slowInterval = time.Second

// machine is the state machine of one session. It has no clock and no I/O.
type machine struct {
	timers     Timers
	state      State
	diagnostic uint8
	mine       uint32
	// The next fields are from the last packet of the other side.
	yours      uint32
	minTx      time.Duration
	minRx      time.Duration
	multiplier uint8
	// polling: the other side has not confirmed our new interval yet.
	polling bool
}

// newMachine returns a new session. mine is its discriminator, which is unique on this host.
func newMachine(t Timers, mine uint32) *machine {
	// The initial value is one microsecond (RFC 5880, section 6.8.1).
	return &machine{timers: t, state: Down, mine: mine, minRx: time.Microsecond}
}

// accepts reports whether a session in this state accepts the packet. A sender that names the session's discriminator has received packets of this
// side. A packet without discriminator may begin a session (RFC 5880, section 6.8.6), but must not end one: each host on the link can forge it. If a
// neighbour really starts again, it does not send the discriminator any more, and the session ends by the detection time.
func accepts(p packet, mine uint32, s State) bool {
	return p.yours == mine || p.yours == 0 && s != Up
}

// receive handles a packet, and returns the answer that has to be sent at once, if any. A packet that is not accepted changes nothing, and does not
// restart the detection time.
func (m *machine) receive(p packet) (answer *packet, accepted bool) {
	if !accepts(p, m.mine, m.state) {
		return nil, false
	}
	m.yours, m.minTx, m.minRx, m.multiplier = p.mine, p.minTx, p.minRx, p.multiplier
	if p.final {
		m.polling = false
	}
	switch {
	case p.state == AdminDown || p.state == Down && m.state == Up:
		if m.state != Down {
			m.transition(Down, neighborSaysDown)
		}
	case p.state == Down && m.state == Down:
		m.transition(Init, noDiagnostic)
	case p.state == Init && m.state != Up, p.state == Up && m.state == Init:
		m.transition(Up, noDiagnostic)
	}
	if !p.poll {
		return nil, true
	}
	reply := m.next()
	reply.poll, reply.final = false, true
	return &reply, true
}

// expire handles the end of the detection time.
func (m *machine) expire() {
	m.yours = 0
	if m.state == Init || m.state == Up {
		m.transition(Down, timeExpired)
	}
}

func (m *machine) transition(to State, diagnostic uint8) {
	m.state, m.diagnostic = to, diagnostic
	// The interval changes when the session comes up, and the other side has to know it.
	m.polling = to == Up
}

// next returns the next packet.
func (m *machine) next() packet {
	return packet{state: m.state, diagnostic: m.diagnostic, poll: m.polling, multiplier: m.timers.Multiplier, mine: m.mine, yours: m.yours,
		minTx: m.interval(), minRx: m.timers.Interval}
}

// interval is the interval at which this side wants to send.
func (m *machine) interval() time.Duration {
	if m.state == Up {
		return m.timers.Interval
	}
	return max(slowInterval, m.timers.Interval)
}

// pause returns the time until the next packet: between three quarters and all of the interval of both sides, so that many sessions do not send at the
// same time. It is 0 if the other side wants no packets.
func (m *machine) pause() time.Duration {
	if m.minRx == 0 {
		return 0
	}
	interval := max(m.interval(), m.minRx)
	most := interval
	if m.timers.Multiplier == 1 {
		most = interval * 9 / 10
	}
	return interval*3/4 + rand.N(most-interval*3/4+1)
}

// detectionTime is the time without a packet after which the other side is gone (RFC 5880, section 6.8.4).
func (m *machine) detectionTime() time.Duration {
	return time.Duration(m.multiplier) * max(m.timers.Interval, m.minTx)
}
