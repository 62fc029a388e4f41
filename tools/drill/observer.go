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

// observer sends ARP requests for each address on the clients' segment all the time, and records which MACs answer.
type observer struct {
	conn      *packet.Conn
	device    *net.Interface
	addresses []netip.Addr
	began     time.Time
	end       chan struct{}
	// sending and receiving are the two goroutines.
	sending, receiving sync.WaitGroup

	mu sync.Mutex // guards answers
	// answers are the MACs that have answered, by address and interval.
	answers map[netip.Addr]map[int]map[[6]byte]bool
	failed  error
}

// interval is the time between two requests for an address.
const interval = 50 * time.Millisecond

const (
	etherTypeARP = 0x0806
	arpLength    = 28
	header       = 14
)

func (f *fleet) observe() (*observer, error) {
	w := &observer{began: time.Now(), end: make(chan struct{}), answers: map[netip.Addr]map[int]map[[6]byte]bool{}}
	if f.bgp {
		return w, nil // with BGP, all gateways have all addresses
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
	w.sending.Go(w.send)
	w.receiving.Go(w.receive)
	return w, nil
}

func (w *observer) send() {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-w.end:
			return
		case <-ticker.C:
		}
		for _, a := range w.addresses {
			if _, err := w.conn.WriteTo(w.request(a), &packet.Addr{HardwareAddr: net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}); err != nil {
				w.mu.Lock()
				w.failed = errors.Join(w.failed, err)
				w.mu.Unlock()
				return
			}
		}
	}
}

// request returns an ARP request (RFC 826) from the address 0.0.0.0, from which hosts learn nothing (RFC 5227).
func (w *observer) request(a netip.Addr) []byte {
	b := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	b = append(b, w.device.HardwareAddr...)
	b = binary.BigEndian.AppendUint16(b, etherTypeARP)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 1)
	b = append(append(b, w.device.HardwareAddr...), 0, 0, 0, 0)
	return append(append(b, 0, 0, 0, 0, 0, 0), a.AsSlice()...)
}

func (w *observer) receive() {
	buffer := make([]byte, 2048)
	for {
		n, _, err := w.conn.ReadFrom(buffer)
		if err != nil {
			return // the socket was closed
		}
		if n < header+arpLength || binary.BigEndian.Uint16(buffer[header+6:]) != 2 {
			continue
		}
		address, mac := netip.AddrFrom4([4]byte(buffer[header+14:header+18])), [6]byte(buffer[header+8:header+14])
		at := int(time.Since(w.began) / interval)
		w.mu.Lock()
		if intervals := w.answers[address]; intervals != nil {
			if intervals[at] == nil {
				intervals[at] = map[[6]byte]bool{}
			}
			intervals[at][mac] = true
		}
		w.mu.Unlock()
	}
}

func (w *observer) stop() error {
	close(w.end)
	if w.conn == nil {
		return nil
	}
	w.sending.Wait()
	err := w.conn.Close()
	w.receiving.Wait()
	return errors.Join(err, w.failed)
}

// silence returns the longest time in which no gateway answered for an address, the address, and when that time ended, since the start of the observer.
func (w *observer) silence() (longest time.Duration, silent netip.Addr, until time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for address, intervals := range w.answers {
		run := time.Duration(0)
		for at := range int(time.Since(w.began) / interval) {
			if run += interval; len(intervals[at]) > 0 {
				run = 0
			}
			if run > longest {
				longest, silent, until = run, address, time.Duration(at+1)*interval
			}
		}
	}
	return longest, silent, until
}

// doubleAnswer returns the longest time in which two gateways answered for one address.
func (w *observer) doubleAnswer() (longest time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, intervals := range w.answers {
		run := time.Duration(0)
		for at := range int(time.Since(w.began)/interval) + 1 {
			if len(intervals[at]) < 2 {
				run = 0
				continue
			}
			run += interval
			longest = max(longest, run)
		}
	}
	return longest
}
