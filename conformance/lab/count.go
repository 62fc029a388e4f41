package lab

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// askCount: the server counts the datagram, and does not answer.
const askCount = "count"

// Counts returns how many datagrams of CountFlows each of the server's addresses got.
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
}

// inFlight bounds how many datagrams of CountFlows are under way, so that no buffer overflows.
const inFlight = 100

// CountFlows sends one datagram of a flow of its own from each of n ports. It returns how many datagrams each address of the servers got.
func (h *Host) CountFlows(to netip.AddrPort, firstPort uint16, n int, servers []*Server) (map[netip.Addr]int, error) {
	before := countsOf(servers)
	lost := 0
	// await waits until so many datagrams have arrived. Those that do not arrive for a while are lost.
	await := func(atLeast int) {
		begin, last := time.Now(), -1
		for {
			got := sum(countsOf(servers)) - sum(before) + lost
			switch {
			case got >= atLeast:
				return
			case got != last:
				begin, last = time.Now(), got
			case time.Since(begin) > h.patience.For(silentAfter):
				lost += atLeast - got
			}
			time.Sleep(200 * time.Microsecond)
		}
	}
	err := h.Do(func() error {
		for i := range n {
			if i%(inFlight/2) == 0 {
				await(i - inFlight/2)
			}
			if err := sendFrom(int(firstPort)+i, to); err != nil {
				return err
			}
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
func sendFrom(port int, to netip.AddrPort) error {
	domain, from, dst := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: port}), unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		domain, from, dst = unix.AF_INET, &unix.SockaddrInet4{Port: port}, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	err = errors.Join(unix.Bind(fd, from), unix.Sendto(fd, []byte(askCount), 0, dst))
	return errors.Join(err, unix.Close(fd))
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

func sum(counts map[netip.Addr]int) (n int) {
	for _, count := range counts {
		n += count
	}
	return n
}
