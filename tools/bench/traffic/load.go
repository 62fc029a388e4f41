package traffic

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/conformance/netlab"
)

// Load is a kind of traffic.
type Load struct {
	Name string
	// Unit is the unit of the measurement. Higher values are better, unless the unit is a time.
	Unit string
	// Datagrams means that the load is UDP, which a TCP proxy cannot carry.
	Datagrams bool
	workers   int
	work      func(to netip.AddrPort, until time.Time) (tally, error)
	// typical means that the measurement is the median time of a request, not the number of requests.
	typical bool
}

// Loads returns all loads.
func Loads() []Load {
	return []Load{
		{Name: "new connections", Unit: "1/s", workers: 8, work: connections},
		{Name: "requests on kept connections", Unit: "1/s", workers: 8, work: requests},
		{Name: "median time of a request at 4,000 a second", Unit: "µs", workers: 4, work: paced, typical: true},
		{Name: "bulk", Unit: "MB/s", workers: 2, work: bulk},
		{Name: "datagrams of 64 bytes", Unit: "1/s", workers: 1, work: datagrams, Datagrams: true},
	}
}

// tally counts the work of a worker.
type tally struct {
	done  float64
	times []time.Duration
}

// Sample is one measurement.
type Sample struct {
	// Value is in the unit of the load.
	Value float64
	// CPU is the processor time of the whole machine for one unit of work, in microseconds.
	CPU float64
}

// run runs the load from the client to the addresses.
func (l Load) run(client *netlab.Namespace, to []netip.AddrPort, long time.Duration, arrived func() (uint64, error)) (Sample, error) {
	var all sync.WaitGroup
	var mu sync.Mutex
	var sum tally
	var errs []error
	before, err := busy()
	if err != nil {
		return Sample{}, err
	}
	counted, err := arrived()
	if err != nil {
		return Sample{}, err
	}
	start := time.Now()
	for i := range l.workers {
		all.Go(func() {
			err := client.Do(func() error {
				t, err := l.work(to[i%len(to)], start.Add(long))
				mu.Lock()
				defer mu.Unlock()
				sum.done += t.done
				sum.times = append(sum.times, t.times...)
				return err
			})
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	all.Wait()
	took := time.Since(start)
	after, err := busy()
	if err := errors.Join(append(errs, err)...); err != nil {
		return Sample{}, err
	}
	if l.Datagrams {
		now, err := arrived()
		if err != nil {
			return Sample{}, err
		}
		sum.done = float64(now - counted)
	}
	if sum.done == 0 {
		return Sample{}, errors.New("nothing arrived")
	}
	s := Sample{Value: sum.done / took.Seconds(), CPU: float64((after - before).Microseconds()) / sum.done}
	if l.typical {
		slices.Sort(sum.times)
		s.Value = float64(sum.times[len(sum.times)/2].Nanoseconds()) / 1000
	}
	return s, nil
}

// busy returns the processor time that the machine has used.
func busy() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	var user, nice, system, idle, wait, irq, softirq int64
	if _, err := fmt.Sscanf(strings.SplitN(string(text), "\n", 2)[0], "cpu %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &wait, &irq, &softirq); err != nil {
		return 0, fmt.Errorf("/proc/stat: %w", err)
	}
	const hertz = 100 // USER_HZ
	return time.Duration(user+nice+system+irq+softirq) * time.Second / hertz, nil
}

const (
	requestSize  = 64
	bulkSize     = 256 << 10
	datagramSize = 64 - 4 - 14 - 20 - 8 // with Ethernet's header and checksum, and those of IPv4 and UDP
)

// The first byte of a message tells the server what to do.
const (
	asRequest = 'Q' // send the message back
	asBulk    = 'B' // read everything, answer nothing
	asCounted = 'D' // a datagram that the counter drops before the server
)

// dial connects with blocking system calls, because the cost of the runtime's poller would exceed the measured cost.
func dial(kind int, to netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	if kind == unix.SOCK_STREAM {
		options := errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1), unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_SYNCNT, 2))
		if options != nil {
			return 0, errors.Join(options, unix.Close(fd))
		}
	}
	// The timeouts are set after connect: with a timeout, the kernel does not restart a call that a signal interrupts (signal(7)), and
	// connect cannot be called again.
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
		return 0, errors.Join(fmt.Errorf("connect to %s: %w", to, err), unix.Close(fd))
	}
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &unix.Timeval{Sec: 5}); err != nil {
			return 0, errors.Join(err, unix.Close(fd))
		}
	}
	return fd, nil
}

