package announce

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

// Layer2 answers ARP requests (RFC 826) and neighbour solicitations (RFC 4861) for its addresses in user space: the
// addresses are on no interface, and a frozen or departed gateway stops answering. A new address is announced by
// gratuitous ARP or an unsolicited advertisement, several times, since either may be lost.
type Layer2 struct {
	interfaces []string
	log        *slog.Logger

	mu    sync.Mutex // guards owned and links
	owned map[netip.Addr]bool
	links []*link
}

var _ Announcer = (*Layer2)(nil)

// NewLayer2 answers on the named interfaces, each with its own MAC address.
func NewLayer2(interfaces []string, log *slog.Logger) *Layer2 {
	return &Layer2{interfaces: interfaces, log: log, owned: map[netip.Addr]bool{}}
}

// announcements is how often a new address is announced, and the pause between.
const (
	announcements           = 3
	announcementsPause      = 700 * time.Millisecond
	etherTypeARP            = 0x0806
	etherTypeIPv6           = 0x86dd
	maxFrame                = 2048
	ethernetHeader          = 14
	arpLength               = 28
	solicitation            = 135
	advertisement           = 136
	flagSolicited      byte = 0x40
	flagOverride       byte = 0x20
)

// link is one interface with its socket for each family.
type link struct {
	device *net.Interface
	arp    *packet.Conn
	ndp    *packet.Conn
}

// Announce adds addresses and makes them known on every link.
func (l *Layer2) Announce(addresses ...netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range addresses {
		l.owned[a] = true
	}
	l.announce(addresses)
	l.repeat(addresses, announcements-1)
}

// Withdraw removes addresses; from then on nothing answers for them here.
func (l *Layer2) Withdraw(addresses ...netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range addresses {
		delete(l.owned, a)
	}
}

// repeat announces again, later, what is still ours then.
func (l *Layer2) repeat(addresses []netip.Addr, times int) {
	if times == 0 {
		return
	}
	time.AfterFunc(announcementsPause, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		var still []netip.Addr
		for _, a := range addresses {
			if l.owned[a] {
				still = append(still, a)
			}
		}
		if len(still) > 0 && len(l.links) > 0 {
			l.announce(still)
			l.repeat(still, times-1)
		}
	})
}

// announce sends one announcement of each address on every link; mu is held.
func (l *Layer2) announce(addresses []netip.Addr) {
	for _, k := range l.links {
		for _, a := range addresses {
			if err := k.announce(a); err != nil {
				l.log.Warn("announce", "address", a, "interface", k.device.Name, "error", err)
			}
		}
	}
}

// Run answers until ctx ends.
func (l *Layer2) Run(ctx context.Context) error {
	var links []*link
	defer func() {
		for _, k := range links {
			k.close()
		}
	}()
	for _, name := range l.interfaces {
		k, err := listen(name)
		if err != nil {
			return fmt.Errorf("announce on interface %s (needs CAP_NET_RAW): %w", name, err)
		}
		links = append(links, k)
	}
	l.mu.Lock()
	l.links = links
	var all []netip.Addr
	for a := range l.owned {
		all = append(all, a)
	}
	l.announce(all)
	l.mu.Unlock()
	var readers sync.WaitGroup
	for _, k := range links {
		readers.Go(func() { l.serve(ctx, k, k.arp, l.answerARP) })
		readers.Go(func() { l.serve(ctx, k, k.ndp, l.answerNDP) })
	}
	<-ctx.Done()
	l.mu.Lock()
	l.links, l.owned = nil, map[netip.Addr]bool{}
	l.mu.Unlock()
	for _, k := range links {
		k.close()
	}
	readers.Wait()
	return nil
}

func listen(name string) (*link, error) {
	device, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	arp, err := packet.Listen(device, packet.Raw, etherTypeARP, nil)
	if err != nil {
		return nil, err
	}
	ndp, err := packet.Listen(device, packet.Raw, etherTypeIPv6, nil)
	if err != nil {
		return nil, errors.Join(err, arp.Close())
	}
	k := &link{device, arp, ndp}
	// Solicitations come to a multicast group of each address; the interface must let all of them in.
	if err := k.allMulticast(); err != nil {
		k.close()
		return nil, err
	}
	return k, nil
}

// allMulticast lasts as long as the socket.
func (k *link) allMulticast() error {
	raw, err := k.ndp.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptPacketMreq(int(fd), unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP,
			&unix.PacketMreq{Ifindex: int32(k.device.Index), Type: unix.PACKET_MR_ALLMULTI})
	})
	return errors.Join(err, failed)
}

func (k *link) close() {
	k.arp.Close()
	k.ndp.Close()
}

// serve reads frames until the socket is closed.
func (l *Layer2) serve(ctx context.Context, k *link, c *packet.Conn, answer func(*link, []byte) error) {
	buffer := make([]byte, maxFrame)
	for ctx.Err() == nil {
		n, _, err := c.ReadFrom(buffer)
		if err != nil {
			if ctx.Err() == nil {
				l.log.Error("announcer stops answering", "interface", k.device.Name, "error", err)
			}
			return
		}
		if err := answer(k, buffer[:n]); err != nil {
			l.log.Warn("answer", "interface", k.device.Name, "error", err)
		}
	}
}

