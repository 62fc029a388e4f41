package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Kind is a kind of state that a dataplane may keep on a host.
type Kind string

// The kinds of state.
const (
	NFTables       Kind = "nftables"
	IPTablesLegacy Kind = "iptables-legacy"
	IPSet          Kind = "ipset"
	Tracked        Kind = "conntrack"
	Sysctl         Kind = "sysctl"
	Route          Kind = "route"
	Rule           Kind = "rule"
	Neighbour      Kind = "neighbour"
	Interface      Kind = "interface"
	Address        Kind = "address"
	Qdisc          Kind = "qdisc"
	Filter         Kind = "filter"
	// TCX programs and XDP programs are attached without a filter.
	TCX     Kind = "tcx"
	XDP     Kind = "xdp"
	Pinned  Kind = "pinned"
	Process Kind = "process"
	Socket  Kind = "socket"
	Memory  Kind = "memory"
	File    Kind = "file"
)

// Piece is one thing of a host's state.
type Piece struct {
	Kind Kind
	Text string
	// remove removes the piece, as another program may do it. It is nil if only a larger piece can be removed.
	remove func() error
}

// String returns kind and text.
func (p Piece) String() string { return string(p.Kind) + " " + p.Text }

// Footprint is all state of a host in which a dataplane might leave something. Counters, neighbours that the kernel learns and
// sockets without a process are left out, since they change without a dataplane.
type Footprint []Piece

// Added returns the pieces that the former footprint does not have. New sysctls are left out: a module of the kernel that is
// loaded adds some.
func (f Footprint) Added(former Footprint) Footprint {
	had := map[string]int{}
	names := map[string]bool{}
	for _, p := range former {
		had[p.String()]++
		names[sysctlName(p)] = true
	}
	var out Footprint
	for _, p := range f {
		if had[p.String()]--; had[p.String()] >= 0 || p.Kind == Sysctl && !names[sysctlName(p)] {
			continue
		}
		out = append(out, p)
	}
	return out
}

// sysctlName returns the name of a sysctl, and an empty name for another piece.
func sysctlName(p Piece) string {
	if p.Kind != Sysctl {
		return ""
	}
	name, _, _ := strings.Cut(p.Text, " = ")
	return name
}

// Of returns the pieces of the kinds.
func (f Footprint) Of(kinds ...Kind) Footprint {
	var out Footprint
	for _, p := range f {
		for _, k := range kinds {
			if p.Kind == k {
				out = append(out, p)
			}
		}
	}
	return out
}

// Removable returns the pieces that can be removed by themselves.
func (f Footprint) Removable() Footprint {
	var out Footprint
	for _, p := range f {
		if p.remove != nil {
			out = append(out, p)
		}
	}
	return out
}

// Lines returns the pieces as text, at most that many.
func (f Footprint) Lines(limit int) []string {
	var out []string
	for i, p := range f {
		if i == limit {
			return append(out, fmt.Sprintf("and %d more", len(f)-limit))
		}
		out = append(out, p.String())
	}
	return out
}

// Footprint reads the host's state.
func (h *Host) Footprint() (Footprint, error) {
	var all Footprint
	err := h.Do(func() error {
		for _, read := range []func() (Footprint, error){
			tables, legacyRules, sets, trackedFlows, sysctls, rules, routes, neighbours, interfaces, pinned, h.ProcessPieces, sockets,
			func() (Footprint, error) { return FilesIn(Memory, "/dev/shm") },
		} {
			found, err := read()
			if err != nil {
				return fmt.Errorf("read the state of host %s: %w", h.Name, err)
			}
			all = append(all, found...)
		}
		return nil
	})
	return all, err
}

// Remove removes the pieces from the host, as another program may do it. A piece that has gone with another one is no error.
func (h *Host) Remove(pieces Footprint) error {
	return h.Do(func() error {
		for _, p := range pieces {
			if err := p.remove(); err != nil && !isGone(err) {
				return fmt.Errorf("remove %s: %w", p, err)
			}
		}
		return nil
	})
}

