package envoy

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"kubelb.k8c.io/core/model"
)

// States of TCP sockets in /proc/net/tcp (tcp_states.h).
const (
	tcpEstablished = "01"
	tcpListen      = "0A"
)

// awaitSockets returns when there is a socket for each of the TCP frontends. Envoy accepts a listener before its threads listen,
// and until they do the kernel refuses connections.
func awaitSockets(ctx context.Context, want []model.FrontendKey) error {
	missing := slices.Clone(want)
	for len(missing) > 0 {
		listening, err := tcpSockets(tcpListen)
		if err != nil {
			return err
		}
		missing = slices.DeleteFunc(missing, func(k model.FrontendKey) bool { return listening[netip.AddrPortFrom(k.VIP, k.Port)] > 0 })
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("Envoy does not listen for %d frontends, the first is %s", len(missing), missing[0])
		case <-time.After(2 * time.Millisecond):
		}
	}
	return nil
}

// tcpSockets counts the sockets in the state by their local address, in the network namespace of the thread.
func tcpSockets(state string) (map[netip.AddrPort]int, error) {
	out := map[netip.AddrPort]int{}
	for _, path := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without that family
		}
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			if len(fields) > 3 && fields[3] == state {
				if at, err := parseProcAddress(fields[1]); err == nil {
					out[at]++
				}
			}
		}
		if err := errors.Join(lines.Err(), f.Close()); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// parseProcAddress parses an address such as 0100007F:0050: the address in words of four bytes in the host's byte order (here
// little-endian), and the port.
func parseProcAddress(text string) (netip.AddrPort, error) {
	address, port, _ := strings.Cut(text, ":")
	bytes, err := hex.DecodeString(address)
	if err != nil || len(bytes)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("address %q: %w", text, err)
	}
	for word := range slices.Chunk(bytes, 4) {
		slices.Reverse(word)
	}
	ip, ok := netip.AddrFromSlice(bytes)
	n, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, fmt.Errorf("address %q", text)
	}
	return netip.AddrPortFrom(ip, uint16(n)), nil
}
