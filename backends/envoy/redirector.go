package envoy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane/dumps"
	"kubelb.k8c.io/backends/envoy/bpf"
	"kubelb.k8c.io/core/model"
)

// redirector manages the BPF program that finds packets of unknown connections, which are redirected (model.Redirect). The program is at
// the ingress of all interfaces with Ethernet addresses. It gives such packets a priority by which the nftables rules recognise and
// redirect them. The program stays there when the plugin ends.
type redirector struct {
	// objects are the program, with its id, and its map. They are nil until a frontend has a redirect.
	objects *bpf.UnknownObjects
	id      ebpf.ProgramID
	// maxRedirects is the maximum number of redirects by frontend. dirty are the frontends whose number is not in the map yet.
	maxRedirects map[model.FrontendKey]uint8
	dirty        map[model.FrontendKey]bool
}

// unknownPriority is the priority that the program gives to packets of unknown connections.
const unknownPriority = 0x6b756577

// filterPriority is the priority of the program among the filters of an interface, askingName its name there.
const (
	filterPriority = 27509
	filterName     = "kubelb_unknown"
)

func newRedirector() *redirector {
	return &redirector{maxRedirects: map[model.FrontendKey]uint8{}, dirty: map[model.FrontendKey]bool{}}
}

// update updates the redirects of changed and deleted frontends. It reports whether the map has to be written.
func (a *redirector) update(set []frontendRules, gone []model.FrontendKey) bool {
	for _, key := range gone {
		a.setRedirects(key, 0)
	}
	for _, f := range set {
		a.setRedirects(f.FrontendKey, f.redirect().Limit)
	}
	return len(a.dirty) > 0
}

func (a *redirector) setRedirects(key model.FrontendKey, limit uint8) {
	switch {
	case a.maxRedirects[key] == limit:
		return
	case limit == 0:
		delete(a.maxRedirects, key)
	default:
		a.maxRedirects[key] = limit
	}
	a.dirty[key] = true
}

// sync loads the program, writes its map and attaches it to all interfaces, once a frontend has a redirect.
func (a *redirector) sync() error {
	if a.objects == nil && len(a.maxRedirects) == 0 {
		return nil
	}
	if err := a.run(); err != nil {
		return fmt.Errorf("packets of unknown connections are not redirected to other gateways: %w", err)
	}
	return nil
}

func (a *redirector) run() error {
	if err := a.load(); err != nil {
		return fmt.Errorf("load program (needs CAP_BPF and CAP_NET_ADMIN): %w", err)
	}
	for key := range a.dirty {
		if err := a.write(key); err != nil {
			return err
		}
		delete(a.dirty, key)
	}
	present, err := ethernet()
	if err != nil {
		return err
	}
	for _, link := range present {
		// ENODEV: the interface has just been removed.
		if err := a.attach(link.Index); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("attach program to interface %s: %w", link.Name, err)
		}
	}
	return nil
}

func (a *redirector) load() error {
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

// redirectKey is a frontend in the program's map.
type redirectKey struct {
	VIP    [16]byte
	Port   [2]byte
	Family uint8
	_      uint8
}

func (a *redirector) write(key model.FrontendKey) error {
	k := redirectKey{Family: 6}
	if key.VIP.Is4() {
		k.Family = 4
	}
	vip := key.VIP.AsSlice()
	copy(k.VIP[len(k.VIP)-len(vip):], vip)
	binary.BigEndian.PutUint16(k.Port[:], key.Port)
	var err error
	if limit, found := a.maxRedirects[key]; found {
		err = a.objects.Asks.Put(k, limit)
	} else if err = a.objects.Asks.Delete(k); errors.Is(err, ebpf.ErrKeyNotExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("map asks: %w", err)
	}
	return nil
}

// attach attaches the program to the interface, and replaces that of an earlier process.
func (a *redirector) attach(index int) error {
	if found, err := filterAt(index); err != nil || a.isOwn(found) {
		return err
	}
	if err := netlink.QdiscAdd(clsact(index)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("queueing discipline clsact (needs a kernel with cls_bpf): %w", err)
	}
	f := newFilter(index)
	f.Fd, f.Name, f.DirectAction = a.objects.FindUnknown.FD(), filterName, true
	return netlink.FilterReplace(f)
}

// isOwn reports whether the filter runs this process's program. f may be nil.
func (a *redirector) isOwn(f *netlink.BpfFilter) bool {
	return f != nil && a.objects != nil && f.Id == int(a.id)
}

// clsact returns the queueing discipline for filters of an interface.
func clsact(index int) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0)}}
}

func newFilter(index int) *netlink.BpfFilter {
	return &netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: filterPriority, Protocol: unix.ETH_P_ALL}}
}

// filterAt returns the program's filter at the interface, if there is one.
func filterAt(index int) (*netlink.BpfFilter, error) {
	filters, err := listFilters(index, netlink.HANDLE_MIN_INGRESS)
	if err != nil {
		return nil, err
	}
	for _, f := range filters {
		if f, ok := f.(*netlink.BpfFilter); ok && f.Priority == filterPriority && f.Name == filterName {
			return f, nil
		}
	}
	return nil, nil
}

func listFilters(index int, parent uint32) ([]netlink.Filter, error) {
	return dumps.Read(func() ([]netlink.Filter, error) { return netlink.FilterList(at(index), parent) })
}

// at returns an interface by its index.
func at(index int) netlink.Link { return &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}} }

// detachAll detaches the program from all interfaces.
func (a *redirector) detachAll() error { return errors.Join(a.close(), a.detachEarlier()) }

// detachEarlier detaches programs of earlier processes that this process's program has not replaced.
func (a *redirector) detachEarlier() error {
	links, err := dumps.Read(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	var errs []error
	for _, l := range links {
		found, err := filterAt(l.Attrs().Index)
		if found != nil && !a.isOwn(found) {
			err = detach(l.Attrs().Index)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("detach program from interface %s: %w", l.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

// detach detaches the program from the interface, and removes the queueing discipline if it has no other filters.
func detach(index int) error {
	if err := netlink.FilterDel(newFilter(index)); err != nil {
		return err
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		if others, err := listFilters(index, parent); err != nil || len(others) > 0 {
			return err
		}
	}
	qdiscs, err := dumps.Read(func() ([]netlink.Qdisc, error) { return netlink.QdiscList(at(index)) })
	if err != nil || !slices.ContainsFunc(qdiscs, func(q netlink.Qdisc) bool { return q.Type() == clsact(index).Type() }) {
		return err // one of another type belongs to another program
	}
	return netlink.QdiscDel(clsact(index))
}

// close closes the program, which goes on where it is attached.
func (a *redirector) close() error {
	if a.objects == nil {
		return nil
	}
	err := a.objects.Close()
	a.objects = nil
	return err
}
