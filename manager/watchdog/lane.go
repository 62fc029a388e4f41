package watchdog

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Names of the pair of virtual interfaces. Frames that the far one sends arrive at the near one, as by a cable.
const (
	near = "kubelb-watch"
	far  = "kubelb-client"
)

// clientMAC is that of the client that tries. The far interface has another one, so that the host takes nothing of what is sent to the client for itself.
// The interfaces are made with addresses, since udev gives another one to an interface that has a random one (MACAddressPolicy of systemd.link).
var (
	clientMAC = net.HardwareAddr{0x02, 0x6b, 0x75, 0x62, 0x65, 0x6c}
	watchMAC  = net.HardwareAddr{0x02, 0x6b, 0x75, 0x62, 0x65, 0x77}
	farMAC    = net.HardwareAddr{0x02, 0x6b, 0x75, 0x62, 0x65, 0x66}
)

// lane is how packets of tries come and go.
type lane struct {
	conn *packet.Conn
	// index is the near interface's number.
	index int
	// sources are the client's addresses, at most one of each family.
	sources []netip.Addr
}

// openLane makes the pair anew. The client gets the addresses whose family the host supports; without any it is an error. It needs CAP_NET_ADMIN and
// CAP_NET_RAW.
func openLane(sources []netip.Addr) (_ *lane, err error) {
	if err := removeLane(); err != nil {
		return nil, err
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: near, MTU: 1500, HardwareAddr: watchMAC}, PeerName: far, PeerHardwareAddr: farMAC}
	if err := netlink.LinkAdd(pair); err != nil {
		return nil, fmt.Errorf("make the virtual interfaces %s and %s (needs CAP_NET_ADMIN and the kernel module veth): %w", near, far, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeLane())
		}
	}()
	hostEnd, err := raise(near)
	if err != nil {
		return nil, err
	}
	clientEnd, err := raise(far)
	if err != nil {
		return nil, err
	}
	l := &lane{index: hostEnd.Attrs().Index}
	var problems []error
	for _, source := range sources {
		if err := leadTo(hostEnd, source); err != nil {
			problems = append(problems, err)
			continue
		}
		l.sources = append(l.sources, source)
	}
	if len(l.sources) == 0 {
		return nil, errors.Join(problems...)
	}
	l.conn, err = listen(clientEnd)
	return l, err
}

func listen(on netlink.Link) (*packet.Conn, error) {
	filter, err := bpf.Assemble(toClient())
	if err != nil {
		return nil, fmt.Errorf("filter of frames: %w", err)
	}
	a := on.Attrs()
	conn, err := packet.Listen(&net.Interface{Index: a.Index, Name: a.Name, HardwareAddr: a.HardwareAddr}, packet.Raw, unix.ETH_P_ALL, &packet.Config{Filter: filter})
	if err != nil {
		return nil, fmt.Errorf("packet socket on %s (needs CAP_NET_RAW): %w", a.Name, err)
	}
	return conn, nil
}

// raise brings an interface up without a link-local address.
func raise(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	// A kernel without IPv6 refuses this.
	_ = netlink.LinkSetIP6AddrGenMode(link, nl6AddrGenNone)
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("bring up %s: %w", name, err)
	}
	return link, nil
}

// nl6AddrGenNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h: no link-local address.
const nl6AddrGenNone = 1

// leadTo adds a route and a neighbour entry for the client, at the near interface.
func leadTo(link netlink.Link, client netip.Addr) error {
	network := &net.IPNet{IP: client.AsSlice(), Mask: net.CIDRMask(client.BitLen(), client.BitLen())}
	index := link.Attrs().Index
	if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: index, IP: client.AsSlice(), HardwareAddr: clientMAC, State: netlink.NUD_PERMANENT}); err != nil {
		return fmt.Errorf("neighbour %s on %s: %w", client, near, err)
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: index, Dst: network, Scope: netlink.SCOPE_LINK}); err != nil {
		return fmt.Errorf("route to %s by %s: %w", client, near, err)
	}
	return nil
}

// toClient is a filter that accepts frames to clientMAC, and not the socket's own.
func toClient() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x026b7562, SkipFalse: 3},
		bpf.LoadAbsolute{Off: 4, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x656c, SkipFalse: 1},
		bpf.RetConstant{Val: maxFrame},
		bpf.RetConstant{Val: 0},
	}
}

// maxFrame is how much of a frame is read, in bytes. An ICMP error with the headers of its packet is shorter.
const maxFrame = 256

// send sends a segment to the near interface.
func (l *lane) send(s tcpSegment) error {
	_, err := l.conn.WriteTo(s.frame(clientMAC, watchMAC), &packet.Addr{HardwareAddr: watchMAC})
	return err
}

// receive returns the next answer. It returns an error after stop, and when the interfaces go.
func (l *lane) receive() (answer, error) {
	frame := make([]byte, maxFrame)
	for {
		n, _, err := l.conn.ReadFrom(frame)
		if err != nil {
			return answer{}, err
		}
		if a, ok := readAnswer(frame[:n]); ok {
			return a, nil
		}
	}
}

// overrun tells whether packets to the client were dropped since it was asked last, as more came than were read.
func (l *lane) overrun() bool {
	stats, err := l.conn.Stats()
	return err == nil && stats.Drops > 0
}

// source is the client's address of the frontend's family; false if the client has none.
func (l *lane) source(frontend netip.Addr) (netip.Addr, bool) {
	for _, s := range l.sources {
		if s.Is4() == frontend.Is4() {
			return s, true
		}
	}
	return netip.Addr{}, false
}

// check says what has been taken from the near interface, so that no frontend would seem to answer.
func (l *lane) check() error {
	link, err := netlink.LinkByIndex(l.index)
	if err != nil {
		return fmt.Errorf("interface %s: %w", near, err)
	}
	a := link.Attrs()
	switch {
	case a.Flags&net.FlagUp == 0:
		return fmt.Errorf("interface %s is down", a.Name)
	case !bytes.Equal(a.HardwareAddr, watchMAC):
		return fmt.Errorf("interface %s has the MAC address %s, and had %s", a.Name, a.HardwareAddr, watchMAC)
	}
	for _, source := range l.sources {
		routes, err := netlink.RouteGet(source.AsSlice())
		if err != nil || len(routes) != 1 || routes[0].LinkIndex != l.index {
			return errors.Join(fmt.Errorf("no route leads to %s by %s any more", source, a.Name), err)
		}
	}
	return nil
}

// stop has receive end.
func (l *lane) stop() error { return l.conn.SetReadDeadline(time.Unix(1, 0)) }

// close removes the pair, and leaves one alone that another process has made since.
func (l *lane) close() error {
	err := l.conn.Close()
	link, missing := netlink.LinkByIndex(l.index)
	if missing != nil {
		return errors.Join(err, unlessGone(missing))
	}
	return errors.Join(err, remove(link))
}

// removeLane removes the pair if it is there, as after a process that was killed. One of its interfaces may have another name by now.
func removeLane() error {
	for _, name := range []string{near, far} {
		link, err := netlink.LinkByName(name)
		if err == nil {
			err = remove(link)
		}
		if unlessGone(err) != nil {
			return fmt.Errorf("interface %s: %w", name, err)
		}
	}
	return nil
}

// remove removes an interface; if it is one of a pair, the other one goes with it.
func remove(link netlink.Link) error {
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("remove interface %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// unlessGone is the error, unless it says that there is no such interface.
func unlessGone(err error) error {
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	return err
}