func (l *Layer2) owns(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.owned[a]
}

// answerARP answers a request for an address of ours.
func (l *Layer2) answerARP(k *link, frame []byte) error {
	if len(frame) < ethernetHeader+arpLength {
		return nil
	}
	p := frame[ethernetHeader:]
	if binary.BigEndian.Uint16(p[6:]) != 1 || [4]byte(p[2:6]) != [4]byte{8, 0, 6, 4} {
		return nil
	}
	target, sender := netip.AddrFrom4([4]byte(p[24:28])), netip.AddrFrom4([4]byte(p[14:18]))
	if !l.owns(target) || sender == target {
		return nil
	}
	reply := k.arpFrame(2, net.HardwareAddr(p[8:14]), target, net.HardwareAddr(p[8:14]), sender)
	_, err := k.arp.WriteTo(reply, &packet.Addr{HardwareAddr: net.HardwareAddr(p[8:14])})
	return err
}

// arpFrame is an ARP packet that says that address is at this link's MAC.
func (k *link) arpFrame(operation uint16, to net.HardwareAddr, address netip.Addr, target net.HardwareAddr, targetAddress netip.Addr) []byte {
	b := append(append([]byte{}, to...), k.device.HardwareAddr...)
	b = binary.BigEndian.AppendUint16(b, etherTypeARP)
	b = append(b, 0, 1, 8, 0, 6, 4)
	b = binary.BigEndian.AppendUint16(b, operation)
	b = append(append(b, k.device.HardwareAddr...), address.AsSlice()...)
	return append(append(b, target...), targetAddress.AsSlice()...)
}

// answerNDP answers a solicitation for an address of ours, duplicate address detection included.
func (l *Layer2) answerNDP(k *link, frame []byte) error {
	const ipv6Header, solicitationLength = 40, 24
	if len(frame) < ethernetHeader+ipv6Header+solicitationLength {
		return nil
	}
	ip := frame[ethernetHeader:]
	icmp := ip[ipv6Header:]
	// Next header ICMPv6, hop limit 255 (RFC 4861 section 7.1.1), type and code.
	if ip[6] != 58 || ip[7] != 255 || icmp[0] != solicitation || icmp[1] != 0 {
		return nil
	}
	target, source := netip.AddrFrom16([16]byte(icmp[8:24])), netip.AddrFrom16([16]byte(ip[8:24]))
	if !l.owns(target) {
		return nil
	}
	flags, to, mac := flagSolicited|flagOverride, source, net.HardwareAddr(frame[6:12])
	if source.IsUnspecified() {
		flags, to, mac = flagOverride, allNodes, allNodesMAC
	}
	_, err := k.ndp.WriteTo(k.advertisement(mac, to, target, flags), &packet.Addr{HardwareAddr: mac})
	return err
}

var (
	allNodes    = netip.MustParseAddr("ff02::1")
	allNodesMAC = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	broadcast   = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
)

// advertisement is a neighbour advertisement from the address itself, with this link's MAC as the target's.
func (k *link) advertisement(mac net.HardwareAddr, to, address netip.Addr, flags byte) []byte {
	icmp := append([]byte{advertisement, 0, 0, 0, flags, 0, 0, 0}, address.AsSlice()...)
	icmp = append(append(icmp, 2, 1), k.device.HardwareAddr...)
	binary.BigEndian.PutUint16(icmp[2:], checksum(address, to, icmp))
	b := append(append([]byte{}, mac...), k.device.HardwareAddr...)
	b = binary.BigEndian.AppendUint16(b, etherTypeIPv6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(icmp)))
	b = append(b, 58, 255)
	b = append(append(b, address.AsSlice()...), to.AsSlice()...)
	return append(b, icmp...)
}

// checksum is that of ICMPv6, over the pseudo header (RFC 8200 section 8.1).
func checksum(from, to netip.Addr, icmp []byte) uint16 {
	b := append(append(from.AsSlice(), to.AsSlice()...), 0, 0, byte(len(icmp)>>8), byte(len(icmp)), 0, 0, 0, 58)
	b = append(b, icmp...)
	if len(b)%2 == 1 {
		b = append(b, 0)
	}
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// announce sends a gratuitous ARP request, which more hosts heed than a reply, or an unsolicited advertisement.
func (k *link) announce(a netip.Addr) error {
	if a.Is4() {
		_, err := k.arp.WriteTo(k.arpFrame(1, broadcast, a, make(net.HardwareAddr, 6), a), &packet.Addr{HardwareAddr: broadcast})
		return err
	}
	_, err := k.ndp.WriteTo(k.advertisement(allNodesMAC, allNodes, a, flagOverride), &packet.Addr{HardwareAddr: allNodesMAC})
	return err
}
