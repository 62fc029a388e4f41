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

// link is an interface on which Layer2 answers. The mutex of Layer2 guards the fields. Only keep changes state and sockets.
type link struct {
	name string
	// state is the state of the interface. sockets are nil while the interface does not exist, or after they failed.
	state   uplink.State
	sockets *sockets
	// unsupported is why the interface does not carry a family, empty if it does.
	unsupported map[ipam.Family]string
	// pending are groups to join or to leave. wake wakes up keep.
	pending map[netip.Addr]bool
	wake    chan struct{}
	// unjoined are groups that could not be joined, and problem is why.
	unjoined map[netip.Addr]bool
	problem  string
}

func newLink(name string) *link {
	return &link{name: name, unsupported: map[ipam.Family]string{}, pending: map[netip.Addr]bool{}, wake: make(chan struct{}, 1), unjoined: map[netip.Addr]bool{}}
}

// up reports whether frames can be sent and received on the link.
func (k *link) up() bool { return k.sockets != nil && k.state.Running }

// setPending makes a group pending.
func (k *link) setPending(group netip.Addr) {
	k.pending[group] = true
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// openLink returns a link with open sockets. Its interface has to exist.
func openLink(name string) (*link, error) {
	k := newLink(name)
	var err error
	if k.state, err = uplink.ReadState(name); err != nil {
		return nil, err
	}
	if k.state.Index == 0 {
		return nil, errors.New("no interface has this name")
	}
	k.sockets, err = open(k.state)
	return k, err
}

// sockets are the sockets of a link: one for each family, and those of the multicast groups.
type sockets struct {
	arp, ndp *packet.Conn
	groups   *uplink.Groups
	readers  sync.WaitGroup
	// works: the readers run. failed gets the error of a reader that ends.
	works  bool
	failed chan error
}

// errNoEthernet: the interface has neither ARP nor NDP.
var errNoEthernet = errors.New("not an Ethernet interface")

func open(s uplink.State) (*sockets, error) {
	if len(s.MAC) == 0 {
		return nil, errNoEthernet
	}
	arp, err := uplink.Listen(s, etherTypeARP, passAllFrames())
	if err != nil {
		return nil, err
	}
	ndp, err := uplink.Listen(s, etherTypeIPv6, onlyNeighbourDiscovery())
	if err != nil {
		return nil, errors.Join(err, arp.Close())
	}
	o := &sockets{arp: arp, ndp: ndp, groups: uplink.NewGroups(s.Index), failed: make(chan error, 2)}
	// With this, the interface may receive frames of groups that could not be joined.
	if err := descriptor.Join(ndp, unix.PacketMreq{Ifindex: int32(s.Index), Type: unix.PACKET_MR_ALLMULTI}); err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

// of returns the socket for the family of the address.
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

// linkRetryDelay is the pause before failed sockets are opened again.
const linkRetryDelay = time.Second

// keep answers on a link, and follows the changes of its interface, until ctx ends.
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
	l.replace(k, k.state, k.sockets)
	defer l.update(k, uplink.State{})
	ticker := time.NewTicker(refreshInterval)
	defer ticker.Stop()
	for {
		var failed <-chan error
		var again <-chan time.Time
		if k.sockets != nil {
			failed = k.sockets.failed
		} else if k.state.Index != 0 {
			again = time.After(linkRetryDelay)
		}
		select {
		case <-ctx.Done():
			return
		case s := <-states:
			l.update(k, s)
			l.restoreGroups(k)
		case err := <-failed:
			l.options.Log.Error("answering on an interface has failed; trying again", "interface", k.name, "error", err)
			l.replace(k, k.state, nil)
		case <-again:
			l.update(k, k.state)
		case <-k.wake:
			l.joinGroups(k)
		case <-ticker.C:
			l.restoreGroups(k)
		}
	}
}

// update sets the state of an interface. A new interface of the same name gets new sockets.
func (l *Layer2) update(k *link, s uplink.State) {
	o := k.sockets
	if s.Index == 0 || s.Index != k.state.Index {
		o = nil
	}
	if o == nil && s.Index != 0 {
		var err error
		if o, err = open(s); err != nil {
			l.options.Log.Debug("cannot answer on an interface yet", "interface", k.name, "error", err)
		}
	}
	l.replace(k, s, o)
}

// replace replaces state and sockets of a link, starts the readers of new sockets, and closes replaced ones. If the link comes up, or has another MAC
// address, it announces all addresses there.
func (l *Layer2) replace(k *link, s uplink.State, o *sockets) {
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
		for group := range l.groups {
			k.setPending(group)
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
		l.options.Log.Info("answering on an interface", "interface", k.name, "mac", s.MAC.String())
		l.announceAll(k)
	}
}

// announceAll announces all addresses on a link, several times.
func (l *Layer2) announceAll(k *link) {
	l.inBatches(func(batch []netip.Addr) {
		l.sendEach(k, batch, "announce", announcementOf)
		l.repeat(batch, announcements-1)
	})
}

// serve answers frames until the socket fails or is closed.
func (l *Layer2) serve(k *link, c *packet.Conn, answer func(*link, []byte) []byte) error {
	buffer := make([]byte, maxFrame)
	for {
		n, _, err := c.ReadFrom(buffer)
		if errors.Is(err, unix.ENETDOWN) {
			continue // the kernel reports this once when the interface goes down; the socket stays usable
		}
		if err != nil {
			return err
		}
		if reply := answer(k, buffer[:n]); reply != nil {
			if err := send(c, reply); err != nil {
				l.options.Log.Warn("cannot send an answer", "interface", k.name, "error", err)
			}
		}
	}
}

// setUnjoined sets the groups that could not be joined, and logs a new problem.
func (l *Layer2) setUnjoined(k *link, groups map[netip.Addr]bool, problem error) {
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

// restoreGroups joins groups again that the kernel has dropped, and groups that could not be joined before.
func (l *Layer2) restoreGroups(k *link) {
	if k.sockets == nil {
		return
	}
	lost, err := k.sockets.groups.Restore()
	if err != nil && len(lost) == 0 {
		l.options.Log.Debug("cannot check multicast groups", "interface", k.name, "error", err)
	}
	l.mu.Lock()
	for _, group := range lost {
		k.pending[group] = true
	}
	due := len(k.pending)+len(k.unjoined) > 0
	l.mu.Unlock()
	if due {
		l.joinGroups(k)
	}
}

// Checks returns a failed check for each link that is not a member of all groups of its addresses.
func (l *Layer2) Checks() (checks []dataplane.Check) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(l.links)) {
		k := l.links[name]
		check := dataplane.Check{Group: dataplane.GroupInterfaces, Subject: "multicast groups at interface " + name, State: dataplane.CheckMissing,
			Costs: "IPv6 addresses on a segment whose switches pass multicast only to members of a group (MLD snooping)"}
		switch {
		case len(l.groups) == 0 || k.sockets == nil:
			continue
		case k.problem != "":
			check.Found = fmt.Sprintf("%d groups of IPv6 addresses are not joined: %s", len(k.unjoined), k.problem)
			check.Advice = "enable IPv6 at the interface, and add gateways if there are more groups than one may join"
		case ipv6Disabled(name):
			check.Found, check.Command = "IPv6 is disabled at the interface, so the kernel reports no group to switches", preflight.SetSysctl(disableIPv6Sysctl(name), "0")
		default:
			continue
		}
		checks = append(checks, check)
	}
	return checks
}
