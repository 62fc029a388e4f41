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

// kernel has the programs, their maps, and the interfaces where they are attached. All objects are pinned in a directory of the BPF file system.
type kernel struct {
	dir     string
	objects bpf.TcObjects
	xdp     bpf.XDPObjects
	xdpMode string
	maps    map[string]*ebpf.Map
	// pendingTables are tables of pools that installTables will install.
	pendingTables map[uint32]*ebpf.Map
	// attached has the programs of interfaces, by index.
	attached map[int]*attached
	// reported has the last reported error of interfaces without programs, by index.
	reported map[int]string
	// firstSeen is when an interface was first seen that may belong to a pod which is still being set up, by index.
	firstSeen map[int]time.Time

	// pinProblem is the last failure to restore pinned objects, empty if there is none.
	pinProblem string

	settings settings
	stamp    uint32 // of the last sweep
	// options are the options with which the programs were loaded. tracking tells whether they call connection tracking.
	options  options
	tracking tracking
	// root is the directory of /sys and /proc. Tests set another one.
	root string
}

// layoutVersion is the version of the pinned maps' layout. This version adopts maps from oldestLayout on. Layout 3 added limits, 4 replaced formers by handovers, 5
// replaced affinities by clients and members.
const layoutVersion, oldestLayout = 5, 2

// Maps of former layouts.
const (
	mapFormers    = "formers"    // until layout 3
	mapAffinities = "affinities" // until layout 4
)

// load loads the programs, with the pinned maps of an earlier process.
func load(o options, stateDir string) (*kernel, error) {
	if err := checkBPFFS(o.bpffs); err != nil {
		return nil, err
	}
	o.attach = resolveAttach(o.attach)
	// The first stamp differs from all stamps of an earlier process.
	k := &kernel{stamp: uint32(time.Now().UnixMilli()), attached: map[int]*attached{}, reported: map[int]string{}, firstSeen: map[int]time.Time{}, pendingTables: map[uint32]*ebpf.Map{}, options: o, xdpMode: o.xdp, root: "/", dir: filepath.Join(o.bpffs, pinName(stateDir))}
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return nil, fmt.Errorf("create a directory in the BPF file system: %w", err)
	}
	pins := ebpf.MapOptions{PinPath: k.dir}
	if err := k.openRecords(pins); err != nil {
		return nil, err
	}
	if err := k.loadPrograms(); err != nil {
		return nil, errors.Join(err, k.close(false))
	}
	if err := k.adoptOldMaps(); err != nil {
		return nil, errors.Join(err, k.close(false))
	}
	return k, nil
}

