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

	"kubelb.k8c.io/core/phrase"
)

// Neighbours finds out whether a segment still takes this host's frames: an interface may be up while the switch takes nothing from it. It has the
// kernel probe the hosts in its neighbour table (RFC 826, RFC 4861).
type Neighbours struct {
	// Interfaces are the interfaces on which the gateway announces addresses.
	Interfaces []string
	// Tell is called when what is known has changed.
	Tell func(context.Context, Segment)
	// Failed is called when the kernel could not be asked.
	Failed func(error)
}

const (
	// Neighbours are probed every lookEvery. The answers are read after answersAfter: the kernel sends three probes, a second apart.
	lookEvery    = 10 * time.Second
	answersAfter = 4 * time.Second
	// An interface is silent if no neighbour answers silentAfter times in a row.
	silentAfter = 2
	// together is how much earlier than the last host that answered others have answered that were there with it.
	together = 3 * lookEvery
	// After tooFewFor looks in a row that found too few hosts to tell, a problem of an earlier process is over: two minutes.
	tooFewFor = 12
	// maxNeighbours is how many neighbours of an interface are probed at most.
	maxNeighbours = 16
	// withoutRouter is how many silent hosts it takes if none of them is a router: a single host may have been turned off.
	withoutRouter = 2
)

// Segment is what is known of the hosts on a segment.
type Segment struct {
	// Problem says at which interfaces no host answers. It is empty if a host answers, or if too few are known to tell.
	Problem string
	// Known are the interfaces at which a host has answered since Run began, which are down, or at which tooFewFor looks found too few
	// hosts to tell. Of others nothing is known.
	Known []string
}

// silentAt is the problem of an interface, with the hosts that answered before.
const silentAt = "no host that answered before answers at interface %s now"

// MayLast tells whether a problem of an earlier process may last: it names one of the interfaces, and nothing is known of this one since.
func MayLast(problem string, interfaces []string, now Segment) bool {
	return slices.ContainsFunc(interfaces, func(name string) bool {
		return strings.Contains(problem, fmt.Sprintf(silentAt, name)) && !slices.Contains(now.Known, name)
	})
}

// neighbour is a host on a segment.
type neighbour struct {
	// index is the interface's.
	index  int
	mac    string
	router bool
	// seen is when it answered last, zero if it has not answered yet.
	seen time.Time
}

// Run asks neighbours until ctx ends.
func (n *Neighbours) Run(ctx context.Context) error {
	known, told := map[string]map[netip.Addr]*neighbour{}, Segment{}
	is := looks{silent: map[string]int{}, tooFew: map[string]int{}}
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		var problems []string
		for _, name := range n.Interfaces {
			if known[name] == nil {
				known[name] = map[netip.Addr]*neighbour{}
			}
			heard, err := n.look(ctx, name, known[name])
			if err != nil {
				n.Failed(err)
			}
			if is.note(name, heard) {
				problems = append(problems, fmt.Sprintf(silentAt+" (%s)", name, names(known[name])))
			}
		}
		now := Segment{Problem: phrase.Few(problems, "; "), Known: slices.Clone(is.known)}
		if (now.Problem != told.Problem || len(now.Known) != len(told.Known)) && ctx.Err() == nil {
			told = now
			n.Tell(ctx, now)
		}
	}, lookEvery-answersAfter)
	return nil
}

// looks are what came of the looks at each interface.
type looks struct {
	// silent counts the last looks in a row that found nobody, tooFew the last ones that found too few.
	silent, tooFew map[string]int
	// known is that of Segment.
	known []string
}

// note notes who answered at an interface, and tells whether it is silent.
func (l *looks) note(name string, heard answering) (silent bool) {
	l.silent[name], l.tooFew[name] = inARow(l.silent[name], heard == nobody), inARow(l.tooFew[name], heard == tooFew)
	if (heard == somebody || l.tooFew[name] >= tooFewFor) && !slices.Contains(l.known, name) {
		l.known = append(l.known, name)
	}
	return l.silent[name] >= silentAfter
}

func inARow(before int, again bool) int {
	if !again {
		return 0
	}
	return before + 1
}

// answering is who answers at an interface.
type answering uint8

const (
	// tooFew: nobody answers, and too few hosts are known for that to be a problem.
	tooFew answering = iota
	somebody
	nobody
	// undecided: nobody answers, and nobody has answered this process yet. The hosts would be enough to tell, or could not be asked.
	undecided
)

