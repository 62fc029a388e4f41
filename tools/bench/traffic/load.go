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

// Load is one kind of traffic.
type Load struct {
	Name string
	// Unit is what is counted; more of it is better, or less where it is a time.
	Unit string
	// Datagrams: a proxy for TCP alone cannot carry it.
	Datagrams bool
	workers   int
	work      func(to netip.AddrPort, until time.Time) (tally, error)
	// typical: the measure is the median of the times that single requests took, not their number.
	typical bool
}

// Loads are all kinds.
func Loads() []Load {
	return []Load{
		{Name: "new connections", Unit: "1/s", workers: 8, work: connections},
		{Name: "requests on kept connections", Unit: "1/s", workers: 8, work: requests},
		{Name: "median time of a request at 4,000 a second", Unit: "µs", workers: 4, work: paced, typical: true},
		{Name: "bulk", Unit: "MB/s", workers: 2, work: bulk},
		{Name: "datagrams of 64 bytes", Unit: "1/s", workers: 1, work: datagrams, Datagrams: true},
	}
}

// tally is what a worker has done.
type tally struct {
	done  float64
	times []time.Duration
}

// Sample is one measurement.
type Sample struct {
	// Value in the unit of the load.
	Value float64
	// CPU is the processor time of the whole machine, for each thing done, in microseconds.
	CPU float64
}

// run lets workers on the client send to the addresses.
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

// busy is the processor time that the machine has worked.
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

// First bytes tell the server what to do.
const (
	asRequest = 'Q' // answer with the same
	asBulk    = 'B' // take all and answer nothing
	asCounted = 'D' // datagrams that do not reach the server
)

// dial connects with blocking system calls: the runtime's poller would cost more than what is measured.
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
	// The timeouts come after that: with one a call that a signal interrupts is not taken up again (signal(7)), and connect cannot be.
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

// again calls once more what a signal interrupts before it has done anything: the runtime sends some to its own threads.
func again(call func(int, []byte) (int, error), fd int, buffer []byte) (int, error) {
	for {
		if n, err := call(fd, buffer); err != unix.EINTR {
			return n, err
		}
	}
}

// ask sends a request and waits for its answer.
func ask(fd int, buffer []byte) error {
	buffer[0] = asRequest
	if _, err := again(unix.Write, fd, buffer); err != nil {
		return fmt.Errorf("request: %w", err)
	}
	for got := 0; got < len(buffer); {
		n, err := again(unix.Read, fd, buffer[got:])
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
		if err := errors.Join(ask(fd, buffer), unix.Close(fd)); err != nil {
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
		if err := ask(fd, buffer); err != nil {
			return t, err
		}
		t.done++
	}
	return t, nil
}

// paced sends a request each millisecond.
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
			_ = unix.Nanosleep(&rest, nil) // woken early, it sends early
		}
		begun := time.Now()
		if err := ask(fd, buffer); err != nil {
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
		n, err := again(unix.Write, fd, buffer)
		if err != nil {
			return t, fmt.Errorf("bulk: %w", err)
		}
		t.done += float64(n) / 1e6
	}
	return t, nil
}

// flowsOfDatagrams share what is sent.
const flowsOfDatagrams = 16

// datagrams sends what is counted before it reaches a server, on flows that have been answered and have gone on.
func datagrams(to netip.AddrPort, until time.Time) (t tally, err error) {
	var sockets [flowsOfDatagrams]int
	buffer := make([]byte, datagramSize)
	for i := range sockets {
		if sockets[i], err = dial(unix.SOCK_DGRAM, to); err != nil {
			return t, err
		}
		defer unix.Close(sockets[i])
		for range 2 {
			if err := ask(sockets[i], buffer); err != nil {
				return t, err
			}
		}
	}
	buffer[0] = asCounted
	for time.Now().Before(until) {
		for _, fd := range sockets {
			for range 8 {
				if _, err := again(unix.Write, fd, buffer); err != nil {
					return t, fmt.Errorf("datagram: %w", err)
				}
			}
		}
	}
	return t, nil
}