// retry repeats a call that a signal interrupted. The Go runtime sends signals to its own threads.
func retry(call func(int, []byte) (int, error), fd int, buffer []byte) (int, error) {
	for {
		if n, err := call(fd, buffer); err != unix.EINTR {
			return n, err
		}
	}
}

// request sends a request and waits for the answer.
func request(fd int, buffer []byte) error {
	buffer[0] = asRequest
	if _, err := retry(unix.Write, fd, buffer); err != nil {
		return fmt.Errorf("request: %w", err)
	}
	for got := 0; got < len(buffer); {
		n, err := retry(unix.Read, fd, buffer[got:])
		if err != nil || n == 0 {
			return fmt.Errorf("answer after %d bytes: %w", got, err)
		}
		got += n
	}
	return nil
}

func connections(to netip.AddrPort, until time.Time) (t tally, _ error) {
	buffer := make([]byte, requestSize)
	for time.Now().Before(until) {
		fd, err := dial(unix.SOCK_STREAM, to)
		if err != nil {
			return t, err
		}
		if err := errors.Join(request(fd, buffer), unix.Close(fd)); err != nil {
			return t, err
		}
		t.done++
	}
	return t, nil
}

func requests(to netip.AddrPort, until time.Time) (t tally, err error) {
	fd, err := dial(unix.SOCK_STREAM, to)
	if err != nil {
		return t, err
	}
	defer unix.Close(fd)
	buffer := make([]byte, requestSize)
	for time.Now().Before(until) {
		if err := request(fd, buffer); err != nil {
			return t, err
		}
		t.done++
	}
	return t, nil
}

// paced sends a request every millisecond.
func paced(to netip.AddrPort, until time.Time) (t tally, err error) {
	fd, err := dial(unix.SOCK_STREAM, to)
	if err != nil {
		return t, err
	}
	defer unix.Close(fd)
	buffer := make([]byte, requestSize)
	for next := time.Now(); next.Before(until); next = next.Add(time.Millisecond) {
		rest := unix.NsecToTimespec(int64(time.Until(next)))
		if rest.Sec == 0 && rest.Nsec > 0 {
			_ = unix.Nanosleep(&rest, nil) // if a signal wakes it early, it sends early
		}
		begun := time.Now()
		if err := request(fd, buffer); err != nil {
			return t, err
		}
		t.times = append(t.times, time.Since(begun))
		t.done++
	}
	return t, nil
}

func bulk(to netip.AddrPort, until time.Time) (t tally, err error) {
	fd, err := dial(unix.SOCK_STREAM, to)
	if err != nil {
		return t, err
	}
	defer unix.Close(fd)
	buffer := make([]byte, bulkSize)
	buffer[0] = asBulk
	for time.Now().Before(until) {
		n, err := retry(unix.Write, fd, buffer)
		if err != nil {
			return t, fmt.Errorf("bulk: %w", err)
		}
		t.done += float64(n) / 1e6
	}
	return t, nil
}

// flowsOfDatagrams is the number of flows of the UDP load.
const flowsOfDatagrams = 16

// answeredFlows opens flows on which two datagrams each have been answered. It returns all that it opened, also after an error.
func answeredFlows(to netip.AddrPort) (sockets []int, err error) {
	buffer := make([]byte, datagramSize)
	for range flowsOfDatagrams {
		fd, err := dial(unix.SOCK_DGRAM, to)
		if err != nil {
			return sockets, err
		}
		sockets = append(sockets, fd)
		for range 2 {
			if err := request(fd, buffer); err != nil {
				return sockets, err
			}
		}
	}
	return sockets, nil
}

func closeAll(sockets []int) {
	for _, fd := range sockets {
		unix.Close(fd)
	}
}

// countedDatagram is a datagram that the counter drops.
func countedDatagram() []byte {
	datagram := make([]byte, datagramSize)
	datagram[0] = asCounted
	return datagram
}

// datagrams sends datagrams that the counter drops, on flows that have been answered before.
func datagrams(to netip.AddrPort, until time.Time) (t tally, err error) {
	sockets, err := answeredFlows(to)
	defer closeAll(sockets)
	if err != nil {
		return t, err
	}
	buffer := countedDatagram()
	for time.Now().Before(until) {
		for _, fd := range sockets {
			for range 8 {
				if _, err := retry(unix.Write, fd, buffer); err != nil {
					return t, fmt.Errorf("datagram: %w", err)
				}
			}
		}
	}
	return t, nil
}
