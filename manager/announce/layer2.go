package announce

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/manager/descriptor"
)

// Layer2 answers ARP requests (RFC 826) and neighbour solicitations (RFC 4861) for its addresses in user space: the
// addresses are on no interface, and a frozen or departed gateway stops answering. A new address is announced by
// gratuitous ARP or an unsolicited advertisement, several times, since either may be lost; so are all of them when a link comes up,
// and now and then, since a switch forgets sooner where a MAC is than hosts forget the MAC. Once it has announced an address it asks
// whether another host has it, too.
type Layer2 struct {
	options Layer2Options

	mu    sync.Mutex // guards all below
	owned map[netip.Addr]bool
	links map[string]*link
	// claims are those of other hosts, by what they claim.
	claims map[netip.Addr]*claim
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
}

// NewLayer2 answers on the named interfaces.
func NewLayer2(o Layer2Options) *Layer2 {
	if o.Holds == nil {
		o.Holds = func() bool { return true }
	}
	if o.Changed == nil {
		o.Changed = func() {}
	}
	return &Layer2{options: o, owned: map[netip.Addr]bool{}, links: map[string]*link{}, claims: map[netip.Addr]*claim{}}
}

// announcements is how often a new address is announced, and the pause between.
const (
	announcements           = 3
	announcementsPause      = 700 * time.Millisecond
	refreshes               = time.Minute // how often everything is announced again
	refreshBatch            = 256
	linkChecks              = 100 * time.Millisecond
	linkRetries             = time.Second
	etherTypeARP            = 0x0806
	etherTypeIPv6           = 0x86dd
	maxFrame                = 2048
	ethernetHeader          = 14
	arpLength               = 28
	ipv6Header              = 40
	ipv6NextHeader          = 6 // offset
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
	up     bool // guarded by the announcer's mu
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
		delete(l.claims, a)
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
		l.each(k, addresses, "announce", k.announce)
	}
}

// each sends something for each address on a link that is up, as long as anything may be sent; mu is held.
func (l *Layer2) each(k *link, addresses []netip.Addr, what string, send func(netip.Addr) error) {
	if !k.up {
		return
	}
	for _, a := range addresses {
		if !l.options.Holds() {
			return
		}
		if err := send(a); err != nil {
			l.options.Log.Warn(what, "address", a, "interface", k.device.Name, "error", err)
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
		if k.up {
			return true
		}
	}
	return false
}

// Run answers until ctx ends. An interface that is not there is an error at the beginning only: one that goes later is waited for,
// and harms no other.
func (l *Layer2) Run(ctx context.Context) error {
	var links []*link
	for _, name := range l.options.Interfaces {
		k, err := listen(name)
		if err != nil {
			for _, opened := range links {
				opened.close()
			}
			return fmt.Errorf("announce on interface %s (needs CAP_NET_RAW): %w", name, err)
		}
		links = append(links, k)
	}
	var running sync.WaitGroup
	for _, k := range links {
		running.Go(func() { l.keep(ctx, k) })
	}
	running.Go(func() { every(ctx, refreshes, l.refresh) })
	running.Go(func() { every(ctx, claimChecks, l.follow) })
	<-ctx.Done()
	l.mu.Lock()
	l.owned = map[netip.Addr]bool{}
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

// refresh announces everything, and asks who else has it. It does so in batches, between which questions are answered.
func (l *Layer2) refresh() {
	l.mu.Lock()
	all := slices.Collect(maps.Keys(l.owned))
	l.mu.Unlock()
	for batch := range slices.Chunk(all, refreshBatch) {
		l.mu.Lock()
		batch = l.still(batch)
		l.announce(batch)
		l.ask(batch)
		l.mu.Unlock()
	}
}

// keep answers on an interface, and opens it anew when it fails.
func (l *Layer2) keep(ctx context.Context, k *link) {
	name := k.device.Name
	for {
		l.mu.Lock()
		l.links[name] = k
		l.mu.Unlock()
		l.use(ctx, k)
		l.setUp(k, false)
		for k = nil; k == nil; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(linkRetries):
			}
			var err error
			if k, err = listen(name); err != nil {
				l.options.Log.Debug("interface is not there yet", "interface", name, "error", err)
			}
		}
	}
}

// use answers on a link until it fails or ctx ends.
func (l *Layer2) use(ctx context.Context, k *link) {
	var readers sync.WaitGroup
	defer readers.Wait()
	defer k.close()
	failed := make(chan error, 2)
	readers.Go(func() { failed <- l.serve(k, k.arp, l.answerARP) })
	readers.Go(func() { failed <- l.serve(k, k.ndp, l.answerNDP) })
	ticker := time.NewTicker(linkChecks)
	defer ticker.Stop()
	for {
		running, err := descriptor.Running(k.arp, k.device.Name)
		if err == nil {
			l.setUp(k, running)
			select {
			case <-ctx.Done():
				return
			case err = <-failed:
			case <-ticker.C:
				continue
			}
		}
		l.options.Log.Error("announcer stops answering on an interface until it is there again", "interface", k.device.Name, "error", err)
		return
	}
}

