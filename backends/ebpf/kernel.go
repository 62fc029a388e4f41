package ebpf

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/ebpf/bpf"
)

// kernel is the programs with their maps, and where they are attached. All of it is pinned in a directory of the BPF file system.
type kernel struct {
	dir     string
	objects bpf.TcObjects
	xdp     bpf.XDPObjects
	xdpMode string
	maps    map[string]*ebpf.Map
	// tables are those of pools that are not in their places yet.
	tables map[uint32]*ebpf.Map
	// attached is what runs at the interfaces, by their numbers.
	attached map[int]*attached
	// reported is what Watch has said of interfaces that go without programs.
	reported map[int]string
	// since is when interfaces were first seen that may be of pods that are not complete yet.
	since map[int]time.Time

	settings settings
	stamp    uint32 // of the last sweep
	// options are what the programs were loaded with, tracking whether they ask connection tracking.
	options  options
	tracking tracking
	// root is where /sys and /proc are.
	root string
}

// layoutVersion changes with what the pinned maps mean. What is of oldestLayout or later this version goes on with: 3 has limits as well, 4
// handovers in place of formers, 5 clients and members in place of affinities.
const layoutVersion, oldestLayout = 5, 2

// Maps that there are no more.
const (
	mapBeforeLayout4 = "formers"
	mapBeforeLayout5 = "affinities"
)

// load loads the programs, with the maps that an earlier process left.
func load(o options, stateDir string) (*kernel, error) {
	if err := requireBPFFS(o.bpffs); err != nil {
		return nil, err
	}
	o.attach = chooseAttach(o.attach)
	// An earlier process's stamps are other ones.
	k := &kernel{stamp: uint32(time.Now().UnixMilli()), attached: map[int]*attached{}, reported: map[int]string{}, since: map[int]time.Time{}, tables: map[uint32]*ebpf.Map{}, options: o, xdpMode: o.xdp, root: "/", dir: filepath.Join(o.bpffs, pinName(stateDir))}
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make a directory in the BPF file system: %w", err)
	}
	pins := ebpf.MapOptions{PinPath: k.dir}
	if err := k.openRecords(pins); err != nil {
		return nil, err
	}
	if err := k.loadPrograms(); err != nil {
		return nil, errors.Join(err, k.close(false))
	}
	if err := k.inherit(); err != nil {
		return nil, errors.Join(err, k.close(false))
	}
	return k, nil
}

