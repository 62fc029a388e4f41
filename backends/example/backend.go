package example

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// Backend implements dataplane.Dataplane. New makes one.
type Backend struct {
	held      model.Digests
	pools     map[model.PoolID]*pool
	frontends map[model.FrontendKey]*frontend
	// own are the addresses that this dataplane has added to the host. They are in a file, so that the next process knows them.
	own  map[netip.Addr]bool
	file string
}

var _ dataplane.Dataplane = (*Backend)(nil)

// New returns a backend that serves nothing.
func New() *Backend {
	return &Backend{held: model.NewDigests(), pools: map[model.PoolID]*pool{}, frontends: map[model.FrontendKey]*frontend{}, own: map[netip.Addr]bool{}}
}

// Describe declares the features that the suite tests.
func (b *Backend) Describe(context.Context) (dataplane.Description, error) {
	return dataplane.Description{Name: "example", Version: "0.1.0",
		Features: []dataplane.Feature{dataplane.Weights, dataplane.MaglevTable, dataplane.Drain, dataplane.ICMPEcho, dataplane.PathMTU}}, nil
}

// Preflight checks the options only: every host that can run this process is suitable.
func (b *Backend) Preflight(_ context.Context, config dataplane.Config) ([]dataplane.Check, error) {
	return nil, checkOptions(config.Options)
}

// Configure reads which addresses an earlier process has added.
func (b *Backend) Configure(_ context.Context, config dataplane.Config) error {
	if err := checkOptions(config.Options); err != nil {
		return err
	}
	b.file = filepath.Join(config.StateDir, "addresses")
	text, err := os.ReadFile(b.file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for line := range strings.FieldsSeq(string(text)) {
		if a, err := netip.ParseAddr(line); err == nil {
			b.own[a] = true
		}
	}
	return nil
}

// checkOptions returns an error for any option, since this dataplane has none: a typing error of an operator must not go unnoticed.
func checkOptions(options map[string]string) error {
	for option := range options {
		return fmt.Errorf("backend option %q: the example backend has no options", option)
	}
	return nil
}

// Applied returns the records of this process. A new process holds none.
func (b *Backend) Applied(context.Context) (dataplane.Applied, error) {
	return dataplane.Applied{Digests: b.held}, nil
}

// Apply applies pools, frontends and deletes, in this order and one by one. plugin.Serve has checked the change.
func (b *Backend) Apply(_ context.Context, c dataplane.Change) (dataplane.Result, error) {
	var result dataplane.Result
	for _, p := range c.UpsertPools {
		result.Operations++
		b.setPool(p)
		b.held.Pools[p.ID] = p.Digest()
	}
	for _, f := range c.UpsertFrontends {
		if err := b.setFrontend(f); err != nil {
			result.Failed = append(result.Failed, dataplane.RecordError{Frontend: f.FrontendKey, Message: err.Error()})
			continue
		}
		b.held.Frontends[f.FrontendKey] = f.Digest()
		result.Operations++
	}
	for _, key := range c.DeleteFrontends {
		if b.deleteFrontend(key) {
			result.Operations++
		}
		delete(b.held.Frontends, key)
	}
	for _, id := range c.DeletePools {
		if b.pools[id] != nil {
			result.Operations++
		}
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
	if err := b.addAddress(record.VIP); err != nil {
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

// deleteFrontend reports whether there was such a frontend.
func (b *Backend) deleteFrontend(key model.FrontendKey) bool {
	f := b.frontends[key]
	if f == nil {
		return false
	}
	f.close()
	f.open.end()
	delete(b.frontends, key)
	return true
}

// Render returns the text of the records.
func (b *Backend) Render(_ context.Context, s model.Snapshot) (string, error) {
	return s.Canonical().Text(), nil
}

// Stats returns how many connections and UDP flows have begun, and how many connections end with this process. A gateway that shuts down waits for these.
func (b *Backend) Stats(context.Context) (dataplane.Stats, error) {
	stats := dataplane.Stats{Frontends: map[model.FrontendKey]dataplane.Counter{}, Endpoints: map[dataplane.EndpointKey]dataplane.Counter{}, Proxied: b.connections()}
	for key, f := range b.frontends {
		stats.Frontends[key] = dataplane.Counter{Connections: f.begun.Load()}
	}
	for id, p := range b.pools {
		for endpoint, n := range p.counted() {
			stats.Endpoints[dataplane.EndpointKey{Pool: id, Endpoint: endpoint}] = dataplane.Counter{Connections: n}
		}
	}
	return stats, nil
}

// Watch has nothing to report.
func (b *Backend) Watch(ctx context.Context, _ func(dataplane.Fault)) error {
	<-ctx.Done()
	return nil
}

// Close with purge takes no new flows, lets connections go on for a while, and removes everything.
func (b *Backend) Close(ctx context.Context, purge bool) error {
	if !purge {
		return nil
	}
	for _, f := range b.frontends {
		f.close()
	}
	for begin := time.Now(); b.connections() > 0 && time.Since(begin) < closeTime && ctx.Err() == nil; {
		time.Sleep(20 * time.Millisecond)
	}
	for key := range b.frontends {
		b.deleteFrontend(key)
	}
	b.held, b.pools = model.NewDigests(), map[model.PoolID]*pool{}
	return b.syncAddresses()
}

// closeTime is how long connections may go on after a purge has begun.
const closeTime = dataplane.PurgeGrace + time.Second

// connections returns how many connections clients have.
func (b *Backend) connections() (n uint64) {
	for _, f := range b.frontends {
		n += f.open.count()
	}
	return n
}

func (b *Backend) addAddress(vip netip.Addr) error {
	link, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if !b.own[vip] {
		b.own[vip] = true
		if err := b.saveAddresses(); err != nil {
			return err
		}
	}
	address := addressOf(vip)
	if vip.Is6() {
		address.Flags = unix.IFA_F_NODAD // usable at once
	}
	if err := netlink.AddrReplace(link, address); err != nil {
		return fmt.Errorf("address %s: %w", vip, err)
	}
	return awaitLocal(vip)
}

func addressOf(vip netip.Addr) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: vip.AsSlice(), Mask: net.CIDRMask(vip.BitLen(), vip.BitLen())}, Scope: int(netlink.SCOPE_UNIVERSE)}
}

// saveAddresses writes the file of added addresses, and removes it if there are none.
func (b *Backend) saveAddresses() error {
	if b.file == "" {
		return nil // not configured
	}
	if len(b.own) == 0 {
		if err := os.Remove(b.file); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	var text strings.Builder
	for a := range b.own {
		fmt.Fprintln(&text, a)
	}
	return os.WriteFile(b.file, []byte(text.String()), 0o600)
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

// syncAddresses removes the added addresses that have no frontend.
func (b *Backend) syncAddresses() error {
	link, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	var errs []error
	for vip := range b.own {
		if b.serves(vip) {
			continue
		}
		if err := netlink.AddrDel(link, addressOf(vip)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("remove address %s: %w", vip, err))
			continue
		}
		delete(b.own, vip)
	}
	return errors.Join(append(errs, b.saveAddresses())...)
}

func (b *Backend) serves(vip netip.Addr) bool {
	for key := range b.frontends {
		if key.VIP == vip {
			return true
		}
	}
	return false
}
