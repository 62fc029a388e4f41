package announce

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"kubelb.k8c.io/backends/dataplane/routes"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/phrase"
	"kubelb.k8c.io/manager/uplink"
)

// Layer2 answers ARP requests (RFC 826) and neighbour solicitations (RFC 4861) for its addresses in user space. The
// addresses are on no interface, so a frozen or stopped gateway does not answer. It announces a new address several times by
// gratuitous ARP or an unsolicited advertisement, since a frame may be lost. It announces all addresses when a link comes up or has
// another MAC address, and periodically, since switches forget the port of a MAC address sooner than hosts forget the MAC address. After it has announced an
// address, and periodically, it asks whether another host also has the address. It joins the solicited-node multicast group of each IPv6 address, so that
// switches with MLD snooping pass solicitations to it.
type Layer2 struct {
	options Layer2Options

	mu    sync.Mutex // guards the fields below, and the fields of links that link names
	owned map[netip.Addr]bool
	// tenants has the tenant of each IPv6 address, also of addresses that are not owned.
	tenants map[netip.Addr]string
	// groups are the solicited-node multicast groups of the owned addresses, with the number of addresses of each.
	groups map[netip.Addr]int
	links  map[string]*link
	// toQuery are the addresses that are still to be queried in this round of conflict detection.
	toQuery []netip.Addr
	// claims are the claims of other hosts, by address.
	claims map[netip.Addr]*claim

	// routes notices changes that may change the families of links.
	routes routes.Changes
}

var _ Announcer = (*Layer2)(nil)

// Layer2Options configure Layer2.
type Layer2Options struct {
	// Interfaces are the interfaces on which it answers, each with its own MAC address.
	Interfaces []string
	// HoldsLease reports whether this gateway has the lease. It is called before each answer and each announcement, which are sent only with the lease. Nil means always.
	HoldsLease func() bool
	// Changed is called when the result of CanAnnounce, SilentReason or Conflicts may have changed. It may be nil, and must not block.
	Changed func()
	Log     *slog.Logger

	// unsupportedFamily returns why an interface does not carry a family, empty if it does. Nil asks the kernel.
	unsupportedFamily func(string, uplink.State, ipam.Family) (string, error)
}

// NewLayer2 returns an announcer without addresses.
func NewLayer2(o Layer2Options) *Layer2 {
	if o.HoldsLease == nil {
		o.HoldsLease = func() bool { return true }
	}
	if o.Changed == nil {
		o.Changed = func() {}
	}
	if o.unsupportedFamily == nil {
		o.unsupportedFamily = unsupportedFamily
	}
	return &Layer2{options: o, owned: map[netip.Addr]bool{}, tenants: map[netip.Addr]string{}, groups: map[netip.Addr]int{}, links: map[string]*link{}, claims: map[netip.Addr]*claim{}}
}

const (
	// announcements is how often a new address is announced.
	announcements      = 3
	announcementsPause = 700 * time.Millisecond
	refreshInterval    = time.Minute // of announcements of all addresses
	refreshBatch       = 256
	familyInterval     = time.Second // of checks of the families of interfaces, if they may have changed
	// Each address is queried every queryRound seconds: some addresses each second, but at most maxQueries.
	queryRound, maxQueries = 25, 200
)

// Announce adds addresses and announces them on each link.
func (l *Layer2) Announce(addresses ...netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range addresses {
		if !l.owned[a] {
			l.owned[a] = true
			l.countGroup(a, 1)
		}
	}
	l.announce(addresses)
	l.repeat(addresses, announcements-1)
}

// Withdraw removes addresses. From then on this gateway does not answer for them.
func (l *Layer2) Withdraw(addresses ...netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range addresses {
		if l.owned[a] {
			l.countGroup(a, -1)
		}
		delete(l.owned, a)
		delete(l.claims, a)
	}
}

// countGroup counts an address in its solicited-node group, and makes links join or leave the group. mu is held.
func (l *Layer2) countGroup(a netip.Addr, change int) {
	if !a.Is6() {
		return
	}
	group := uplink.SolicitedNode(a)
	before := l.groups[group]
	if l.groups[group] = before + change; l.groups[group] == 0 {
		delete(l.groups, group)
	}
	if (before > 0) == (before+change > 0) {
		return
	}
	for _, k := range l.links {
		k.setPending(group)
	}
}

// repeat announces addresses again, times times, if they are still owned. Then it queries which other hosts have them.
func (l *Layer2) repeat(addresses []netip.Addr, times int) {
	if times == 0 {
		l.query(addresses)
		return
	}
	time.AfterFunc(announcementsPause, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if still := l.stillOwned(addresses); len(still) > 0 {
			l.announce(still)
			l.repeat(still, times-1)
		}
	})
}

