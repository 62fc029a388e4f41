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

// Layer2 answers ARP requests (RFC 826) and neighbour solicitations (RFC 4861) for its addresses in user space: the
// addresses are on no interface, and a frozen or departed gateway stops answering. A new address is announced by
// gratuitous ARP or an unsolicited advertisement, several times, since either may be lost; so are all of them when a link comes up or has
// another MAC, and now and then, since a switch forgets sooner where a MAC is than hosts forget the MAC. Once it has announced an address, and all the
// time, it asks whether another host has it, too. It is a member of the multicast group in which hosts ask for each IPv6 address, so that switches that pass
// multicast only to members pass the questions on.
type Layer2 struct {
	options Layer2Options

	mu    sync.Mutex // guards all below, and of links what they say
	owned map[netip.Addr]bool
	// tenants are whose the IPv6 addresses are, owned or not.
	tenants map[netip.Addr]string
	// asked are the groups in which hosts ask for IPv6 addresses, with the number of addresses of each.
	asked map[netip.Addr]int
	links map[string]*link
	// toAsk are the addresses whose other holders are still to be asked for in this round.
	toAsk []netip.Addr
	// claims are those of other hosts, by what they claim.
	claims map[netip.Addr]*claim

	// routes tells when the families that the links carry may have changed.
	routes routes.Changes
}

var _ Announcer = (*Layer2)(nil)

// Layer2Options say where to answer and when.
type Layer2Options struct {
	// Interfaces are answered on, each with its own MAC address, and no others.
	Interfaces []string
	// Holds is asked before each answer and each announcement: without it nothing is sent. Nil means always.
	Holds func() bool
	// Changed is told when Able or Conflicts say something else than before; nil for nobody. It must not block.
	Changed func()
	Log     *slog.Logger

	// unsupportedFamily is why an interface does not carry a family, "" if it does; nil asks the kernel.
	unsupportedFamily func(string, uplink.State, ipam.Family) (string, error)
}

// NewLayer2 answers on the named interfaces.
func NewLayer2(o Layer2Options) *Layer2 {
	if o.Holds == nil {
		o.Holds = func() bool { return true }
	}
	if o.Changed == nil {
		o.Changed = func() {}
	}
	if o.unsupportedFamily == nil {
		o.unsupportedFamily = unsupportedFamily
	}
	return &Layer2{options: o, owned: map[netip.Addr]bool{}, tenants: map[netip.Addr]string{}, asked: map[netip.Addr]int{}, links: map[string]*link{}, claims: map[netip.Addr]*claim{}}
}

// announcements is how often a new address is announced, and the pause between.
const (
	announcements      = 3
	announcementsPause = 700 * time.Millisecond
	refreshes          = time.Minute // how often everything is announced again
	refreshBatch       = 256
	familyInterval     = time.Second // how often it finds out which families interfaces carry, if that may have changed
	// Other holders of each address are asked for every askRound seconds: of some addresses each second, of maxAsks at most.
	askRound, maxAsks = 25, 200
)

// Announce adds addresses and makes them known on every link.
func (l *Layer2) Announce(addresses ...netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range addresses {
		if !l.owned[a] {
			l.owned[a] = true
			l.askedIn(a, 1)
		}
	}
	l.announce(addresses)
	l.repeat(addresses, announcements-1)
}

// Withdraw removes addresses; from then on nothing answers for them here.
func (l *Layer2) Withdraw(addresses ...netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range addresses {
		if l.owned[a] {
			l.askedIn(a, -1)
		}
		delete(l.owned, a)
		delete(l.claims, a)
	}
}

// askedIn counts the addresses of the group in which hosts ask for one, and has links join the group or leave it; mu is held.
func (l *Layer2) askedIn(a netip.Addr, change int) {
	if !a.Is6() {
		return
	}
	group := uplink.SolicitedNode(a)
	before := l.asked[group]
	if l.asked[group] = before + change; l.asked[group] == 0 {
		delete(l.asked, group)
	}
	if (before > 0) == (before+change > 0) {
		return
	}
	for _, k := range l.links {
		k.note(group)
	}
}

