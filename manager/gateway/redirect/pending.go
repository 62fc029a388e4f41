package redirect

import "net/netip"

// Pending are addresses whose redirect has changed, while the dataplane has not confirmed the change. It is not safe for concurrent use.
type Pending struct {
	// waiting are not sent yet, inFlight are being sent.
	waiting, inFlight map[netip.Addr]bool
}

// Add notes that the redirects of the addresses have changed.
func (p *Pending) Add(addresses ...netip.Addr) {
	if p.waiting == nil {
		p.waiting = map[netip.Addr]bool{}
	}
	for _, a := range addresses {
		p.waiting[a] = true
	}
}

// Clear drops what is not sent yet: a dataplane that starts gets all redirects.
func (p *Pending) Clear() { clear(p.waiting) }

// Empty reports whether nothing is left to send.
func (p *Pending) Empty() bool { return len(p.waiting) == 0 }

// Begin returns the addresses to send now. They stay pending until End.
func (p *Pending) Begin() map[netip.Addr]bool {
	p.inFlight, p.waiting = p.waiting, nil
	return p.inFlight
}

// End notes that the addresses of Begin were sent, or could not be sent.
func (p *Pending) End() { p.inFlight = nil }

// Has reports whether the redirect of the address is not sent yet, or being sent.
func (p *Pending) Has(address netip.Addr) bool { return p.waiting[address] || p.inFlight[address] }