// look probes the neighbours at an interface. One that is down counts as answering: it is another condition that says so.
func (n *Neighbours) look(ctx context.Context, name string, known map[netip.Addr]*neighbour) (heard answering, err error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return somebody, nil // the Gateway's condition HostInterfaces says so
	}
	if err != nil {
		return undecided, err
	}
	if a := link.Attrs(); a.OperState == netlink.OperDown || a.OperState == netlink.OperLowerLayerDown {
		return somebody, nil // as above
	}
	index := link.Attrs().Index
	table, err := neighboursOf(index)
	if err != nil {
		return undecided, err
	}
	routers, err := routersBy(index)
	if err != nil {
		return undecided, err
	}
	remember(known, table, routers, index)
	for a := range known {
		if err := probe(index, a, table[a]); err != nil {
			return undecided, fmt.Errorf("ask for neighbour %s at %s: %w", a, name, err)
		}
	}
	pause(ctx, answersAfter)
	if table, err = neighboursOf(index); err != nil {
		return undecided, err
	}
	return answered(known, table, time.Now()), nil
}

// remember adds the hosts of the kernel's table, and the routers, which may not be in it until somebody asks for them. Of more than maxNeighbours it keeps routers, and then the hosts that answered last.
func remember(known map[netip.Addr]*neighbour, table map[netip.Addr]netlink.Neigh, routers map[netip.Addr]bool, index int) {
	for a, k := range known {
		if k.index != index {
			delete(known, a) // another interface has the name now
		}
	}
	for a, entry := range table {
		if !isThere(entry) {
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
			delete(known, a) // it was known by its route alone
		}
	}
	ordered := slices.SortedFunc(maps.Keys(known), func(a, b netip.Addr) int {
		return cmp.Or(compareBool(known[b].router, known[a].router), known[b].seen.Compare(known[a].seen), a.Compare(b))
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

// answered notes who is there. It returns nobody if those are enough to tell that were there last.
func answered(known map[netip.Addr]*neighbour, table map[netip.Addr]netlink.Neigh, now time.Time) answering {
	some := false
	for a, k := range known {
		if table[a].State&netlink.NUD_REACHABLE != 0 {
			k.seen, some = now, true
		}
	}
	last := lastOnes(known)
	switch {
	case some:
		return somebody
	case len(last) == 0 && areEnough(known, slices.Collect(maps.Keys(known))):
		return undecided
	case areEnough(known, last):
		return nobody
	}
	return tooFew
}

// areEnough tells whether it says something of the segment that none of the hosts answers.
func areEnough(known map[netip.Addr]*neighbour, hosts []netip.Addr) bool {
	macs := map[string]bool{}
	for _, a := range hosts {
		if known[a].router {
			return true
		}
		macs[known[a].mac] = true
	}
	return len(macs) >= withoutRouter
}

// lastOnes are the hosts that were there at about the same time as the last one, in order. Others had gone before, while the segment worked.
func lastOnes(known map[netip.Addr]*neighbour) (all []netip.Addr) {
	var last time.Time
	for _, k := range known {
		if k.seen.After(last) {
			last = k.seen
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(known), netip.Addr.Compare) {
		if k := known[a]; !k.seen.IsZero() && last.Sub(k.seen) <= together {
			all = append(all, a)
		}
	}
	return all
}

// isThere tells whether an entry of the table is of a host, which may have gone since.
func isThere(n netlink.Neigh) bool {
	const learned = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE
	return n.State&learned != 0 && len(n.HardwareAddr) == 6 && n.HardwareAddr[0]&1 == 0 && !bytes.Equal(n.HardwareAddr, make(net.HardwareAddr, 6))
}

// probe has the kernel send a probe: to the MAC of the table's entry, or to all hosts if there is none.
func probe(index int, a netip.Addr, entry netlink.Neigh) error {
	ask := &netlink.Neigh{LinkIndex: index, IP: a.AsSlice(), State: netlink.NUD_NONE, Flags: netlink.NTF_USE}
	if isThere(entry) {
		ask.State, ask.Flags, ask.HardwareAddr = netlink.NUD_PROBE, entry.Flags, entry.HardwareAddr
	}
	return netlink.NeighSet(ask)
}

// neighboursOf is the kernel's table of hosts at an interface.
func neighboursOf(index int) (map[netip.Addr]netlink.Neigh, error) {
	table := map[netip.Addr]netlink.Neigh{}
	list, err := netlink.NeighList(index, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list neighbours: %w", err)
	}
	for _, entry := range list {
		if a, ok := netip.AddrFromSlice(entry.IP); ok && !a.Unmap().IsMulticast() {
			table[a.Unmap()] = entry
		}
	}
	return table, nil
}

// routersBy are the next hops of routes by an interface.
func routersBy(index int) (map[netip.Addr]bool, error) {
	routers := map[netip.Addr]bool{}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: index}, netlink.RT_FILTER_OIF)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if a, ok := netip.AddrFromSlice(r.Gw); ok {
			routers[a.Unmap()] = true
		}
	}
	return routers, nil
}

// names lists the hosts that answered last.
func names(known map[netip.Addr]*neighbour) string {
	var all []string
	for _, a := range lastOnes(known) {
		all = append(all, a.String())
	}
	return phrase.Few(all, ", ")
}