// setUp notes whether a link is up; one that comes up is told everything.
func (l *Layer2) setUp(k *link, up bool) {
	l.mu.Lock()
	before, came := l.able(), up && !k.up
	if k.up = up; came {
		l.each(k, slices.Collect(maps.Keys(l.owned)), "announce", k.announce)
	}
	changed := before != l.able()
	l.mu.Unlock()
	if changed {
		l.options.Changed()
	}
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
	filter, err := bpf.Assemble(neighboursOnly())
	if err != nil {
		return nil, errors.Join(err, arp.Close())
	}
	ndp, err := packet.Listen(device, packet.Raw, etherTypeIPv6, &packet.Config{Filter: filter})
	if err != nil {
		return nil, errors.Join(err, arp.Close())
	}
	k := &link{device: device, arp: arp, ndp: ndp}
	// Solicitations come to a multicast group of each address; the interface must let all of them in.
	if err := descriptor.Join(ndp, unix.PacketMreq{Ifindex: int32(device.Index), Type: unix.PACKET_MR_ALLMULTI}); err != nil {
		k.close()
		return nil, err
	}
	return k, nil
}

// neighboursOnly lets nothing but neighbour solicitations and advertisements through to a socket. It would be given a copy of every IPv6
// packet that the gateway forwards otherwise, and questions would be lost among them.
func neighboursOnly() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: ethernetHeader + ipv6NextHeader, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_ICMPV6, SkipFalse: 4},
		bpf.LoadAbsolute{Off: ethernetHeader + ipv6Header, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: solicitation, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: advertisement, SkipFalse: 1},
		bpf.RetConstant{Val: maxFrame},
		bpf.RetConstant{Val: 0},
	}
}

func (k *link) close() {
	k.arp.Close()
	k.ndp.Close()
}

// serve reads frames until the socket fails or is closed.
func (l *Layer2) serve(k *link, c *packet.Conn, answer func(*link, []byte) error) error {
	buffer := make([]byte, maxFrame)
	for {
		n, _, err := c.ReadFrom(buffer)
		if errors.Is(err, unix.ENETDOWN) {
			continue // said once when the interface goes down; it stays usable
		}
		if err != nil {
			return err
		}
		if err := answer(k, buffer[:n]); err != nil {
			l.options.Log.Warn("answer", "interface", k.device.Name, "error", err)
		}
	}
}

func (l *Layer2) owns(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.owned[a] && l.options.Holds()
}

// answerARP answers a request for an address of ours, and heeds whoever says that it has one.
func (l *Layer2) answerARP(k *link, frame []byte) error {
	if len(frame) < ethernetHeader+arpLength {
		return nil
	}
	p := frame[ethernetHeader:]
	if [4]byte(p[2:6]) != [4]byte{8, 0, 6, 4} {
		return nil
	}
	target, sender := netip.AddrFrom4([4]byte(p[24:28])), netip.AddrFrom4([4]byte(p[14:18]))
	l.heard(sender, net.HardwareAddr(p[8:14]))
	if binary.BigEndian.Uint16(p[6:]) != 1 || !l.owns(target) || sender == target {
		return nil
	}
	reply := k.arpFrame(2, net.HardwareAddr(p[8:14]), target, net.HardwareAddr(p[8:14]), sender)
	return k.send(k.arp, reply)
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

// answerNDP answers a solicitation for an address of ours, duplicate address detection included, and heeds whoever says that it has one.
func (l *Layer2) answerNDP(k *link, frame []byte) error {
	const solicitationLength = 24
	if len(frame) < ethernetHeader+ipv6Header+solicitationLength {
		return nil
	}
	ip := frame[ethernetHeader:]
	icmp := ip[ipv6Header:]
	// Next header ICMPv6, hop limit 255 (RFC 4861 section 7.1.1), type and code.
	if ip[ipv6NextHeader] != unix.IPPROTO_ICMPV6 || ip[7] != 255 || icmp[1] != 0 {
		return nil
	}
	target, source := netip.AddrFrom16([16]byte(icmp[8:24])), netip.AddrFrom16([16]byte(ip[8:24]))
	says := source
	if icmp[0] == advertisement {
		says = target
	}
	l.heard(says, net.HardwareAddr(frame[6:12]))
	if icmp[0] != solicitation || !l.owns(target) {
		return nil
	}
	flags, to, mac := flagSolicited|flagOverride, source, net.HardwareAddr(frame[6:12])
	if source.IsUnspecified() {
		flags, to, mac = flagOverride, allNodes, allNodesMAC
	}
	return k.send(k.ndp, k.advertisement(mac, to, target, flags))
}

// send sends a frame to whom it is for.
func (k *link) send(c *packet.Conn, frame []byte) error {
	_, err := c.WriteTo(frame, &packet.Addr{HardwareAddr: net.HardwareAddr(frame[:6])})
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
	return k.icmp6Frame(mac, address, to, append(append(icmp, 2, 1), k.device.HardwareAddr...))
}

// icmp6Frame is an ICMPv6 message without its checksum, as a frame.
func (k *link) icmp6Frame(mac net.HardwareAddr, from, to netip.Addr, icmp []byte) []byte {
	binary.BigEndian.PutUint16(icmp[2:], checksum(from, to, icmp))
	b := append(append([]byte{}, mac...), k.device.HardwareAddr...)
	b = binary.BigEndian.AppendUint16(b, etherTypeIPv6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(icmp)))
	b = append(b, unix.IPPROTO_ICMPV6, 255)
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	return append(b, icmp...)
}

// checksum is that of ICMPv6, over the pseudo header (RFC 8200 section 8.1).
func checksum(from, to netip.Addr, icmp []byte) uint16 {
	b := append(append(from.AsSlice(), to.AsSlice()...), 0, 0, byte(len(icmp)>>8), byte(len(icmp)), 0, 0, 0, unix.IPPROTO_ICMPV6)
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
		return k.send(k.arp, k.arpFrame(1, broadcast, a, make(net.HardwareAddr, 6), a))
	}
	return k.send(k.ndp, k.advertisement(allNodesMAC, allNodes, a, flagOverride))
}
