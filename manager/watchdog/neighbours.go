package watchdog

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"k8s.io/apimachinery/pkg/util/wait"

	"kubelb.k8c.io/backends/dataplane/dumps"
	"kubelb.k8c.io/core/phrase"
)

// Neighbours checks whether the clients' segment still takes this host's frames: an interface may be up while the switch drops everything from it. It
// makes the kernel probe the hosts in its neighbour table (RFC 826, RFC 4861).
type Neighbours struct {
	// Interfaces are the interfaces on which the gateway announces addresses.
	Interfaces []string
	// OnChange is called with each changed result.
	OnChange func(context.Context, Segment)
	// OnError is called when the kernel could not be asked.
	OnError func(error)
}

const (
	// Neighbours are probed every probeInterval. The answers are read after answerTimeout: the kernel sends three probes, a second apart.
	probeInterval = 10 * time.Second
	answerTimeout = 4 * time.Second
	// An interface is silent if no neighbour answers silentAfter times in a row.
	silentAfter = 2
	// Hosts count as present until the last answer if they answered at most sameTime before it.
	sameTime = 3 * probeInterval
	// After tooFewLimit probes in a row with too few hosts for a result, the problem of a former process is over. This takes two minutes.
	tooFewLimit = 12
	// maxNeighbours bounds the probed neighbours of an interface.
	maxNeighbours = 16
	// minHosts is the number of silent hosts that show a problem if none of them is a router: a single host may have been turned off.
	minHosts = 2
)

// Segment is the state of the hosts on the clients' segment.
type Segment struct {
	// Problem says at which interfaces no host answers. It is empty if a host answers, or if too few hosts are known.
	Problem string
	// Known are the interfaces with a result since Run started: a host has answered there, the interface is down, or tooFewLimit probes found too few
	// hosts.
	Known []string
}

// silentFormat is the problem of an interface. A list of the hosts that answered before follows. The next process reads it.
const silentFormat = "no host that answered before answers at interface %s now"

// MayPersist reports whether the problem of a former process may last: it names one of the interfaces, and this process has no result for that interface
// yet.
func MayPersist(problem string, interfaces []string, now Segment) bool {
	return slices.ContainsFunc(interfaces, func(name string) bool {
		return strings.Contains(problem, fmt.Sprintf(silentFormat, name)) && !slices.Contains(now.Known, name)
	})
}

// neighbour is a host on a segment.
type neighbour struct {
	// index is the number of the interface.
	index  int
	mac    string
	router bool
	// lastAnswer is the time of its last answer, zero if it has not answered yet.
	lastAnswer time.Time
}

// Run probes neighbours until ctx ends.
func (n *Neighbours) Run(ctx context.Context) error {
	known, reported := map[string]map[netip.Addr]*neighbour{}, Segment{}
	results := probeResults{silent: map[string]int{}, tooFew: map[string]int{}}
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		var problems []string
		for _, name := range n.Interfaces {
			if known[name] == nil {
				known[name] = map[netip.Addr]*neighbour{}
			}
			result, err := n.probeInterface(ctx, name, known[name])
			if err != nil {
				n.OnError(err)
			}
			if results.add(name, result) {
				problems = append(problems, fmt.Sprintf(silentFormat+" (%s)", name, addressList(known[name])))
			}
		}
		now := Segment{Problem: phrase.Few(problems, "; "), Known: slices.Clone(results.known)}
		if (now.Problem != reported.Problem || len(now.Known) != len(reported.Known)) && ctx.Err() == nil {
			reported = now
			n.OnChange(ctx, now)
		}
	}, probeInterval-answerTimeout)
	return nil
}

// probeResults are the results of the probes at each interface.
type probeResults struct {
	// silent counts the last probes in a row without an answer, tooFew the last ones with too few hosts.
	silent, tooFew map[string]int
	// known is Segment.Known.
	known []string
}

// add adds the result of an interface, and returns whether the interface is silent.
func (p *probeResults) add(name string, result probeResult) (silent bool) {
	p.silent[name], p.tooFew[name] = countInARow(p.silent[name], result == noHostAnswers), countInARow(p.tooFew[name], result == tooFewHosts)
	if (result == hostAnswers || p.tooFew[name] >= tooFewLimit) && !slices.Contains(p.known, name) {
		p.known = append(p.known, name)
	}
	return p.silent[name] >= silentAfter
}

func countInARow(before int, again bool) int {
	if !again {
		return 0
	}
	return before + 1
}

// probeResult is the result of a probe of an interface.
type probeResult uint8

const (
	// tooFewHosts: no host answers, and too few hosts are known for that to be a problem.
	tooFewHosts probeResult = iota
	hostAnswers
	noHostAnswers
	// undecided: no host answers, and no host has answered this process yet. There are enough hosts, or they could not be probed.
	undecided
)

// probeInterface probes the neighbours at an interface. An interface that is down counts as answering: another condition reports it.
func (n *Neighbours) probeInterface(ctx context.Context, name string, known map[netip.Addr]*neighbour) (result probeResult, err error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return hostAnswers, nil // the Gateway's condition HostInterfaces reports it
	}
	if err != nil {
		return undecided, err
	}
	if a := link.Attrs(); a.OperState == netlink.OperDown || a.OperState == netlink.OperLowerLayerDown {
		return hostAnswers, nil // as above
	}
	index := link.Attrs().Index
	table, err := neighbourTable(index)
	if err != nil {
		return undecided, err
	}
	routers, err := routersBy(index)
	if err != nil {
		return undecided, err
	}
	updateKnown(known, table, routers, index)
	for a := range known {
		if err := sendProbe(index, a, table[a]); err != nil {
			return undecided, fmt.Errorf("probe neighbour %s at %s: %w", a, name, err)
		}
	}
	pause(ctx, answerTimeout)
	if table, err = neighbourTable(index); err != nil {
		return undecided, err
	}
	return evaluate(known, table, time.Now()), nil
}

