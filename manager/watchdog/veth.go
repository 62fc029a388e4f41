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

// The names of the pair of virtual interfaces. A frame that is sent at clientInterface arrives at hostInterface, as by a cable.
const (
	hostInterface   = "kubelb-watch"
	clientInterface = "kubelb-client"
)

// clientMAC is the MAC of the client that tries. The client's interface has another one, so that the host does not take frames to the client for
// itself. The interfaces are created with MACs, since udev would replace a random one (MACAddressPolicy of systemd.link).
var (
	clientMAC          = net.HardwareAddr{0x02, 0x6b, 0x75, 0x62, 0x65, 0x6c}
	hostMAC            = net.HardwareAddr{0x02, 0x6b, 0x75, 0x62, 0x65, 0x77}
	clientInterfaceMAC = net.HardwareAddr{0x02, 0x6b, 0x75, 0x62, 0x65, 0x66}
)

// vethPair sends and receives the packets of tries.
type vethPair struct {
	conn *packet.Conn
	// index is the number of the host's interface.
	index int
	// sources are the client's addresses, at most one of each family.
	sources []netip.Addr
}

// openVethPair creates the pair. The client gets the addresses whose families the host supports. Without any it is an error. It needs CAP_NET_ADMIN
// and CAP_NET_RAW.
func openVethPair(sources []netip.Addr) (_ *vethPair, err error) {
	if err := removeVethPair(); err != nil {
		return nil, err
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: hostInterface, MTU: 1500, HardwareAddr: hostMAC}, PeerName: clientInterface, PeerHardwareAddr: clientInterfaceMAC}
	if err := netlink.LinkAdd(pair); err != nil {
		return nil, fmt.Errorf("create the virtual interfaces %s and %s (this needs CAP_NET_ADMIN and the kernel module veth): %w", hostInterface, clientInterface, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeVethPair())
		}
	}()
	hostEnd, err := setUp(hostInterface)
	if err != nil {
		return nil, err
	}
	clientEnd, err := setUp(clientInterface)
	if err != nil {
		return nil, err
	}
	v := &vethPair{index: hostEnd.Attrs().Index}
	var problems []error
	for _, source := range sources {
		if err := addRoute(hostEnd, source); err != nil {
			problems = append(problems, err)
			continue
		}
		v.sources = append(v.sources, source)
	}
	if len(v.sources) == 0 {
		return nil, errors.Join(problems...)
	}
	v.conn, err = listen(clientEnd)
	return v, err
}

func listen(on netlink.Link) (*packet.Conn, error) {
	filter, err := bpf.Assemble(clientFilter())
	if err != nil {
		return nil, fmt.Errorf("filter of frames: %w", err)
	}
	a := on.Attrs()
	conn, err := packet.Listen(&net.Interface{Index: a.Index, Name: a.Name, HardwareAddr: a.HardwareAddr}, packet.Raw, unix.ETH_P_ALL, &packet.Config{Filter: filter})
	if err != nil {
		return nil, fmt.Errorf("open a packet socket on %s (this needs CAP_NET_RAW): %w", a.Name, err)
	}
	return conn, nil
}

// setUp sets an interface up without a link-local address.
func setUp(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	// A kernel without IPv6 refuses this.
	_ = netlink.LinkSetIP6AddrGenMode(link, nl6AddrGenNone)
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("set interface %s up: %w", name, err)
	}
	return link, nil
}

// nl6AddrGenNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h: no link-local address.
const nl6AddrGenNone = 1

// addRoute adds a route and a neighbour entry for the client, at the host's interface.
func addRoute(link netlink.Link, client netip.Addr) error {
	network := &net.IPNet{IP: client.AsSlice(), Mask: net.CIDRMask(client.BitLen(), client.BitLen())}
	index := link.Attrs().Index
	if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: index, IP: client.AsSlice(), HardwareAddr: clientMAC, State: netlink.NUD_PERMANENT}); err != nil {
		return fmt.Errorf("add neighbour %s on %s: %w", client, hostInterface, err)
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: index, Dst: network, Scope: netlink.SCOPE_LINK}); err != nil {
		return fmt.Errorf("add a route to %s by %s: %w", client, hostInterface, err)
	}
	return nil
}

// clientFilter accepts frames to clientMAC, and not the socket's own frames.
func clientFilter() []bpf.Instruction {
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

// send sends a segment to the host's interface.
func (v *vethPair) send(s tcpSegment) error {
	_, err := v.conn.WriteTo(s.frame(clientMAC, hostMAC), &packet.Addr{HardwareAddr: hostMAC})
	return err
}

// receive returns the next answer. It returns an error after stop, and when the interfaces are removed.
func (v *vethPair) receive() (answer, error) {
	frame := make([]byte, maxFrame)
	for {
		n, _, err := v.conn.ReadFrom(frame)
		if err != nil {
			return answer{}, err
		}
		if a, ok := parseAnswer(frame[:n]); ok {
			return a, nil
		}
	}
}

// overrun reports whether the kernel dropped packets to the client since the last call, since they were not read in time.
func (v *vethPair) overrun() bool {
	stats, err := v.conn.Stats()
	return err == nil && stats.Drops > 0
}

// source returns the client's address of the frontend's family, and false if the client has none.
func (v *vethPair) source(frontend netip.Addr) (netip.Addr, bool) {
	for _, s := range v.sources {
		if s.Is4() == frontend.Is4() {
			return s, true
		}
	}
	return netip.Addr{}, false
}

// check returns an error if the host's interface was changed, so that tries would fail.
func (v *vethPair) check() error {
	link, err := netlink.LinkByIndex(v.index)
	if err != nil {
		return fmt.Errorf("interface %s: %w", hostInterface, err)
	}
	a := link.Attrs()
	switch {
	case a.Flags&net.FlagUp == 0:
		return fmt.Errorf("interface %s is down", a.Name)
	case !bytes.Equal(a.HardwareAddr, hostMAC):
		return fmt.Errorf("interface %s has the MAC address %s, and had %s", a.Name, a.HardwareAddr, hostMAC)
	}
	for _, source := range v.sources {
		routes, err := netlink.RouteGet(source.AsSlice())
		if err != nil || len(routes) != 1 || routes[0].LinkIndex != v.index {
			return errors.Join(fmt.Errorf("no route leads to %s by %s any more", source, a.Name), err)
		}
	}
	return nil
}

// stop makes receive return.
func (v *vethPair) stop() error { return v.conn.SetReadDeadline(time.Unix(1, 0)) }

// close removes the pair, unless another process has created a new one since.
func (v *vethPair) close() error {
	err := v.conn.Close()
	link, missing := netlink.LinkByIndex(v.index)
	if missing != nil {
		return errors.Join(err, unlessGone(missing))
	}
	return errors.Join(err, remove(link))
}

// removeVethPair removes a pair that a killed process left. One of its interfaces may have been renamed.
func removeVethPair() error {
	for _, name := range []string{hostInterface, clientInterface} {
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

// remove removes an interface. If it is one of a pair, the other one goes with it.
func remove(link netlink.Link) error {
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("remove interface %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// unlessGone returns the error, unless it says that there is no such interface.
func unlessGone(err error) error {
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	return err
}
