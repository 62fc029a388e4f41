package broken

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inPurges returns faults of a purge. A dataplane may leave anything behind that it has put on a host.
func inPurges() []Mutation {
	leaves := func(name string, leave func(stateDir string) error) Mutation {
		return Mutation{Name: name, CaughtBy: []string{"purge-by-successor"}, leaves: leave}
	}
	return []Mutation{
		{Name: "purges-only-what-it-applied", CaughtBy: []string{"purge-by-successor"}, purgesOwn: true},
		{Name: "purges-without-configuration", CaughtBy: []string{"purge-by-successor"}, purgesUnconfigured: true},
		{Name: "removes-one-jump-only", CaughtBy: []string{"purge", "purge-by-successor"}, noPurge: true, purged: removeJumps},
		{Name: "leaves-connection-tracking", CaughtBy: []string{"purge", "purge-by-successor"}, noPurge: true, purged: removeTables},
		{Name: "leaves-connections-hanging", CaughtBy: []string{"purge", "purge-by-successor"}, purging: forgetSilently},
		leaves("leaves-a-table", func(string) error { return nft("add table ip left") }),
		leaves("leaves-a-rule-of-iptables", func(string) error { return run("iptables-legacy", "-t", "mangle", "-A", "FORWARD", "-j", "ACCEPT") }),
		leaves("leaves-a-chain-of-ip6tables", func(string) error { return run("ip6tables-legacy", "-t", "filter", "-N", "left") }),
		leaves("leaves-a-policy-of-iptables", func(string) error { return run("iptables-legacy", "-P", "FORWARD", "DROP") }),
		leaves("leaves-an-ipset", func(string) error {
			return netlink.IpsetCreate("left", "hash:ip", netlink.IpsetCreateOptions{Family: unix.AF_INET})
		}),
		leaves("leaves-a-tracked-flow", leaveFlow),
		leaves("leaves-proxy-arp", func(string) error { return sysctl("net/ipv4/conf/front/proxy_arp", "1") }),
		leaves("leaves-proxy-ndp", func(string) error { return sysctl("net/ipv6/conf/front/proxy_ndp", "1") }),
		leaves("leaves-forwarding-off", func(string) error { return sysctl("net/ipv6/conf/all/forwarding", "0") }),
		leaves("leaves-local-delivery", func(string) error { return sysctl("net/ipv4/conf/front/route_localnet", "1") }),
		leaves("leaves-a-route", func(string) error { return run("ip", "route", "add", "203.0.113.0/24", "dev", "front", "table", "77") }),
		leaves("leaves-a-routing-rule", func(string) error {
			return run("ip", "-6", "rule", "add", "fwmark", "0x4d", "table", "main", "priority", "77")
		}),
		leaves("leaves-a-neighbour", func(string) error {
			return run("ip", "neigh", "add", "192.0.2.77", "lladdr", "02:00:00:00:00:77", "dev", "front", "nud", "permanent")
		}),
		leaves("leaves-a-proxied-neighbour", func(string) error { return run("ip", "neigh", "add", "proxy", "2001:db8:c::77", "dev", "front") }),
		leaves("leaves-a-qdisc", func(string) error { return run("tc", "qdisc", "add", "dev", "back", "clsact") }),
		leaves("leaves-a-filter", leaveFilter),
		leaves("leaves-an-xdp-program", func(string) error { return onFront(leaveXDP) }),
		leaves("leaves-a-tcx-program", func(string) error { return onFront(leaveTCX) }),
		leaves("leaves-a-pinned-map", leavePinned),
		leaves("leaves-a-process", func(string) error { return exec.Command("sleep", "600").Start() }),
		leaves("leaves-a-listening-socket", leaveSocket()),
		leaves("leaves-an-interface", func(string) error { return run("ip", "link", "add", "left", "type", "bridge") }),
		leaves("leaves-an-address", func(string) error { return run("ip", "address", "add", "203.0.113.1/32", "dev", "lo") }),
		leaves("leaves-promiscuous-mode", func(string) error { return run("ip", "link", "set", "front", "promisc", "on") }),
		leaves("leaves-a-file", func(dir string) error { return os.WriteFile(filepath.Join(dir, "left"), nil, 0o600) }),
		leaves("leaves-shared-memory", func(string) error { return os.WriteFile("/dev/shm/left", nil, 0o600) }),
	}
}

func run(program string, arguments ...string) error {
	if output, err := exec.Command(program, arguments...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, output)
	}
	return nil
}

func sysctl(name, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644)
}

// tablesOfNftables are the tables of the nftables backend.
var tablesOfNftables = [...]string{"ip kubelb", "ip6 kubelb"}

// firstJump matches a rule that jumps or goes to a chain, and its handle, in the output of nft.
var firstJump = regexp.MustCompile(`(?:jump|goto) \S+ # handle (\d+)`)

// removeJumps removes one rule of each table, so that no new flow is served. All else stays.
func removeJumps() error {
	for _, table := range tablesOfNftables {
		chain := table + " prerouting"
		text, err := exec.Command("nft", append([]string{"-a", "list", "chain"}, strings.Fields(chain)...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("nft: %w: %s", err, text)
		}
		found := firstJump.FindSubmatch(text)
		if found == nil {
			return fmt.Errorf("no jump in chain %s", chain)
		}
		if err := nft(fmt.Sprintf("delete rule %s handle %s", chain, found[1])); err != nil {
			return err
		}
	}
	return nil
}

// removeTables removes the tables of the nftables backend, and nothing else.
func removeTables() error {
	text := "add table netdev kubelb; delete table netdev kubelb;"
	for _, table := range tablesOfNftables {
		text += fmt.Sprintf("add table %[1]s; delete table %[1]s;", table)
	}
	return nft(text)
}

// forgetSilently removes tables and flows, so that the backend finds no connection to end.
func forgetSilently() error {
	return errors.Join(removeTables(), netlink.ConntrackTableFlush(netlink.ConntrackTable))
}

// leaveFlow leaves an entry of connection tracking, as one of a closed connection with a mark.
func leaveFlow(string) error {
	tuple := func(source, target string, sourcePort, targetPort uint16) netlink.IPTuple {
		return netlink.IPTuple{SrcIP: net.ParseIP(source).To4(), DstIP: net.ParseIP(target).To4(), SrcPort: sourcePort, DstPort: targetPort, Protocol: unix.IPPROTO_UDP}
	}
	return netlink.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, &netlink.ConntrackFlow{FamilyType: unix.AF_INET, TimeOut: 600,
		Forward: tuple("192.0.2.100", "203.0.113.1", 40000, 80), Reverse: tuple("203.0.113.1", "192.0.2.100", 80, 40000)})
}

// leaveSocket returns a function that leaves a socket that listens. It keeps all of them open.
func leaveSocket() func(string) error {
	var open []net.Listener
	return func(string) error {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		open = append(open, l)
		return err
	}
}
