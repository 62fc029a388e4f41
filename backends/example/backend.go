package example

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/dumps"
	"kubelb.k8c.io/core/model"
)

// Backend implements dataplane.Dataplane. New makes one.
type Backend struct {
	held      model.Digests
	pools     map[model.PoolID]*pool
	frontends map[model.FrontendKey]*frontend
}

var _ dataplane.Dataplane = (*Backend)(nil)

// New returns a backend that serves nothing.
func New() *Backend {
	return &Backend{held: model.NewDigests(), pools: map[model.PoolID]*pool{}, frontends: map[model.FrontendKey]*frontend{}}
}

// Describe declares the features that the suite tests.
func (b *Backend) Describe(context.Context) (dataplane.Description, error) {
	return dataplane.Description{Name: "example", Version: "0.1.0",
		Features: []dataplane.Feature{dataplane.Weights, dataplane.MaglevTable, dataplane.Drain, dataplane.ICMPEcho, dataplane.PathMTU}}, nil
}

// Preflight checks nothing: every host that can run this process is suitable.
func (b *Backend) Preflight(context.Context, dataplane.Config) ([]dataplane.Check, error) {
	return nil, nil
}

// Configure needs nothing of the host.
func (b *Backend) Configure(context.Context, dataplane.Config) error { return nil }

// Applied returns the records of this process. A new process holds none.
func (b *Backend) Applied(context.Context) (dataplane.Applied, error) {
	return dataplane.Applied{Digests: b.held}, nil
}

// Apply applies pools, frontends and deletes, in this order and one by one. plugin.Serve has checked the change.
func (b *Backend) Apply(_ context.Context, c dataplane.Change) (dataplane.Result, error) {
	result := dataplane.Result{Operations: uint64(len(c.UpsertPools) + len(c.UpsertFrontends) + len(c.DeleteFrontends) + len(c.DeletePools))}
	for _, p := range c.UpsertPools {
		b.setPool(p)
		b.held.Pools[p.ID] = p.Digest()
	}
	for _, f := range c.UpsertFrontends {
		if err := b.setFrontend(f); err != nil {
			result.Failed = append(result.Failed, dataplane.RecordError{Frontend: f.FrontendKey, Message: err.Error()})
			continue
		}
		b.held.Frontends[f.FrontendKey] = f.Digest()
	}
	for _, key := range c.DeleteFrontends {
		b.deleteFrontend(key)
		delete(b.held.Frontends, key)
	}
	for _, id := range c.DeletePools {
		delete(b.pools, id)
		delete(b.held.Pools, id)
	}
	return result, b.syncAddresses()
}

// setPool replaces the pool's table. Frontends start to listen when the pool gets its first endpoint, and stop when it loses the last.
func (b *Backend) setPool(content model.Pool) {
	p := b.pools[content.ID]
	if p == nil {
		p = &pool{}
		b.pools[content.ID] = p
	}
	p.set(content)
	for _, f := range b.frontends {
		if f.pool.Load() == p {
			_ = f.sync() // an error here is returned when the frontend is applied again
		}
	}
}

func (b *Backend) setFrontend(record model.Frontend) error {
	p := b.pools[record.Pool]
	if p == nil {
		return dataplane.MissingPool(record.Pool)
	}
	if endpoints := p.content.Load().endpoints; len(endpoints) > 0 && endpoints[0].Address.Is4() != record.VIP.Is4() {
		return dataplane.OtherFamily(record.Pool)
	}
	if err := addAddress(record.VIP); err != nil {
		return err
	}
	f := b.frontends[record.FrontendKey]
	if f != nil && f.owner != record.Owner {
		b.deleteFrontend(record.FrontendKey)
		f = nil
	}
	if f == nil {
		f = &frontend{key: record.FrontendKey, owner: record.Owner, open: newConnections()}
	}
	f.pool.Store(p)
	f.target.Store(uint32(record.TargetPort))
	if err := f.sync(); err != nil {
		return err
	}
	b.frontends[record.FrontendKey] = f
	return nil
}

func (b *Backend) deleteFrontend(key model.FrontendKey) {
	if f := b.frontends[key]; f != nil {
		f.close()
		f.open.end()
		delete(b.frontends, key)
	}
}

// Render returns the text of the records.
func (b *Backend) Render(_ context.Context, s model.Snapshot) (string, error) {
	return s.Canonical().Text(), nil
}

// Stats counts nothing.
func (b *Backend) Stats(context.Context) (dataplane.Stats, error) { return dataplane.Stats{}, nil }

// Watch has nothing to report.
func (b *Backend) Watch(ctx context.Context, _ func(dataplane.Fault)) error {
	<-ctx.Done()
	return nil
}

// Close with purge removes everything.
func (b *Backend) Close(_ context.Context, purge bool) error {
	if !purge {
		return nil
	}
	for key := range b.frontends {
		b.deleteFrontend(key)
	}
	return b.syncAddresses()
}

// label marks the addresses that this dataplane has added.
const label = "lo:kubelb"

func addAddress(vip netip.Addr) error {
	link, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: vip.AsSlice(), Mask: net.CIDRMask(vip.BitLen(), vip.BitLen())}, Scope: int(netlink.SCOPE_UNIVERSE)}
	if vip.Is4() {
		address.Label = label
	} else {
		address.Flags = unix.IFA_F_NODAD // usable at once
	}
	if err := netlink.AddrReplace(link, address); err != nil {
		return fmt.Errorf("address %s: %w", vip, err)
	}
	return awaitLocal(vip)
}

// awaitLocal returns once the kernel delivers packets for the address locally. For a new IPv6 address that is a moment after it
// was added (addrconf_dad_begin in net/ipv6/addrconf.c). Until then the kernel sends such packets to a router.
func awaitLocal(vip netip.Addr) error {
	for begin := time.Now(); time.Since(begin) < 5*time.Second; time.Sleep(time.Millisecond) {
		routes, err := netlink.RouteGet(vip.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
	}
	return fmt.Errorf("address %s: the kernel does not deliver its packets locally", vip)
}

// syncAddresses removes addresses without a frontend.
func (b *Backend) syncAddresses() error {
	link, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	addresses, err := dumps.Read(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range addresses {
		vip, ok := netip.AddrFromSlice(a.IP)
		if vip = vip.Unmap(); !ok || vip.IsLoopback() || vip.Is4() && a.Label != label || b.serves(vip) {
			continue
		}
		errs = append(errs, netlink.AddrDel(link, &a))
	}
	return errors.Join(errs...)
}

func (b *Backend) serves(vip netip.Addr) bool {
	for key := range b.frontends {
		if key.VIP == vip {
			return true
		}
	}
	return false
}