// FilesIn returns the files in a directory, without the directory itself.
func FilesIn(kind Kind, dir string) (Footprint, error) {
	var out Footprint
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile, or the directory does not exist
		}
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		out = append(out, Piece{Kind: kind, Text: name})
		return err
	})
	return out, err
}

// counters matches packet counters, which change all the time.
var counters = regexp.MustCompile(`packets \d+ bytes \d+| expires [0-9a-z]+`)

// tables returns the nftables rules, each with the names of its table and chain.
func tables() (Footprint, error) {
	text, err := nft("list", "ruleset")
	if err != nil {
		return nil, err
	}
	var out Footprint
	var within []string
	for line := range strings.Lines(counters.ReplaceAllString(text, "")) {
		line = strings.TrimSpace(line)
		switch header, opens := strings.CutSuffix(line, " {"); {
		case line == "":
		case line == "}":
			within = within[:max(0, len(within)-1)]
		case opens:
			within = append(within, header)
			p := Piece{Kind: NFTables, Text: strings.Join(within, ", ")}
			if len(within) == 1 {
				p.remove = func() error { _, err := nft("delete " + header); return err }
			}
			out = append(out, p)
		default:
			out = append(out, Piece{Kind: NFTables, Text: strings.Join(append(within[:len(within):len(within)], line), ", ")})
		}
	}
	return out, nil
}

// AddForeignRules adds nftables rules of another program. They count packets with a mark, in every hook that a forwarded
// packet passes. ICMPv6 is left out, because the kernel's multicast listener reports have a mark.
func (h *Host) AddForeignRules() error {
	return h.Do(func() error {
		script := "add table inet foreign\n"
		for hook, priority := range map[string]int{"prerouting": -50, "forward": 0, "postrouting": 200} {
			script += fmt.Sprintf("add chain inet foreign %[1]s { type filter hook %[1]s priority %[2]d; }\nadd rule inet foreign %[1]s meta l4proto != ipv6-icmp meta mark != 0 counter\n", hook, priority)
		}
		_, err := nft(script)
		return err
	})
}

// DropIncoming makes the host drop all incoming packets, or accept them again.
func (h *Host) DropIncoming(drop bool) error {
	script := "delete table inet mute"
	if drop {
		script = "add table inet mute; add chain inet mute in { type filter hook prerouting priority -400; policy drop; }"
	}
	return h.Do(func() error {
		_, err := nft(script)
		return err
	})
}

// ServeVIPOnNodes makes every node deliver packets for the VIP to the target port of its first address, as kube-proxy does for a
// Service with the VIP.
func (l *Lab) ServeVIPOnNodes(vip netip.AddrPort, target uint16) error {
	for i, n := range l.Nodes {
		v4 := vip.Addr().Is4()
		family := map[bool]string{true: "ip", false: "ip6"}[v4]
		to := netip.AddrPortFrom(EndpointAddress(v4, i), target)
		script := "add table " + family + " kubeproxy; add chain " + family + " kubeproxy services { type nat hook prerouting priority dstnat; };"
		for _, protocol := range []string{"tcp", "udp"} {
			script += fmt.Sprintf("add rule %s kubeproxy services %s daddr %s %s dport %d dnat to %s;", family, family, vip.Addr(), protocol, vip.Port(), to)
		}
		err := n.Do(func() error {
			_, err := nft(script)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
	}
	return nil
}

var counted = regexp.MustCompile(`mark != 0x00000000 counter packets (\d+)`)

// MarkedPackets returns how many packets with a mark the foreign rules counted.
func (h *Host) MarkedPackets() (int, error) {
	total := 0
	err := h.Do(func() error {
		text, err := nft("list", "table", "inet", "foreign")
		if err != nil {
			return err
		}
		found := counted.FindAllStringSubmatch(text, -1)
		if len(found) == 0 {
			return errors.New("the rules of table inet foreign are gone")
		}
		for _, match := range found {
			n, err := strconv.Atoi(match[1])
			if err != nil {
				return err
			}
			total += n
		}
		return nil
	})
	return total, err
}

func nft(arguments ...string) (string, error) {
	output, err := exec.Command("nft", arguments...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("nft: %w: %s", err, output)
	}
	return string(output), nil
}
