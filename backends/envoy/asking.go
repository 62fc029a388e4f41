package envoy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/envoy/bpf"
	"kubelb.k8c.io/core/model"
)

// asking finds packets of connections that this host does not have, about which others are to be asked as model.Handover says: a
// program at the ingress of all interfaces with Ethernet addresses gives them a priority by which the guard knows them, and sends them on. The program stays there
// without the plugin.
type asking struct {
	// objects are the program, whose number is id, and its map; nil until others are to be asked about a frontend.
	objects *bpf.UnknownObjects
	id      ebpf.ProgramID
	// asks is how many are asked, by frontend; unwritten are those of which the map does not say the same.
	asks      map[model.FrontendKey]uint8
	unwritten map[model.FrontendKey]bool
}

// unknownPriority is that of packets between the program and the guard.
const unknownPriority = 0x6b756577

// askingPlace is the priority of the program among the filters of an interface, and askingName its name there.
const (
	askingPlace = 27509
	askingName  = "kubelb_unknown"
)

func newAsking() *asking {
	return &asking{asks: map[model.FrontendKey]uint8{}, unwritten: map[model.FrontendKey]bool{}}
}

// note takes over what frontends ask, which are served as given, or are no more. It tells whether there is something to write.
func (a *asking) note(set []guarded, gone []model.FrontendKey) bool {
	for _, key := range gone {
		a.noteOne(key, 0)
	}
	for _, f := range set {
		a.noteOne(f.FrontendKey, f.asked().Asks)
	}
	return len(a.unwritten) > 0
}

func (a *asking) noteOne(key model.FrontendKey, asks uint8) {
	switch {
	case a.asks[key] == asks:
		return
	case asks == 0:
		delete(a.asks, key)
	default:
		a.asks[key] = asks
	}
	a.unwritten[key] = true
}

// cover has the program run at all interfaces, with what was noted, once others are to be asked.
func (a *asking) cover() error {
	if a.objects == nil && len(a.asks) == 0 {
		return nil
	}
	if err := a.run(); err != nil {
		return fmt.Errorf("other gateways are not asked about connections that this one does not have: %w", err)
	}
	return nil
}

func (a *asking) run() error {
	if err := a.load(); err != nil {
		return fmt.Errorf("load program (needs CAP_BPF and CAP_NET_ADMIN): %w", err)
	}
	for key := range a.unwritten {
		if err := a.write(key); err != nil {
			return err
		}
		delete(a.unwritten, key)
	}
	present, err := ethernet()
	if err != nil {
		return err
	}
	for _, is := range present {
		// One that has just gone needs nothing.
		if err := a.attach(is.Index); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("attach program to interface %s: %w", is.Name, err)
		}
	}
	return nil
}

func (a *asking) load() error {
	if a.objects != nil {
		return nil
	}
	var objects bpf.UnknownObjects
	if err := bpf.LoadUnknownObjects(&objects, nil); err != nil {
		return err
	}
	info, err := objects.FindUnknown.Info()
	if err != nil {
		return errors.Join(err, objects.Close())
	}
	a.objects = &objects
	a.id, _ = info.ID()
	return nil
}

// askingKey is a frontend as the program knows it.
type askingKey struct {
	VIP    [16]byte
	Port   [2]byte
	Family uint8
	_      uint8
}

func (a *asking) write(key model.FrontendKey) error {
	k := askingKey{Family: 6}
	if key.VIP.Is4() {
		k.Family = 4
	}
	vip := key.VIP.AsSlice()
	copy(k.VIP[len(k.VIP)-len(vip):], vip)
	binary.BigEndian.PutUint16(k.Port[:], key.Port)
	var err error
	if asks, some := a.asks[key]; some {
		err = a.objects.Asks.Put(k, asks)
	} else if err = a.objects.Asks.Delete(k); errors.Is(err, ebpf.ErrKeyNotExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("map asks: %w", err)
	}
	return nil
}

// attach has the program run at the interface, instead of an earlier process's.
func (a *asking) attach(index int) error {
	if found, err := askingAt(index); err != nil || a.isOwn(found) {
		return err
	}
	if err := netlink.QdiscAdd(entrance(index)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("queueing discipline clsact (needs a kernel with cls_bpf): %w", err)
	}
	f := askingFilter(index)
	f.Fd, f.Name, f.DirectAction = a.objects.FindUnknown.FD(), askingName, true
	return netlink.FilterReplace(f)
}

// isOwn tells whether the filter, if there is one, runs this process's program.
func (a *asking) isOwn(f *netlink.BpfFilter) bool {
	return f != nil && a.objects != nil && f.Id == int(a.id)
}

// entrance is where filters of an interface are.
func entrance(index int) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0)}}
}

func askingFilter(index int) *netlink.BpfFilter {
	return &netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: askingPlace, Protocol: unix.ETH_P_ALL}}
}

// askingAt is the program's filter at the interface, if there is one.
func askingAt(index int) (*netlink.BpfFilter, error) {
	filters, err := netlink.FilterList(at(index), netlink.HANDLE_MIN_INGRESS)
	if err != nil {
		return nil, err
	}
	for _, f := range filters {
		if f, ok := f.(*netlink.BpfFilter); ok && f.Priority == askingPlace && f.Name == askingName {
			return f, nil
		}
	}
	return nil, nil
}

// at is an interface by its number.
func at(index int) netlink.Link { return &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}} }

// leave takes the program away from all interfaces.
func (a *asking) leave() error { return errors.Join(a.close(), a.detachEarlier()) }

// detachEarlier takes the programs of earlier processes away where this one's does not run in their place.
func (a *asking) detachEarlier() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	var errs []error
	for _, l := range links {
		found, err := askingAt(l.Attrs().Index)
		if found != nil && !a.isOwn(found) {
			err = detach(l.Attrs().Index)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("detach program from interface %s: %w", l.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

// detach takes the program away from the interface, and the place for filters where nobody else has one.
func detach(index int) error {
	if err := netlink.FilterDel(askingFilter(index)); err != nil {
		return err
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		if others, err := netlink.FilterList(at(index), parent); err != nil || len(others) > 0 {
			return err
		}
	}
	there, err := netlink.QdiscList(at(index))
	if err != nil || !slices.ContainsFunc(there, func(q netlink.Qdisc) bool { return q.Type() == entrance(index).Type() }) {
		return err // one of another kind is somebody's own
	}
	return netlink.QdiscDel(entrance(index))
}

// close lets go of the program, which goes on where it is attached.
func (a *asking) close() error {
	if a.objects == nil {
		return nil
	}
	err := a.objects.Close()
	a.objects = nil
	return err
}
