package lab

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The interface of iptables-legacy (include/uapi/linux/netfilter_ipv4/ip_tables.h). Rules of iptables-nft are in the ruleset of nftables.
const (
	xtablesInfo    = 64 // IPT_SO_GET_INFO and IP6T_SO_GET_INFO
	xtablesEntries = 65
	xtablesHooks   = 5
)

type xtablesTable struct {
	name              [32]byte
	_                 uint32 // the hooks that the table has
	entries, policies [xtablesHooks]uint32
	count, size       uint32
}

// xtablesFamily is what differs between iptables and ip6tables.
type xtablesFamily struct {
	names         string // the file with the names of the tables
	domain, level int
	// targetAt is where a rule has the offset of its target. Its length follows, then where it came from, and its counters.
	targetAt   int
	ruleLength int
}

var xtablesFamilies = []xtablesFamily{
	{names: "ip_tables_names", domain: unix.AF_INET, level: unix.SOL_IP, targetAt: 88, ruleLength: 112},
	{names: "ip6_tables_names", domain: unix.AF_INET6, level: unix.SOL_IPV6, targetAt: 140, ruleLength: 168},
}

// legacyRules returns the rules and chains of iptables-legacy. A table is loaded with its first rule and stays, so an empty one is left out.
func legacyRules() (Footprint, error) {
	var out Footprint
	for _, family := range xtablesFamilies {
		text, err := os.ReadFile("/proc/thread-self/net/" + family.names)
		if err != nil {
			continue // the kernel has no iptables-legacy, or has not loaded it
		}
		for name := range strings.FieldsSeq(string(text)) {
			found, err := family.rules(name)
			if err != nil {
				return nil, fmt.Errorf("table %s of iptables-legacy: %w", name, err)
			}
			out = append(out, found...)
		}
	}
	return out, nil
}

// rules returns the rules of a table.
func (x xtablesFamily) rules(name string) (Footprint, error) {
	socket, err := unix.Socket(x.domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, err
	}
	defer unix.Close(socket)
	var table xtablesTable
	copy(table.name[:len(table.name)-1], name)
	if err := x.read(socket, xtablesInfo, unsafe.Pointer(&table), unsafe.Sizeof(table)); err != nil {
		return nil, err
	}
	const header = 40 // struct ipt_get_entries: name and size, aligned to 8 bytes
	answer := make([]byte, header+int(table.size))
	copy(answer[:31], name)
	binary.NativeEndian.PutUint32(answer[32:], table.size)
	if err := x.read(socket, xtablesEntries, unsafe.Pointer(&answer[0]), uintptr(len(answer))); err != nil {
		return nil, err
	}
	return x.parse(name, table, answer[header:])
}

func (x xtablesFamily) read(socket int, option int, into unsafe.Pointer, size uintptr) error {
	length := uint32(size)
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(socket), uintptr(x.level), uintptr(option), uintptr(into), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// parse returns the rules that a program has added: all but the policies of the chains, which accept at first, and the mark of the end.
func (x xtablesFamily) parse(name string, table xtablesTable, rules []byte) (Footprint, error) {
	var out Footprint
	for at := 0; at < len(rules); {
		if len(rules)-at < x.ruleLength {
			return nil, fmt.Errorf("a rule at %d of %d is cut", at, len(rules))
		}
		target := int(binary.NativeEndian.Uint16(rules[at+x.targetAt:]))
		next := int(binary.NativeEndian.Uint16(rules[at+x.targetAt+2:]))
		if next < x.ruleLength || at+next > len(rules) || target+32+4 > next {
			return nil, fmt.Errorf("a rule at %d of %d has %d bytes", at, len(rules), next)
		}
		rule := append([]byte(nil), rules[at:at+next]...)
		clear(rule[x.targetAt+4 : x.ruleLength]) // where the rule came from, and its counters
		isLast := at+next == len(rules)
		if !isLast && !(table.isPolicy(at) && accepts(rule[target:])) {
			out = append(out, Piece{Kind: IPTablesLegacy, Text: fmt.Sprintf("%s of %s: %x", name, strings.TrimSuffix(x.names, "_names"), sha256.Sum256(rule))})
		}
		at += next
	}
	return out, nil
}

func (t xtablesTable) isPolicy(at int) bool {
	for _, policy := range t.policies {
		if int(policy) == at {
			return true
		}
	}
	return false
}

// accepts reports whether a target is the standard one, with the verdict to accept: the negative of NF_ACCEPT, less 1.
func accepts(target []byte) bool {
	const standard, accept = 0, -2
	return target[2] == standard && int32(binary.NativeEndian.Uint32(target[32:])) == accept
}
