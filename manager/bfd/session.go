package bfd

import (
	"math/rand/v2"
	"time"
)

// Timers of a session: how often each side says something, and after how many of these times of silence the other side is gone.
type Timers struct {
	Interval   time.Duration
	Multiplier uint8
}

// slow is how often something is said, at most, while a session is not up (RFC 5880, section 6.8.3).
const slow = time.Second

// machine is one session's state. It knows no clock and no network.
type machine struct {
	timers     Timers
	state      State
	diagnostic uint8
	mine       uint32
	// yours, and the rest of what the other side has said last.
	yours      uint32
	minTx      time.Duration
	minRx      time.Duration
	multiplier uint8
	// polling: the other side has not confirmed yet that it knows our interval.
	polling bool
}

// newMachine begins a session; mine is its discriminator, which no other session of this host has.
func newMachine(t Timers, mine uint32) *machine {
	// Until the other side says otherwise it takes a packet each microsecond (RFC 5880, section 6.8.1).
	return &machine{timers: t, state: Down, mine: mine, minRx: time.Microsecond}
}

// proves tells whether a packet may be heeded by a session in that state. One that names the session's discriminator comes from who has heard
// this side. One that names none may begin a session (RFC 5880, section 6.8.6) and does not end one: every host on the link can forge it. A
// neighbour that really begins anew does not use the discriminator any more either, and is found out by the time of detection.
func proves(p packet, mine uint32, s State) bool {
	return p.yours == mine || p.yours == 0 && s != Up
}

// hear takes a packet, and returns what is to be answered at once, if anything. A packet that is not heeded changes nothing, and is no sign
// of life.
func (m *machine) hear(p packet) (answer *packet, heeded bool) {
	if !proves(p, m.mine, m.state) {
		return nil, false
	}
	m.yours, m.minTx, m.minRx, m.multiplier = p.mine, p.minTx, p.minRx, p.multiplier
	if p.final {
		m.polling = false
	}
	switch {
	case p.state == AdminDown || p.state == Down && m.state == Up:
		if m.state != Down {
			m.turn(Down, neighborSaysDown)
		}
	case p.state == Down && m.state == Down:
		m.turn(Init, noDiagnostic)
	case p.state == Init && m.state != Up, p.state == Up && m.state == Init:
		m.turn(Up, noDiagnostic)
	}
	if !p.poll {
		return nil, true
	}
	reply := m.say()
	reply.poll, reply.final = false, true
	return &reply, true
}

// silence is when nothing has been heard for the time of detection.
func (m *machine) silence() {
	m.yours = 0
	if m.state == Init || m.state == Up {
		m.turn(Down, timeExpired)
	}
}

func (m *machine) turn(to State, diagnostic uint8) {
	m.state, m.diagnostic = to, diagnostic
	// The interval of one that is up is another one, which the other side has to know.
	m.polling = to == Up
}

// say is what is said now.
func (m *machine) say() packet {
	return packet{state: m.state, diagnostic: m.diagnostic, poll: m.polling, multiplier: m.timers.Multiplier, mine: m.mine, yours: m.yours,
		minTx: m.interval(), minRx: m.timers.Interval}
}

// interval is the one that this side wishes to speak at.
func (m *machine) interval() time.Duration {
	if m.state == Up {
		return m.timers.Interval
	}
	return max(slow, m.timers.Interval)
}

// pause is how long to wait before the next packet, between three quarters and all of the interval that both sides agree on, so that many
// sessions do not speak at once. It is 0 when the other side wants to hear nothing.
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

// patience is the time of detection: for how long nothing may be heard (RFC 5880, section 6.8.4).
func (m *machine) patience() time.Duration {
	return time.Duration(m.multiplier) * max(m.timers.Interval, m.minTx)
}