// inherit takes over what is in maps that there are no more, and removes them.
func (k *kernel) inherit() error {
	former, err := ebpf.LoadPinnedMap(filepath.Join(k.dir, mapBeforeLayout5), nil)
	if err == nil {
		err = errors.Join(k.inheritClients(former), former.Close())
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("take over the clients that are remembered in %s: %w", k.dir, err)
	}
	for _, name := range []string{mapBeforeLayout4, mapBeforeLayout5} {
		if err := os.Remove(filepath.Join(k.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// inheritClients remembers clients that a version of layout 4 or earlier has remembered, by the number of their endpoint in a pool.
func (k *kernel) inheritClients(former *ebpf.Map) error {
	var key struct {
		Service, Pool uint32
		Client        address
	}
	var value struct{ Endpoint, Generation, Seen uint32 }
	if int(former.KeySize()) != binary.Size(key) || int(former.ValueSize()) != binary.Size(value) {
		return nil // somebody else's
	}
	all := former.Iterate()
	for all.Next(&key, &value) {
		var s service
		var e endpoint
		if k.maps[mapServices].Lookup(key.Service, &s) != nil || k.maps[mapEndpoints].Lookup(value.Endpoint, &e) != nil {
			continue // it has no place in the tables
		}
		if s.Pool != key.Pool || e.Generation != value.Generation {
			continue
		}
		if err := k.maps[mapClients].Put(clientKey{key.Service, key.Client}, remembered{e.Address, value.Seen}); err != nil {
			return err
		}
	}
	if err := all.Err(); !errors.Is(err, ebpf.ErrIterationAborted) {
		return err
	}
	return nil // so many come and go that not all can be seen
}

// pinName is the name of a gateway's directory in the BPF file system.
func pinName(stateDir string) string {
	return fmt.Sprintf("kubelb-%x", sha256.Sum256([]byte(stateDir)))[:15]
}

// loadPrograms loads the programs, with the maps that are pinned.
func (k *kernel) loadPrograms() error {
	if err := k.loadSpec(bpf.LoadXDP, &k.xdp, btf.NewCache()); err != nil {
		return err
	}
	return k.loadTc()
}

// loadTc loads the programs that ask connection tracking, if that is there now. Where it fails, those that were loaded before stay.
func (k *kernel) loadTc() error {
	cache := btf.NewCache()
	before := k.tracking
	k.tracking = findTracking(cache, k.root)
	var objects bpf.TcObjects
	if err := k.loadSpec(bpf.LoadTc, &objects, cache); err != nil {
		k.tracking = before
		return err
	}
	k.objects = objects
	k.maps[mapAddresses], k.maps[mapFrontends], k.maps[mapServices], k.maps[mapEndpoints] = objects.Addresses, objects.Frontends, objects.Services, objects.Endpoints
	k.maps[mapHandovers], k.maps[mapMembers], k.maps[mapClients] = objects.Handovers, objects.Members, objects.Clients
	k.maps[mapLimits] = objects.Limits
	k.maps[mapSourceRanges], k.maps[mapServiceCounters], k.maps[mapEndpointCounters] = objects.SourceRanges, objects.ServiceCounters, objects.EndpointCounters
	return nil
}

func (k *kernel) loadSpec(read func() (*ebpf.CollectionSpec, error), into any, cache *btf.Cache) error {
	spec, err := read()
	if err == nil {
		err = k.prepare(spec)
	}
	if err == nil {
		err = spec.LoadAndAssign(into, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: k.dir}, Cache: cache})
	}
	if err != nil {
		return fmt.Errorf("load programs (needs CAP_BPF and CAP_NET_ADMIN): %w", err)
	}
	return nil
}

// prepare sets what the programs and maps of the spec are loaded with.
func (k *kernel) prepare(spec *ebpf.CollectionSpec) error {
	for name, m := range spec.Maps {
		if !slices.Contains(unpinned, name) {
			m.Pinning = ebpf.PinByName
		}
		switch name {
		case "flows":
			m.MaxEntries = k.options.flows
		case "young_flows":
			m.MaxEntries = max(k.options.flows/4, 1<<10)
		case "proofs":
			m.MaxEntries = max(k.options.flows/8, 1<<9)
		case mapLimits:
			if errors.Is(haveSleepableHashes(), ebpf.ErrNotSupported) {
				m.Flags &^= noPreallocation
			}
		}
	}
	if tracks := spec.Variables["has_conntrack"]; tracks != nil && k.tracking.asked() {
		if err := tracks.Set(uint8(1)); err != nil {
			return fmt.Errorf("variable has_conntrack: %w", err)
		}
	}
	if program := spec.Programs["lb_xdp"]; program != nil && haveXDPFrags() != nil {
		program.Flags &^= xdpHasFrags
	}
	if k.options.edit != nil {
		return k.options.edit(spec)
	}
	return nil
}

// unpinned are the maps that hold nothing from one packet to the next, and the constants of the programs.
var unpinned = []string{"scratches", "port_tries", "budgets", "shortages", "ended", "ended_count", "routes", ".rodata"}

// recordMaps are the maps that only the plugin reads, the numbers first.
func recordMaps() []*ebpf.MapSpec {
	return []*ebpf.MapSpec{
		{Name: mapNumbers, Type: ebpf.Array, KeySize: 4, ValueSize: uint32(binary.Size(numbers{})), MaxEntries: 1},
		{Name: mapPoolRecords, Type: ebpf.Hash, KeySize: 4, ValueSize: uint32(binary.Size(poolRecord{})), MaxEntries: maxPools, Flags: noPreallocation},
		{Name: mapEndpointRecords, Type: ebpf.Hash, KeySize: 4, ValueSize: uint32(binary.Size(endpointRecord{})), MaxEntries: 1 << 20, Flags: noPreallocation},
		{Name: mapServiceRecords, Type: ebpf.Hash, KeySize: 4, ValueSize: uint32(binary.Size(serviceRecord{})), MaxEntries: maxServices, Flags: noPreallocation},
	}
}

// openRecords opens the maps that only the plugin reads, once the numbers say that it knows what is in them.
func (k *kernel) openRecords(options ebpf.MapOptions) error {
	k.maps = map[string]*ebpf.Map{}
	for _, spec := range recordMaps() {
		spec.Pinning = ebpf.PinByName
		m, err := ebpf.NewMapWithOptions(spec, options)
		if err != nil {
			return fmt.Errorf("open map %s in %s (its layout is that of another version of this backend: purge that first): %w", spec.Name, k.dir, err)
		}
		k.maps[spec.Name] = m
		if spec.Name != mapNumbers {
			continue
		}
		var n numbers
		if err := m.Lookup(uint32(0), &n); err != nil {
			return err
		}
		if err := checkLayout(n.Layout, k.dir); err != nil {
			return err
		}
	}
	return nil
}

// checkLayout refuses what another version wrote that this one does not understand; 0 is nothing yet.
func checkLayout(layout uint32, dir string) error {
	if layout > layoutVersion {
		return fmt.Errorf("%s was written by a later version of this backend (layout %d, this one knows %d): install that again, or purge it", dir, layout, layoutVersion)
	}
	if layout != 0 && layout < oldestLayout {
		return fmt.Errorf("%s was written by an earlier version of this backend (layout %d, this one knows %d and later): purge it with that", dir, layout, oldestLayout)
	}
	return nil
}

// requireBPFFS mounts the BPF file system where it usually is, or says what to do.
func requireBPFFS(path string) error {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if s.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	if path != usualBPFFS {
		return fmt.Errorf("%s is no BPF file system: run 'mount -t bpf bpf %s', or name another by --backend-option %s=", path, path, optionBPFFS)
	}
	if err := unix.Mount("bpf", path, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount the BPF file system at %s: %w", path, err)
	}
	return nil
}

// configure writes the slice of source ports. That some frontend is, or was, transparent stays: flows of then may go on.
func (k *kernel) configure(first, last uint16) error {
	if err := k.objects.SettingsMap.Lookup(uint32(0), &k.settings); err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	k.settings.FirstPort, k.settings.Ports, k.settings.Closing = first, last-first+1, 0
	return k.writeSettings()
}

// takeAnswers has answers to clients of transparent frontends found.
func (k *kernel) takeAnswers() error {
	if k.settings.Transparent == 1 {
		return nil
	}
	k.settings.Transparent = 1
	return k.writeSettings()
}

func (k *kernel) writeSettings() error {
	if err := k.objects.SettingsMap.Put(uint32(0), k.settings); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	return nil
}

// apply writes elements. Tables of rows wait for placeTables.
func (k *kernel) apply(writes []write) error {
	for _, w := range writes {
		if err := k.write(w); err != nil {
			return fmt.Errorf("map %s: %w", w.table, err)
		}
	}
	return nil
}

func (k *kernel) write(w write) error {
	switch {
	case w.value == zeroCounter{}:
		return k.maps[w.table].Put(w.key, make([]counter, ebpf.MustPossibleCPU()))
	case w.table == mapPools && w.value == nil:
		return ignoreMissing(k.objects.Pools.Delete(w.key))
	case w.table == mapPools:
		return k.writeRows(w.key.(uint32), w.value.([]uint32))
	case w.value == nil:
		return ignoreMissing(k.maps[w.table].Delete(w.key))
	}
	return k.maps[w.table].Put(w.key, w.value)
}

func ignoreMissing(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// writeRows writes the pool's rows in place, behind their number. Only if that is another one it makes a new table, since the kernel
// takes 10 ms to have one take the place of another.
func (k *kernel) writeRows(pool uint32, rows []uint32) error {
	keys, values := make([]uint32, len(rows)+1), append([]uint32{uint32(len(rows))}, rows...)
	for i := range keys {
		keys[i] = uint32(i)
	}
	known, err := k.tableOf(pool)
	if err != nil {
		return err
	}
	if known != nil {
		defer known.Close()
		if known.MaxEntries() == uint32(len(keys)) {
			_, err = known.BatchUpdate(keys, values, nil)
			return err
		}
	}
	table, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: uint32(len(keys)), Flags: innerMap})
	if err != nil {
		return err
	}
	if _, err := table.BatchUpdate(keys, values, nil); err != nil {
		return errors.Join(err, table.Close())
	}
	k.keepForPlace(pool, table)
	return nil
}

// tableOf opens the table that the pool has; nil if it has none. The kernel opens tables by their numbers for CAP_SYS_ADMIN only: without it there is
// none either, and a new one takes its place.
func (k *kernel) tableOf(pool uint32) (*ebpf.Map, error) {
	var id ebpf.MapID
	if err := ignoreMissing(k.objects.Pools.Lookup(pool, &id)); err != nil || id == 0 {
		return nil, err
	}
	table, err := ebpf.NewMapFromID(id)
	if errors.Is(err, unix.EPERM) {
		return nil, nil
	}
	return table, err
}

// innerMap is BPF_F_INNER_MAP: tables of one outer map may differ in size.
const innerMap = 1 << 12

// noPreallocation is BPF_F_NO_PREALLOC.
const noPreallocation = 1

// close lets go of everything; with purge nothing of it is left in the kernel.
func (k *kernel) close(purge bool) error {
	var errs []error
	for _, at := range k.attached {
		if purge {
			errs = append(errs, at.detach())
		}
		errs = append(errs, at.close())
	}
	for _, m := range k.maps {
		errs = append(errs, m.Close())
	}
	errs = append(errs, k.objects.Close(), k.xdp.Close())
	if purge {
		errs = append(errs, os.RemoveAll(k.dir), removeTables(keepTable))
	}
	return errors.Join(errs...)
}

// sourceTowards is this host's address on the way to the endpoint.
func sourceTowards(to netip.Addr) (netip.Addr, error) {
	routes, err := netlink.RouteGet(to.AsSlice())
	if err != nil {
		return netip.Addr{}, fmt.Errorf("no route to %s: %w", to, err)
	}
	for _, r := range routes {
		if source, ok := netip.AddrFromSlice(r.Src); ok {
			return source.Unmap(), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("the route to %s has no source address", to)
}

// reasonNames are those of enum reason in bpf/model.h, in its order.
var reasonNames = [...]string{"malformed", "fragment-without-first", "source-range", "own-source", "no-source-port", "no-route", "ttl", "rate", "no-flow", "refused", "echo", "too-big"}