// adoptOldMaps adopts the elements of maps of former layouts, and removes these maps.
func (k *kernel) adoptOldMaps() error {
	former, err := ebpf.LoadPinnedMap(filepath.Join(k.dir, mapAffinities), nil)
	if err == nil {
		err = errors.Join(k.adoptOldClients(former), former.Close())
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("adopt the endpoints of clients with affinity in %s: %w", k.dir, err)
	}
	for _, name := range []string{mapFormers, mapAffinities} {
		if err := os.Remove(filepath.Join(k.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// adoptOldClients adopts the endpoints of clients with affinity from layout 4 or earlier, which has the number of an endpoint and not its address.
func (k *kernel) adoptOldClients(former *ebpf.Map) error {
	var key struct {
		Service, Pool uint32
		Client        address
	}
	var value struct{ Endpoint, Generation, Seen uint32 }
	if int(former.KeySize()) != binary.Size(key) || int(former.ValueSize()) != binary.Size(value) {
		return nil // not a map of this backend
	}
	all := former.Iterate()
	for all.Next(&key, &value) {
		var s service
		var e endpoint
		if k.maps[mapServices].Lookup(key.Service, &s) != nil || k.maps[mapEndpoints].Lookup(value.Endpoint, &e) != nil {
			continue // a number without an element
		}
		if s.Pool != key.Pool || e.Generation != value.Generation {
			continue
		}
		if err := k.maps[mapClients].Put(clientKey{key.Service, key.Client}, affinity{e.Address, value.Seen}); err != nil {
			return err
		}
	}
	if err := all.Err(); !errors.Is(err, ebpf.ErrIterationAborted) {
		return err
	}
	return nil // clients change faster than they can be read
}

// pinName returns the name of a gateway's directory in the BPF file system.
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

// loadTc loads the tc program, and lets it call connection tracking if the kernel has it now. If it fails, the program that was loaded before stays.
func (k *kernel) loadTc() error {
	cache := btf.NewCache()
	before := k.tracking
	k.tracking = detectTracking(cache, k.root)
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

// prepare sets sizes, pins and variables of the spec.
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
			if errors.Is(checkSleepableHashes(), ebpf.ErrNotSupported) {
				m.Flags &^= noPreallocation
			}
		}
	}
	if hasConntrack := spec.Variables["has_conntrack"]; hasConntrack != nil && k.tracking.usable() {
		if err := hasConntrack.Set(uint8(1)); err != nil {
			return fmt.Errorf("variable has_conntrack: %w", err)
		}
	}
	if program := spec.Programs["lb_xdp"]; program != nil && checkXDPFrags() != nil {
		program.Flags &^= xdpHasFrags
	}
	if k.options.editSpec != nil {
		return k.options.editSpec(spec)
	}
	return nil
}

// unpinned are the maps whose content another process does not need, and the constants of the programs.
var unpinned = []string{"scratches", "port_tries", "budgets", "shortages", "ended", "ended_count", "routes", ".rodata"}

// recordMaps returns the maps that only the plugin reads, the numbers first.
func recordMaps() []*ebpf.MapSpec {
	return []*ebpf.MapSpec{
		{Name: mapNumbers, Type: ebpf.Array, KeySize: 4, ValueSize: uint32(binary.Size(numbers{})), MaxEntries: 1},
		{Name: mapPoolRecords, Type: ebpf.Hash, KeySize: 4, ValueSize: uint32(binary.Size(poolRecord{})), MaxEntries: maxPools, Flags: noPreallocation},
		{Name: mapEndpointRecords, Type: ebpf.Hash, KeySize: 4, ValueSize: uint32(binary.Size(endpointRecord{})), MaxEntries: 1 << 20, Flags: noPreallocation},
		{Name: mapServiceRecords, Type: ebpf.Hash, KeySize: 4, ValueSize: uint32(binary.Size(serviceRecord{})), MaxEntries: maxServices, Flags: noPreallocation},
	}
}

// openRecords opens the maps that only the plugin reads, and checks their layout.
func (k *kernel) openRecords(options ebpf.MapOptions) error {
	k.maps = map[string]*ebpf.Map{}
	for _, spec := range recordMaps() {
		spec.Pinning = ebpf.PinByName
		m, err := ebpf.NewMapWithOptions(spec, options)
		if err != nil {
			return fmt.Errorf("open map %s in %s (if its layout is that of another version of the eBPF dataplane, purge it with that version): %w", spec.Name, k.dir, err)
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

// checkLayout returns an error if this version cannot adopt maps with the layout. Layout 0 is that of new maps.
func checkLayout(layout uint32, dir string) error {
	if layout > layoutVersion {
		return fmt.Errorf("%s was written by a later version of the eBPF dataplane (layout %d, this version knows %d): install that version again, or purge it", dir, layout, layoutVersion)
	}
	if layout != 0 && layout < oldestLayout {
		return fmt.Errorf("%s was written by an earlier version of the eBPF dataplane (layout %d, this version knows %d and later): purge it with that version", dir, layout, oldestLayout)
	}
	return nil
}

// checkBPFFS mounts the BPF file system at the default path if it is not mounted. At another path that is an error.
func checkBPFFS(path string) error {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if s.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	if path != defaultBPFFS {
		return fmt.Errorf("%s is no BPF file system: run 'mount -t bpf bpf %s', or set another path with --backend-option %s=", path, path, optionBPFFS)
	}
	if err := unix.Mount("bpf", path, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount the BPF file system at %s: %w", path, err)
	}
	return nil
}

// configure writes the range of source ports. It keeps the setting transparent: flows of a former transparent frontend may go on.
func (k *kernel) configure(first, last uint16) error {
	if err := k.objects.SettingsMap.Lookup(uint32(0), &k.settings); err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	k.settings.FirstPort, k.settings.Ports, k.settings.Closing = first, last-first+1, 0
	return k.writeSettings()
}

// enableTransparent makes the programs look for answers to clients of transparent frontends.
func (k *kernel) enableTransparent() error {
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

// apply executes writes. Tables of pools are only queued for installTables.
func (k *kernel) apply(writes []write) error {
	for _, w := range writes {
		if err := k.write(w); err != nil {
			return fmt.Errorf("map %s: %w", w.mapName, err)
		}
	}
	return nil
}

func (k *kernel) write(w write) error {
	switch {
	case w.value == zeroCounter{}:
		return k.maps[w.mapName].Put(w.key, make([]counter, ebpf.MustPossibleCPU()))
	case w.mapName == mapPools && w.value == nil:
		return ignoreMissing(k.objects.Pools.Delete(w.key))
	case w.mapName == mapPools:
		return k.writeRows(w.key.(uint32), w.value.([]uint32))
	case w.value == nil:
		return ignoreMissing(k.maps[w.mapName].Delete(w.key))
	case w.mapName == mapLimits:
		return k.writeLimit(w.key, w.value.(limit))
	}
	return k.maps[w.mapName].Put(w.key, w.value)
}

// writeLimit changes a limit, and keeps what the programs have counted for it.
func (k *kernel) writeLimit(number any, l limit) error {
	var counted limit
	if err := ignoreMissing(k.maps[mapLimits].Lookup(number, &counted)); err != nil {
		return err
	}
	counted.MaxFlows, counted.MaxNewPerSecond = l.MaxFlows, l.MaxNewPerSecond
	return k.maps[mapLimits].Put(number, counted)
}

func ignoreMissing(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// writeRows writes the rows of a pool into its table, after their number. It creates a new table only if that number has changed, since the kernel takes 10 ms to
// replace a table.
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
	k.queueTable(pool, table)
	return nil
}

// tableOf opens the table of the pool. It returns nil if there is none, and without CAP_SYS_ADMIN, which the kernel requires for opening a map by its id. Then a new
// table replaces the former one.
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

// close closes all objects. With purge it removes them from the kernel.
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
		errs = append(errs, os.RemoveAll(k.dir), removeTables(natTable))
	}
	return errors.Join(errs...)
}

// lookupSource returns this host's source address for packets to the endpoint.
func lookupSource(to netip.Addr) (netip.Addr, error) {
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

// reasonNames are the names of enum reason in bpf/model.h, in its order.
var reasonNames = [...]string{"malformed", "fragment-without-first", "source-range", "own-source", "no-source-port", "no-route", "ttl", "rate", "no-flow", "refused", "echo", "too-big"}
