package nftables

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/nftables/elements"
)

// The fast path is a flowtable of the kernel (Documentation/networking/nf_flowtable.rst). A packet of a flow in the flowtable leaves the host at
// once: no chain and no connection tracking sees it. All other packets of a flow take the slow path: its first packets, fragments, packets larger
// than the next link's MTU, FIN and RST, and all packets after the flow's entry of connection tracking is deleted.
//
// A few rules decide which flows are in the flowtable (fastrules.go). Each table has its own flowtable. It is not part of the layout, since a kernel
// may lack flowtables, and its interfaces depend on the host.

const (
	// flowtableName is the name of the flowtable of each table, and of the chain that adds flows to it.
	flowtableName = "fast"
	// setFastInterfaces has the names of the flowtable's interfaces, for rules.
	setFastInterfaces = "fast_interfaces"
)

// maxDevices is the most interfaces of a flowtable. The kernel refuses more than 256 (NFT_NETDEVICE_MAX).
const maxDevices = 255

// The notes about the fast path.
const (
	fastNote              = "fast path: known flows of nat and transparent frontends take a flowtable"
	noFastNote            = "fast path: none: "
	unsupportedNote       = noFastNote + "this kernel lacks flowtables: " + flowtableAdvice + ", and restart the gateway"
	offNote               = noFastNote + "the option " + optionFlowtable + " is " + flowtableOff
	noInterfaceNote       = noFastNote + "no interface with a global address"
	tooManyInterfacesNote = noFastNote + "%d interfaces with a global address, and a flowtable takes %d at most"
	retryNote             = "fast path: to be tried again: "
)

// flowtableAdvice says what to do about a kernel without flowtables.
const flowtableAdvice = "load the modules nft_flow_offload, nft_fib_ipv4, nft_fib_ipv6 and nf_flow_table_inet (before Linux 5.17 nf_flow_table_ipv4 and nf_flow_table_ipv6)"

// fastPath manages the flowtables of all tables.
type fastPath struct {
	tables []*table
	// interfaces returns the host's interfaces for the flowtables.
	interfaces func() ([]string, error)
	// disabled is set if there will be no flowtables while this process runs.
	disabled bool
	// createdAt is when this process created the flowtables.
	createdAt time.Time

	mu   sync.Mutex
	note string
}

// renewInterval is how often the flowtables are replaced. The kernel sets the timeout of a flow in connection tracking to a day when the flow becomes
// fast, and again when only five minutes of it are left (nf_flow_table_extend_ct_timeout, Linux 6.12). A flow that is idle then would expire after
// five minutes. Flowtables that are replaced in time leave at least 18 hours. The first refresh also replaces flowtables and rules of an earlier
// process.
const renewInterval = 6 * time.Hour

// openFastPath creates, adopts or removes the flowtables, depending on the option.
func openFastPath(tables []*table, option string) (*fastPath, error) {
	f := &fastPath{tables: tables, interfaces: fastInterfaces}
	if option == flowtableOff {
		f.disabled = true
		f.setNote(offNote)
		return f, f.apply(nil, false)
	}
	f.sync()
	return f, nil
}

// sync adapts the flowtables to the host, and sets the note. It returns the note if it is new and reports a problem. A kernel without flowtables
// is not tried again. After other problems, existing flowtables are left alone until the next call.
func (f *fastPath) sync() string {
	if f.disabled {
		return ""
	}
	found, err := f.refresh()
	unsupported := errors.Is(err, errNoFlowtables)
	if unsupported {
		err = f.apply(nil, false)
	}
	switch {
	case err != nil:
		return f.setNote(retryNote + err.Error())
	case unsupported:
		f.disabled = true
		return f.setNote(unsupportedNote)
	case found == 0:
		return f.setNote(noInterfaceNote)
	case found > maxDevices:
		return f.setNote(fmt.Sprintf(tooManyInterfacesNote, found, maxDevices))
	}
	f.setNote(fastNote)
	return ""
}

// setNote sets the note, and returns it if it is new.
func (f *fastPath) setNote(note string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.note == note {
		return ""
	}
	f.note = note
	return note
}

func (f *fastPath) currentNote() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.note
}

// maxAttempts bounds how often the flowtables are created while interfaces disappear.
const maxAttempts = 3

// errNoFlowtables says that the kernel lacks flowtables, or something that their rules need.
var errNoFlowtables = errors.New("this kernel lacks flowtables")

