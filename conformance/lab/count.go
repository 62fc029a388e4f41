package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// askCount: the server counts the datagram, and does not answer.
const askCount = "count"

// Counts returns how many connections, and datagrams of CountFlows, each of the server's addresses got.
func (s *Server) Counts() map[netip.Addr]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[netip.Addr]int{}
	for a, n := range s.counts {
		out[a] = n
	}
	return out
}

func (s *Server) count(local netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.counts == nil {
		s.counts = map[netip.Addr]int{}
	}
	s.counts[local]++
	s.counted.Add(1)
}

// inFlight bounds how many flows of CountFlows are under way, so that no buffer overflows.
const inFlight = 100

// CountFlows makes a flow from each of n ports: a datagram, or a connection that it resets once an endpoint has it. It returns how many flows each address of
// the servers got.
func (h *Host) CountFlows(network string, to netip.AddrPort, firstPort, n int, servers []*Server) (map[netip.Addr]int, error) {
	before := countsOf(servers)
	base := totalOf(servers) // less the flows that are lost
	// await waits until so many flows have arrived. Those that do not arrive for a while are lost.
	await := func(atLeast int) {
		begin, last := time.Now(), -1
		for {
			got := totalOf(servers) - base
			switch {
			case got >= atLeast:
				return
			case got != last:
				begin, last = time.Now(), got
			case time.Since(begin) > h.patience.For(silentAfter):
				base -= atLeast - got
			}
			time.Sleep(200 * time.Microsecond)
		}
	}
	begin := sendFrom
	if network == "tcp" {
		begin = connectFrom
	}
	var open []int
	end := func() {
		for _, fd := range open {
			unix.Close(fd)
		}
		open = nil
	}
	err := h.Do(func() error {
		defer end()
		for i := range n {
			if i%inFlight == 0 {
				await(i)
				end()
			}
			fd, err := begin(firstPort+i, to)
			if err != nil {
				return fmt.Errorf("%s %s, flow %d: %w", network, to, i, err)
			}
			open = append(open, fd)
		}
		await(n)
		return nil
	})
	out := countsOf(servers)
	for a := range out {
		out[a] -= before[a]
	}
	return out, err
}

// sendFrom sends askCount from the port. It needs less time than package net.
func sendFrom(port int, to netip.AddrPort) (fd int, err error) {
	fd, dst, err := socketAt(unix.SOCK_DGRAM, port, to)
	if err == nil {
		err = unix.Sendto(fd, []byte(askCount), 0, dst)
	}
	return fd, err
}

// connectFrom connects from the port. A reset ends the connection when the socket is closed.
func connectFrom(port int, to netip.AddrPort) (fd int, err error) {
	fd, dst, err := socketAt(unix.SOCK_STREAM, port, to)
	if err == nil {
		err = errors.Join(unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}), unix.Connect(fd, dst))
	}
	return fd, err
}

// socketAt returns a socket that is bound to the port, and the address of its peer.
func socketAt(kind, port int, to netip.AddrPort) (fd int, dst unix.Sockaddr, err error) {
	domain, from, dst := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: port}), unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		domain, from, dst = unix.AF_INET, &unix.SockaddrInet4{Port: port}, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err = unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fd, dst, err
	}
	return fd, dst, errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, from))
}

func totalOf(servers []*Server) (n int) {
	for _, s := range servers {
		n += int(s.counted.Load())
	}
	return n
}

func countsOf(servers []*Server) map[netip.Addr]int {
	out := map[netip.Addr]int{}
	for _, s := range servers {
		for a, n := range s.Counts() {
			out[a] += n
		}
	}
	return out
}
