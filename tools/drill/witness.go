package drill

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/mdlayher/packet"
)

// witness asks on the clients' segment, by ARP and again and again, who has each address, and notes who answers.
type witness struct {
	conn      *packet.Conn
	device    *net.Interface
	addresses []netip.Addr
	began     time.Time
	end       chan struct{}
	// asking and hearing are its two goroutines.
	asking, hearing sync.WaitGroup

	mu sync.Mutex // guards answers
	// answers are the MACs that have answered, by address and turn.
	answers map[netip.Addr]map[int]map[[6]byte]bool
	failed  error
}

// turn is how often each address is asked for.
const turn = 50 * time.Millisecond

const (
	etherTypeARP = 0x0806
	arpLength    = 28
	header       = 14
)

func (f *fleet) watch() (*witness, error) {
	w := &witness{began: time.Now(), end: make(chan struct{}), answers: map[netip.Addr]map[int]map[[6]byte]bool{}}
	if f.bgp {
		return w, nil // there is nothing to see: by BGP all gateways have all addresses
	}
	for _, a := range f.addresses {
		if a.Is4() {
			w.addresses = append(w.addresses, a)
			w.answers[a] = map[int]map[[6]byte]bool{}
		}
	}
	err := f.lab.Client.Do(func() (err error) {
		if w.device, err = net.InterfaceByName("eth0"); err != nil {
			return err
		}
		w.conn, err = packet.Listen(w.device, packet.Raw, etherTypeARP, nil)
		return err
	})
	if err != nil {
		return nil, err
	}
	w.asking.Go(w.ask)
	w.hearing.Go(w.hear)
	return w, nil
}

func (w *witness) ask() {
	ticker := time.NewTicker(turn)
	defer ticker.Stop()
	for {
		select {
		case <-w.end:
			return
		case <-ticker.C:
		}
		for _, a := range w.addresses {
			if _, err := w.conn.WriteTo(w.question(a), &packet.Addr{HardwareAddr: net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}); err != nil {
				w.mu.Lock()
				w.failed = errors.Join(w.failed, err)
				w.mu.Unlock()
				return
			}
		}
	}
}

// question is an ARP request (RFC 826) from the address 0.0.0.0, which nobody remembers (RFC 5227).
func (w *witness) question(a netip.Addr) []byte {
	b := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	b = append(b, w.device.HardwareAddr...)
	b = binary.BigEndian.AppendUint16(b, etherTypeARP)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 1)
	b = append(append(b, w.device.HardwareAddr...), 0, 0, 0, 0)
	return append(append(b, 0, 0, 0, 0, 0, 0), a.AsSlice()...)
}

func (w *witness) hear() {
	buffer := make([]byte, 2048)
	for {
		n, _, err := w.conn.ReadFrom(buffer)
		if err != nil {
			return // it was closed
		}
		if n < header+arpLength || binary.BigEndian.Uint16(buffer[header+6:]) != 2 {
			continue
		}
		address, mac := netip.AddrFrom4([4]byte(buffer[header+14:header+18])), [6]byte(buffer[header+8:header+14])
		at := int(time.Since(w.began) / turn)
		w.mu.Lock()
		if turns := w.answers[address]; turns != nil {
			if turns[at] == nil {
				turns[at] = map[[6]byte]bool{}
			}
			turns[at][mac] = true
		}
		w.mu.Unlock()
	}
}

func (w *witness) stop() error {
	close(w.end)
	if w.conn == nil {
		return nil
	}
	w.asking.Wait()
	err := w.conn.Close()
	w.hearing.Wait()
	return errors.Join(err, w.failed)
}

// silence is the longest time in which nobody answered for an address, which one, and how long after the witness's beginning that ended.
func (w *witness) silence() (longest time.Duration, of netip.Addr, until time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for address, turns := range w.answers {
		run := time.Duration(0)
		for at := range int(time.Since(w.began) / turn) {
			if run += turn; len(turns[at]) > 0 {
				run = 0
			}
			if run > longest {
				longest, of, until = run, address, time.Duration(at+1)*turn
			}
		}
	}
	return longest, of, until
}

// twice is the longest time in which two gateways answered for one address.
func (w *witness) twice() (longest time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, turns := range w.answers {
		run := time.Duration(0)
		for at := range int(time.Since(w.began)/turn) + 1 {
			if len(turns[at]) < 2 {
				run = 0
				continue
			}
			run += turn
			longest = max(longest, run)
		}
	}
	return longest
}