// updateKnown adds the hosts of the kernel's table, and the routers, which may not be in the table until somebody asks for them. Of more than
// maxNeighbours it keeps routers, and then the hosts that answered last.
func updateKnown(known map[netip.Addr]*neighbour, table map[netip.Addr]netlink.Neigh, routers map[netip.Addr]bool, index int) {
	for a, k := range known {
		if k.index != index {
			delete(known, a) // another interface has this name now
		}
	}
	for a, entry := range table {
		if !isLearned(entry) {
			continue
		}
		if known[a] == nil {
			known[a] = &neighbour{index: index}
		}
		known[a].mac = entry.HardwareAddr.String()
	}
	for a := range routers {
		if known[a] == nil {
			known[a] = &neighbour{index: index}
		}
	}
	for a, k := range known {
		if k.router = routers[a]; !k.router && k.mac == "" {
			delete(known, a) // it was only known by its route
		}
	}
	ordered := slices.SortedFunc(maps.Keys(known), func(a, b netip.Addr) int {
		return cmp.Or(compareBool(known[b].router, known[a].router), known[b].lastAnswer.Compare(known[a].lastAnswer), a.Compare(b))
	})
	for _, a := range ordered[min(len(ordered), maxNeighbours):] {
		delete(known, a)
	}
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// evaluate notes who answers. It returns noHostAnswers if enough hosts were present until the last answer.
func evaluate(known map[netip.Addr]*neighbour, table map[netip.Addr]netlink.Neigh, now time.Time) probeResult {
	some := false
	for a, k := range known {
		if table[a].State&netlink.NUD_REACHABLE != 0 {
			k.lastAnswer, some = now, true
		}
	}
	last := lastAnswering(known)
	switch {
	case some:
		return hostAnswers
	case len(last) == 0 && areConclusive(known, slices.Collect(maps.Keys(known))):
		return undecided
	case areConclusive(known, last):
		return noHostAnswers
	}
	return tooFewHosts
}

// areConclusive reports whether it shows a problem of the segment that none of the hosts answers.
func areConclusive(known map[netip.Addr]*neighbour, hosts []netip.Addr) bool {
	macs := map[string]bool{}
	for _, a := range hosts {
		if known[a].router {
			return true
		}
		macs[known[a].mac] = true
	}
	return len(macs) >= minHosts
}

// lastAnswering returns the hosts that were present until the last answer, in order. Others went before, while the segment worked.
func lastAnswering(known map[netip.Addr]*neighbour) (all []netip.Addr) {
	var last time.Time
	for _, k := range known {
		if k.lastAnswer.After(last) {
			last = k.lastAnswer
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(known), netip.Addr.Compare) {
		if k := known[a]; !k.lastAnswer.IsZero() && last.Sub(k.lastAnswer) <= sameTime {
			all = append(all, a)
		}
	}
	return all
}

// isLearned reports whether the kernel has learned the entry of the table from a host, which may have gone since.
func isLearned(n netlink.Neigh) bool {
	const learned = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE
	return n.State&learned != 0 && len(n.HardwareAddr) == 6 && n.HardwareAddr[0]&1 == 0 && !bytes.Equal(n.HardwareAddr, make(net.HardwareAddr, 6))
}

// sendProbe makes the kernel send a probe: to the MAC of the table's entry, or to all hosts if there is none.
func sendProbe(index int, a netip.Addr, entry netlink.Neigh) error {
	ask := &netlink.Neigh{LinkIndex: index, IP: a.AsSlice(), State: netlink.NUD_NONE, Flags: netlink.NTF_USE}
	if isLearned(entry) {
		ask.State, ask.Flags, ask.HardwareAddr = netlink.NUD_PROBE, entry.Flags, entry.HardwareAddr
	}
	return netlink.NeighSet(ask)
}

// neighbourTable returns the kernel's table of hosts at an interface.
func neighbourTable(index int) (map[netip.Addr]netlink.Neigh, error) {
	table := map[netip.Addr]netlink.Neigh{}
	list, err := dumps.Read(func() ([]netlink.Neigh, error) { return netlink.NeighList(index, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list neighbours: %w", err)
	}
	for _, entry := range list {
		if a, ok := netip.AddrFromSlice(entry.IP); ok && !a.Unmap().IsMulticast() {
			table[a.Unmap()] = entry
		}
	}
	return table, nil
}

// routersBy returns the next hops of routes by an interface.
func routersBy(index int) (map[netip.Addr]bool, error) {
	routers := map[netip.Addr]bool{}
	here := &netlink.Route{LinkIndex: index}
	routes, err := dumps.Read(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, here, netlink.RT_FILTER_OIF)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if a, ok := netip.AddrFromSlice(r.Gw); ok {
			routers[a.Unmap()] = true
		}
	}
	return routers, nil
}

// addressList lists the hosts that answered last.
func addressList(known map[netip.Addr]*neighbour) string {
	var all []string
	for _, a := range lastAnswering(known) {
		all = append(all, a.String())
	}
	return phrase.Few(all, ", ")
}
