package headers

import (
	"fmt"
	"hash/crc32"
)

// shown is how many wrong packets Match describes at most.
const shown = 5

// Outcome says what became of packets.
type Outcome struct {
	// Lost and Extra count packets that were sent and did not arrive, and packets that arrived and were not sent. Changed counts those that
	// arrived otherwise than their path allows.
	Lost, Extra, Changed int
	// Examples describes some of them.
	Examples []string
}

// IsClean reports whether all packets arrived once, as their paths allow.
func (o Outcome) IsClean() bool { return o.Lost == 0 && o.Extra == 0 && o.Changed == 0 }

// identity is what finds a packet again, whatever the order in which packets arrive.
type identity struct {
	protocol               uint8
	sequence, acknowledged uint32
	payload                uint32
	length                 int
}

func (p Packet) identity() identity {
	return identity{p.Protocol, p.Sequence, p.Acknowledged, crc32.ChecksumIEEE(p.Payload), len(p.Payload)}
}

// Match compares the packets that one host sent with those that another one got. path returns the path of a packet that was sent.
func Match(sent, got []Packet, path func(Packet) Path) Outcome {
	var out Outcome
	arrived := map[identity][]Packet{}
	for _, p := range got {
		arrived[p.identity()] = append(arrived[p.identity()], p)
	}
	var unmatched []Packet
	for _, p := range sent {
		if !take(arrived, p, func(q Packet) bool { return len(path(p).Differences(p, q)) == 0 }) {
			unmatched = append(unmatched, p)
		}
	}
	for _, p := range unmatched {
		var changed Packet
		if !take(arrived, p, func(q Packet) bool { changed = q; return true }) {
			out.Lost++
			out.example("%s did not arrive", p)
			continue
		}
		out.Changed++
		out.example("%s: %q", p, path(p).Differences(p, changed))
	}
	for _, left := range arrived {
		for _, p := range left {
			out.Extra++
			out.example("%s was not sent, or not so often", p)
		}
	}
	return out
}

// take removes the first packet with the identity of p for which fits returns true.
func take(arrived map[identity][]Packet, p Packet, fits func(Packet) bool) bool {
	candidates := arrived[p.identity()]
	for i, q := range candidates {
		if fits(q) {
			arrived[p.identity()] = append(candidates[:i:i], candidates[i+1:]...)
			return true
		}
	}
	return false
}

func (o *Outcome) example(format string, args ...any) {
	if len(o.Examples) < shown {
		o.Examples = append(o.Examples, fmt.Sprintf(format, args...))
	}
}