// repeat announces again, later, what is still ours then, and asks in the end who else has it.
func (l *Layer2) repeat(addresses []netip.Addr, times int) {
	if times == 0 {
		l.ask(addresses)
		return
	}
	time.AfterFunc(announcementsPause, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if still := l.still(addresses); len(still) > 0 {
			l.announce(still)
			l.repeat(still, times-1)
		}
	})
}

// still are those of the addresses that are owned; mu is held.
func (l *Layer2) still(addresses []netip.Addr) (still []netip.Addr) {
	for _, a := range addresses {
		if l.owned[a] {
			still = append(still, a)
		}
	}
	return still
}

// announce sends one announcement of each address on every link that is up; mu is held.
func (l *Layer2) announce(addresses []netip.Addr) {
	for _, k := range l.links {
		l.each(k, addresses, "announce", announcementOf)
	}
}

// each sends a frame for each address on a link that is up, as long as anything may be sent; mu is held.
func (l *Layer2) each(k *link, addresses []netip.Addr, what string, frame func(net.HardwareAddr, netip.Addr) []byte) {
	if !k.up() {
		return
	}
	for _, a := range addresses {
		if !l.options.Holds() {
			return
		}
		if err := send(k.sockets.of(a), frame(k.state.MAC, a)); err != nil {
			l.options.Log.Warn(what, "address", a, "interface", k.name, "error", err)
		}
	}
}

// Able tells whether a link is up.
func (l *Layer2) Able() bool {
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

// Silent is why no address of a family is announced, empty if an interface is up and carries the family.
func (l *Layer2) Silent(f ipam.Family) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var why []string
	for _, name := range l.options.Interfaces {
		switch k := l.links[name]; {
		case k == nil:
			why = append(why, "interface "+name+" is not there")
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

// Run answers until ctx ends. An interface that is not there is an error at the beginning only: one that goes later is waited for,
// and harms no other.
func (l *Layer2) Run(ctx context.Context) error {
	var links []*link
	for _, name := range l.options.Interfaces {
		k, err := begin(name)
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
	running.Go(func() { every(ctx, refreshes, l.refresh) })
	running.Go(func() { every(ctx, time.Second, l.askSome) })
	running.Go(func() { every(ctx, claimChecks, l.follow) })
	running.Go(func() { every(ctx, familyInterval, l.recheckFamilies) })
	running.Go(func() {
		l.routes.Listen(ctx, func(err error) { l.options.Log.Warn("notice changes of routes within a minute only", "error", err) })
	})
	<-ctx.Done()
	l.mu.Lock()
	l.owned, l.asked = map[netip.Addr]bool{}, map[netip.Addr]int{}
	l.mu.Unlock()
	running.Wait()
	return nil
}

// every does something now and then, until ctx ends.
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

// refresh announces everything.
func (l *Layer2) refresh() { l.inBatches(l.announce) }

// askSome asks for other holders of some addresses, in rounds over all of them.
func (l *Layer2) askSome() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.toAsk = l.still(l.toAsk); len(l.toAsk) == 0 {
		l.toAsk = slices.Collect(maps.Keys(l.owned))
	}
	n := min((len(l.owned)+askRound-1)/askRound, maxAsks, len(l.toAsk))
	l.ask(l.toAsk[:n])
	l.toAsk = l.toAsk[n:]
}

// inBatches does something with all addresses, in batches between which questions are answered.
func (l *Layer2) inBatches(do func([]netip.Addr)) {
	l.mu.Lock()
	all := slices.Collect(maps.Keys(l.owned))
	l.mu.Unlock()
	for batch := range slices.Chunk(all, refreshBatch) {
		l.mu.Lock()
		do(l.still(batch))
		l.mu.Unlock()
	}
}

// owns tells whether an address is ours and may be answered for, and the MAC at which it is on a link.
func (l *Layer2) owns(k *link, a netip.Addr) (net.HardwareAddr, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return k.state.MAC, l.owned[a] && l.options.Holds()
}
