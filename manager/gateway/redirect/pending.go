package redirect

import "net/netip"

// Pending are addresses whose redirect has changed, and of which the dataplane has not confirmed the change. It is not safe for concurrent use.
type Pending struct {
	// waiting are still to be sent, inFlight are being sent.
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

// Clear drops what is still to be sent: a dataplane that starts is sent all of it.
func (p *Pending) Clear() { clear(p.waiting) }

// Empty tells whether nothing is still to be sent.
func (p *Pending) Empty() bool { return len(p.waiting) == 0 }

// Begin returns the addresses whose redirects are sent now, until End.
func (p *Pending) Begin() map[netip.Addr]bool {
	p.inFlight, p.waiting = p.waiting, nil
	return p.inFlight
}

// End notes that they have been sent, or could not be.
func (p *Pending) End() { p.inFlight = nil }

// Has tells whether the redirect of the address is still to be sent, or being sent.
func (p *Pending) Has(address netip.Addr) bool { return p.waiting[address] || p.inFlight[address] }
