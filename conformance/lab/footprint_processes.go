package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ProcessPieces returns the processes of the host, without the suite's own.
func (h *Host) ProcessPieces() (Footprint, error) {
	ids, err := h.Processes()
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var out Footprint
	for _, id := range ids {
		name, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(id), "comm"))
		if err != nil {
			continue // ended
		}
		out = append(out, Piece{Kind: Process, Text: fmt.Sprintf("%s %d", strings.TrimSpace(string(name)), id), remove: func() error { return unix.Kill(id, unix.SIGKILL) }})
	}
	return out, nil
}

// ending are the states of TCP sockets that may have no process any more: FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE, LAST_ACK, CLOSING
// (include/net/tcp_states.h).
var ending = []string{"04", "05", "06", "07", "09", "0B"}

// sockets returns the sockets of the host: those of TCP and UDP, raw ones and packet sockets, and Unix sockets with a name.
func sockets() (Footprint, error) {
	var out Footprint
	for _, protocol := range []string{"tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6"} {
		for _, f := range socketTable(protocol) {
			if len(f) < 4 || strings.HasPrefix(protocol, "tcp") && slices.Contains(ending, f[3]) {
				continue
			}
			out = append(out, Piece{Kind: Socket, Text: fmt.Sprintf("%s %s > %s state %s", protocol, f[1], f[2], f[3])})
		}
	}
	for _, f := range socketTable("packet") {
		if len(f) >= 5 {
			out = append(out, Piece{Kind: Socket, Text: fmt.Sprintf("packet type %s protocol %s interface %s", f[2], f[3], f[4])})
		}
	}
	for _, f := range socketTable("unix") {
		if len(f) == 8 {
			out = append(out, Piece{Kind: Socket, Text: "unix " + f[7]})
		}
	}
	return out, nil
}

// socketTable returns the fields of each line of a file in /proc/net, without the first line. A kernel without the protocol has no file.
func socketTable(name string) [][]string {
	text, err := os.ReadFile("/proc/thread-self/net/" + name)
	if err != nil {
		return nil
	}
	var out [][]string
	for line := range strings.Lines(string(text)) {
		out = append(out, strings.Fields(line))
	}
	return out[min(1, len(out)):]
}
