package announce

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/manager/descriptor"
	"kubelb.k8c.io/manager/uplink"
)

// link is an interface that is answered on. What it says is guarded by the announcer's mu; keep alone changes it.
type link struct {
	name string
	// state is what the interface is. sockets are nil while it is not there, or they failed.
	state   uplink.State
	sockets *sockets
	// unsupported is why the interface does not carry a family, "" if it does.
	unsupported map[ipam.Family]string
	// noted are groups to look at: they are to be joined, or left. wake tells keep of them.
	noted map[netip.Addr]bool
	wake  chan struct{}
	// unjoined are groups that could not be joined, and problem is why.
	unjoined map[netip.Addr]bool
	problem  string
}

func newLink(name string) *link {
	return &link{name: name, unsupported: map[ipam.Family]string{}, noted: map[netip.Addr]bool{}, wake: make(chan struct{}, 1), unjoined: map[netip.Addr]bool{}}
}

// up tells whether anything can be heard and said on the link.
func (k *link) up() bool { return k.sockets != nil && k.state.Running }

// note has a group be looked at.
func (k *link) note(group netip.Addr) {
	k.noted[group] = true
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// begin is a link whose interface has to be there.
func begin(name string) (*link, error) {
	k := newLink(name)
	var err error
	if k.state, err = uplink.Look(name); err != nil {
		return nil, err
	}
	if k.state.Index == 0 {
		return nil, errors.New("no interface has this name")
	}
	k.sockets, err = open(k.state)
	return k, err
}

// sockets are those of a link: for each family, and for groups.
type sockets struct {
	arp, ndp *packet.Conn
	groups   *uplink.Groups
	readers  sync.WaitGroup
	// works: the readers read. failed is told when one fails.
	works  bool
	failed chan error
}

// errNoEthernet is that of an interface without ARP and NDP.
var errNoEthernet = errors.New("it is no Ethernet interface")

func open(s uplink.State) (*sockets, error) {
	if len(s.MAC) == 0 {
		return nil, errNoEthernet
	}
	arp, err := uplink.Listen(s, etherTypeARP, wholeARP())
	if err != nil {
		return nil, err
	}
	ndp, err := uplink.Listen(s, etherTypeIPv6, neighboursOnly())
	if err != nil {
		return nil, errors.Join(err, arp.Close())
	}
	o := &sockets{arp: arp, ndp: ndp, groups: uplink.NewGroups(s.Index), failed: make(chan error, 2)}
	// Where groups cannot be joined the interface may let their frames in nevertheless.
	if err := descriptor.Join(ndp, unix.PacketMreq{Ifindex: int32(s.Index), Type: unix.PACKET_MR_ALLMULTI}); err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

// of is the socket of an address's family.
func (o *sockets) of(a netip.Addr) *packet.Conn {
	if a.Is4() {
		return o.arp
	}
	return o.ndp
}

func (o *sockets) close() {
	o.groups.Close()
	o.arp.Close()
	o.ndp.Close()
	o.readers.Wait()
}

// linkRetries is the pause before sockets are opened anew that have failed.
const linkRetries = time.Second

// keep answers on a link as it is, until ctx ends.
func (l *Layer2) keep(ctx context.Context, k *link) {
	states := make(chan uplink.State)
	var following sync.WaitGroup
	defer following.Wait()
	following.Go(func() {
		uplink.Follow(ctx, k.name, func(s uplink.State) {
			select {
			case states <- s:
			case <-ctx.Done():
			}
		}, func(err error) {
			l.options.Log.Warn("changes of an interface are noticed late", "interface", k.name, "error", err)
		})
	})
	l.mu.Lock()
	l.links[k.name] = k
	l.mu.Unlock()
	l.put(k, k.state, k.sockets)
	defer l.see(k, uplink.State{})
	ticker := time.NewTicker(refreshes)
	defer ticker.Stop()
	for {
		var failed <-chan error
		var again <-chan time.Time
		if k.sockets != nil {
			failed = k.sockets.failed
		} else if k.state.Index != 0 {
			again = time.After(linkRetries)
		}
		select {
		case <-ctx.Done():
			return
		case s := <-states:
			l.see(k, s)
			l.restoreGroups(k)
		case err := <-failed:
			l.options.Log.Error("announcer stops answering on an interface until it can again", "interface", k.name, "error", err)
			l.put(k, k.state, nil)
		case <-again:
			l.see(k, k.state)
		case <-k.wake:
			l.joinGroups(k)
		case <-ticker.C:
			l.restoreGroups(k)
		}
	}
}

// see takes over what an interface is now. Another one that has its name gets sockets of its own.
func (l *Layer2) see(k *link, s uplink.State) {
	o := k.sockets
	if s.Index == 0 || s.Index != k.state.Index {
		o = nil
	}
	if o == nil && s.Index != 0 {
		var err error
		if o, err = open(s); err != nil {
			l.options.Log.Debug("interface is not answered on yet", "interface", k.name, "error", err)
		}
	}
	l.put(k, s, o)
}

// put puts state and sockets of a link in the place of others, has the sockets work, and ends those that are replaced. A link that comes up, or has
// another MAC, is told everything.
func (l *Layer2) put(k *link, s uplink.State, o *sockets) {
	l.mu.Lock()
	before, able := *k, l.able()
	fresh := o != nil && !o.works
	k.state, k.sockets = s, o
	if o == nil || fresh {
		clear(k.unjoined)
		k.problem = ""
	}
	if fresh {
		o.works = true
		o.readers.Go(func() { o.failed <- l.serve(k, o.arp, l.answerARP) })
		o.readers.Go(func() { o.failed <- l.serve(k, o.ndp, l.answerNDP) })
		for group := range l.asked {
			k.note(group)
		}
	}
	changed := able != l.able()
	l.mu.Unlock()
	l.routes.Note() // a check that runs may have seen the former state
	if before.sockets != nil && before.sockets != o {
		before.sockets.close()
	}
	if changed {
		l.options.Changed()
	}
	if k.up() && (fresh || !before.up() || !slices.Equal(before.state.MAC, s.MAC)) {
		l.options.Log.Info("interface is answered on", "interface", k.name, "mac", s.MAC.String())
		l.proclaim(k)
	}
}

// proclaim announces everything on a link, several times.
func (l *Layer2) proclaim(k *link) {
	l.inBatches(func(batch []netip.Addr) {
		l.each(k, batch, "announce", announcementOf)
		l.repeat(batch, announcements-1)
	})
}

// serve answers frames until the socket fails or is closed.
func (l *Layer2) serve(k *link, c *packet.Conn, answer func(*link, []byte) []byte) error {
	buffer := make([]byte, maxFrame)
	for {
		n, _, err := c.ReadFrom(buffer)
		if errors.Is(err, unix.ENETDOWN) {
			continue // said once when the interface goes down; it stays usable
		}
		if err != nil {
			return err
		}
		if reply := answer(k, buffer[:n]); reply != nil {
			if err := send(c, reply); err != nil {
				l.options.Log.Warn("answer", "interface", k.name, "error", err)
			}
		}
	}
}

// noteUnjoined notes the groups that could not be joined, and says so once.
func (l *Layer2) noteUnjoined(k *link, groups map[netip.Addr]bool, problem error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := k.problem
	if k.unjoined, k.problem = groups, ""; problem != nil {
		k.problem = problem.Error()
	}
	if k.problem != "" && k.problem != before {
		l.options.Log.Warn("multicast groups of IPv6 addresses are not joined", "interface", k.name, "groups", len(groups), "error", k.problem)
	}
}

// restoreGroups joins groups again that the kernel has forgotten, and those that could not be joined before.
func (l *Layer2) restoreGroups(k *link) {
	if k.sockets == nil {
		return
	}
	lost, err := k.sockets.groups.Restore()
	if err != nil && len(lost) == 0 {
		l.options.Log.Debug("look after multicast groups", "interface", k.name, "error", err)
	}
	l.mu.Lock()
	for _, group := range lost {
		k.noted[group] = true
	}
	due := len(k.noted)+len(k.unjoined) > 0
	l.mu.Unlock()
	if due {
		l.joinGroups(k)
	}
}

// Checks say on which links switches are not told of groups of addresses, if that is so on any.
func (l *Layer2) Checks() (checks []dataplane.Check) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(l.links)) {
		k := l.links[name]
		check := dataplane.Check{Group: dataplane.GroupInterfaces, Subject: "multicast groups at interface " + name, State: dataplane.CheckMissing,
			Costs: "IPv6 addresses on a segment whose switches pass multicast only to those that ask for it (MLD snooping)"}
		switch {
		case len(l.asked) == 0 || k.sockets == nil:
			continue
		case k.problem != "":
			check.Found = fmt.Sprintf("%d groups of IPv6 addresses are not joined: %s", len(k.unjoined), k.problem)
			check.Advice = "enable IPv6 at the interface, and add gateways if there are more groups than one may join"
		case ipv6Disabled(name):
			check.Found, check.Command = "IPv6 is disabled there, so that the kernel tells switches of no group", preflight.SetSysctl(disableIPv6Sysctl(name), "0")
		default:
			continue
		}
		checks = append(checks, check)
	}
	return checks
}