// refresh updates the flowtables' interfaces, replaces the flowtables when they are due, and returns the number of interfaces.
func (f *fastPath) refresh() (found int, err error) {
	renew := time.Since(f.createdAt) > renewInterval
	var before []string
	for range maxAttempts {
		interfaces, failed := f.interfaces()
		if failed != nil {
			return 0, failed
		}
		if found = len(interfaces); found > maxDevices {
			interfaces = nil
		}
		err = f.apply(interfaces, renew)
		if err == nil && renew && len(interfaces) > 0 {
			f.createdAt = time.Now()
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) {
			return found, err
		}
		// The error is the same for an interface that has just been removed as for a kernel without flowtables.
		if f.createdAt.IsZero() && len(interfaces) > 0 && slices.Equal(before, interfaces) {
			return found, errNoFlowtables
		}
		before = interfaces
	}
	return found, err
}

// apply gives every table's flowtable these interfaces, which are sorted. renew replaces the flowtable in any case. Without interfaces the flowtable
// is removed.
func (f *fastPath) apply(interfaces []string, renew bool) error {
	c, err := elements.Connect()
	if err != nil {
		return err
	}
	var changed []*table
	for _, t := range f.tables {
		exists, current, err := t.readFlowtable(c)
		if err != nil {
			return err
		}
		if !renew && slices.Equal(current, interfaces) && exists == (len(interfaces) > 0) {
			continue
		}
		// The flowtable is replaced: its flows take the slow path for one packet, and are then added again.
		if exists {
			if err := t.removeFlowtable(c); err != nil {
				return err
			}
		}
		if len(interfaces) > 0 {
			if err := t.addFlowtable(c, interfaces); err != nil {
				return err
			}
			changed = append(changed, t)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("create flowtables for interfaces %q: %w", interfaces, err)
	}
	for _, t := range changed {
		if err := t.setFastRules(); err != nil {
			return errors.Join(err, f.apply(nil, false))
		}
	}
	return nil
}

// readFlowtable reports whether the table has its flowtable, and returns the flowtable's interfaces, sorted. It returns none if the set for the rules
// has other interfaces, or if a rule is missing, as after a process that ended between the two transactions. The kernel removes an interface that
// disappears from the flowtable only, not from the set, and renames it in the flowtable only.
func (t *table) readFlowtable(c *nft.Conn) (exists bool, interfaces []string, err error) {
	all, err := c.ListFlowtables(t.nft)
	if err != nil {
		return false, nil, fmt.Errorf("list flowtables of table %s %s: %w", t.layout.name, t.nft.Name, err)
	}
	i := slices.IndexFunc(all, func(f *nft.Flowtable) bool { return f.Name == flowtableName })
	if i < 0 {
		return false, nil, nil
	}
	if complete, err := t.hasFastRules(); err != nil || !complete {
		return true, nil, err
	}
	inSet, err := c.GetSetElements(t.fastInterfaces()) // it exists, since a rule refers to it
	if err != nil {
		return true, nil, fmt.Errorf("read %s: %w", setFastInterfaces, err)
	}
	var names []string
	for _, e := range inSet {
		names = append(names, string(bytes.TrimRight(e.Key, "\x00")))
	}
	slices.Sort(names)
	if interfaces = slices.Sorted(slices.Values(all[i].Devices)); !slices.Equal(interfaces, names) {
		return true, nil, nil
	}
	return true, interfaces, nil
}

func (t *table) addFlowtable(c *nft.Conn, interfaces []string) error {
	// The flag counter keeps the accounting of connection tracking correct, if an operator has turned that on.
	c.AddFlowtable(&nft.Flowtable{Table: t.nft, Name: flowtableName, Devices: interfaces, Flags: nft.FlowtableFlagsCounter})
	var names []nft.SetElement
	for _, name := range interfaces {
		names = append(names, nft.SetElement{Key: interfaceName(name)})
	}
	if err := c.AddSet(t.fastInterfaces(), names); err != nil {
		return fmt.Errorf("set %s: %w", setFastInterfaces, err)
	}
	addChains(c, t.nft, fastChains())
	return nil
}

// removeFlowtable removes the flowtable with its chains and set. It adds each before it removes it, so that it is no error if another program has
// removed one of them.
func (t *table) removeFlowtable(c *nft.Conn) error {
	for _, chain := range fastChains() {
		c.DelChain(c.AddChain(&nft.Chain{Table: t.nft, Name: chain.name}))
	}
	if err := c.AddSet(t.fastInterfaces(), nil); err != nil {
		return fmt.Errorf("set %s: %w", setFastInterfaces, err)
	}
	c.DelSet(t.fastInterfaces())
	c.DelFlowtable(&nft.Flowtable{Table: t.nft, Name: flowtableName})
	return nil
}

func (t *table) fastInterfaces() *nft.Set {
	return &nft.Set{Table: t.nft, Name: setFastInterfaces, KeyType: nft.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
}

// interfaceName returns a key of type ifname.
func interfaceName(name string) []byte {
	key := make([]byte, unix.IFNAMSIZ)
	copy(key, name)
	return key
}