// stillOwned returns the addresses that are still owned. mu is held.
func (l *Layer2) stillOwned(addresses []netip.Addr) (owned []netip.Addr) {
	for _, a := range addresses {
		if l.owned[a] {
			owned = append(owned, a)
		}
	}
	return owned
}

// announce sends one announcement of each address on each link that is up. mu is held.
func (l *Layer2) announce(addresses []netip.Addr) {
	for _, k := range l.links {
		l.sendEach(k, addresses, "announce", announcementOf)
	}
}

// sendEach sends a frame for each address on a link that is up, as long as this gateway has the lease. mu is held.
func (l *Layer2) sendEach(k *link, addresses []netip.Addr, what string, frame func(net.HardwareAddr, netip.Addr) []byte) {
	if !k.up() {
		return
	}
	for _, a := range addresses {
		if !l.options.HoldsLease() {
			return
		}
		if err := send(k.sockets.of(a), frame(k.state.MAC, a)); err != nil {
			l.options.Log.Warn(what, "address", a, "interface", k.name, "error", err)
		}
	}
}

// CanAnnounce reports whether a link is up.
func (l *Layer2) CanAnnounce() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.able()
}

func (l *Layer2) able() bool {
	for _, k := range l.links {
		if k.up() {
			return true
		}
	}
	return false
}

// SilentReason returns why no address of a family is announced, empty if an interface is up and carries the family.
func (l *Layer2) SilentReason(f ipam.Family) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var why []string
	for _, name := range l.options.Interfaces {
		switch k := l.links[name]; {
		case k == nil:
			why = append(why, "interface "+name+" does not exist")
		case !k.up():
			why = append(why, "interface "+name+" is down, or has no carrier")
		case k.unsupported[f] != "":
			why = append(why, k.unsupported[f])
		default:
			return ""
		}
	}
	return phrase.Few(why, "; ")
}

// Run answers until ctx ends. A missing interface is an error only at the start. If an interface disappears later, Run waits for it, and
// goes on with the others.
func (l *Layer2) Run(ctx context.Context) error {
	var links []*link
	for _, name := range l.options.Interfaces {
		k, err := openLink(name)
		if err != nil {
			for _, begun := range links {
				begun.sockets.close()
			}
			return fmt.Errorf("announce on interface %s (needs CAP_NET_RAW): %w", name, err)
		}
		l.checkFamiliesOf(k, k.state)
		links = append(links, k)
	}
	var running sync.WaitGroup
	for _, k := range links {
		running.Go(func() { l.keep(ctx, k) })
	}
	running.Go(func() { every(ctx, refreshInterval, l.refresh) })
	running.Go(func() { every(ctx, time.Second, l.querySome) })
	running.Go(func() { every(ctx, claimCheckInterval, l.checkClaims) })
	running.Go(func() { every(ctx, familyInterval, l.recheckFamilies) })
	running.Go(func() {
		l.routes.Listen(ctx, func(err error) {
			l.options.Log.Warn("changes of routes are noticed late, up to a minute", "error", err)
		})
	})
	<-ctx.Done()
	l.mu.Lock()
	l.owned, l.groups = map[netip.Addr]bool{}, map[netip.Addr]int{}
	l.mu.Unlock()
	running.Wait()
	return nil
}

// every calls do periodically until ctx ends.
func every(ctx context.Context, period time.Duration, do func()) {
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			do()
		}
	}
}

// refresh announces all addresses.
func (l *Layer2) refresh() { l.inBatches(l.announce) }

// querySome queries which other hosts have some of the addresses, in rounds over all of them.
func (l *Layer2) querySome() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.toQuery = l.stillOwned(l.toQuery); len(l.toQuery) == 0 {
		l.toQuery = slices.Collect(maps.Keys(l.owned))
	}
	n := min((len(l.owned)+queryRound-1)/queryRound, maxQueries, len(l.toQuery))
	l.query(l.toQuery[:n])
	l.toQuery = l.toQuery[n:]
}

// inBatches calls do with all addresses, in batches. In between, requests are answered.
func (l *Layer2) inBatches(do func([]netip.Addr)) {
	l.mu.Lock()
	all := slices.Collect(maps.Keys(l.owned))
	l.mu.Unlock()
	for batch := range slices.Chunk(all, refreshBatch) {
		l.mu.Lock()
		do(l.stillOwned(batch))
		l.mu.Unlock()
	}
}

// owns reports whether this gateway answers for an address, and returns the MAC address of the link.
func (l *Layer2) owns(k *link, a netip.Addr) (net.HardwareAddr, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return k.state.MAC, l.owned[a] && l.options.HoldsLease()
}
