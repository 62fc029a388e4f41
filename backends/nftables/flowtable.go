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

// The fast path is a flowtable of the kernel (Documentation/networking/nf_flowtable.rst). A packet of a flow that is in it leaves the
// host at once: no chain sees it, and conntrack does not. All else of a flow goes by the slow path: its first packets, fragments,
// packets that are larger than the next link's MTU, FIN and RST, and every packet after the flow's conntrack entry is deleted.
//
// A few rules decide which flows are in it (fastrules.go). A table has its own flowtable. It is not part of the layout, since a kernel may
// lack it and its interfaces are the host's.

const (
	// flowtableName names the flowtable of each table, and the chain that puts flows into it.
	flowtableName = "fast"
	// setFastInterfaces has the names of the flowtable's interfaces, for the rule.
	setFastInterfaces = "fast_interfaces"
)

// maxDevices is how many interfaces a flowtable is given at most: the kernel refuses more than 256 (NFT_NETDEVICE_MAX).
const maxDevices = 255

// What the note says.
const (
	fastNote     = "fast path: known flows of nat and transparent frontends take a flowtable"
	noFastNote   = "fast path: none: "
	lackingNote  = noFastNote + "this kernel lacks flowtables: " + lackingAdvice + ", and restart the gateway"
	offNote      = noFastNote + "the option " + optionFlowtable + " is " + flowtableOff
	nowhereNote  = noFastNote + "no interface with a global address"
	crowdedNote  = noFastNote + "%d interfaces with a global address, and a flowtable takes %d at most"
	troubledNote = "fast path: to be tried again: "
)

// lackingAdvice is what to do about a kernel without flowtables.
const lackingAdvice = "load the modules nft_flow_offload, nft_fib_ipv4, nft_fib_ipv6 and nf_flow_table_inet (before Linux 5.17 nf_flow_table_ipv4 and nf_flow_table_ipv6)"

// fastPath is the flowtables of all tables.
type fastPath struct {
	tables []*table
	// interfaces finds the host's.
	interfaces func() ([]string, error)
	// final: there are no flowtables, and will be none while this process runs.
	final bool
	// made is when this process made the flowtables anew.
	made time.Time

	mu   sync.Mutex
	note string
}

// renewal is how often the flowtables are made anew. A flow that never rests has its time in conntrack set to a day when it becomes fast,
// and again when only five minutes of it are left (nf_flow_table_extend_ct_timeout, Linux 6.12): one that rests then would be forgotten
// after these. So 18 hours are left at least, whatever an earlier process did: the first refresh makes them anew. So it does with the rules
// of an earlier version.
const renewal = 6 * time.Hour

// openFastPath makes, takes over or removes the flowtables, as the option says.
func openFastPath(tables []*table, option string) (*fastPath, error) {
	f := &fastPath{tables: tables, interfaces: fastInterfaces}
	if option == flowtableOff {
		f.final = true
		f.say(offNote)
		return f, f.hold(nil, false)
	}
	f.follow()
	return f, nil
}

// follow has the flowtables follow the host, and the note tell how that went. It returns the note if that is new and bad. Only a kernel
// without flowtables is given up: other troubles pass, and what stands is left alone until then.
func (f *fastPath) follow() string {
	if f.final {
		return ""
	}
	found, err := f.refresh()
	lacking := errors.Is(err, errLacking)
	if lacking {
		err = f.hold(nil, false)
	}
	switch {
	case err != nil:
		return f.say(troubledNote + err.Error())
	case lacking:
		f.final = true
		return f.say(lackingNote)
	case found == 0:
		return f.say(nowhereNote)
	case found > maxDevices:
		return f.say(fmt.Sprintf(crowdedNote, found, maxDevices))
	}
	f.say(fastNote)
	return ""
}

// say sets the note, and returns it if it is new.
func (f *fastPath) say(note string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.note == note {
		return ""
	}
	f.note = note
	return note
}

func (f *fastPath) says() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.note
}

// attempts bounds how often the flowtables are made while interfaces go.
const attempts = 3

// errLacking: the kernel has no flowtables, or not all that the rules beside them need.
var errLacking = errors.New("this kernel lacks flowtables")

// refresh brings the flowtables to the host's interfaces, makes them anew when it is time, and tells how many interfaces there are.
func (f *fastPath) refresh() (found int, err error) {
	renew := time.Since(f.made) > renewal
	var before []string
	for range attempts {
		interfaces, failed := f.interfaces()
		if failed != nil {
			return 0, failed
		}
		if found = len(interfaces); found > maxDevices {
			interfaces = nil
		}
		err = f.hold(interfaces, renew)
		if err == nil && renew && len(interfaces) > 0 {
			f.made = time.Now()
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) {
			return found, err
		}
		// An interface that has gone meanwhile has the same error as a kernel without flowtables.
		if f.made.IsZero() && len(interfaces) > 0 && slices.Equal(before, interfaces) {
			return found, errLacking
		}
		before = interfaces
	}
	return found, err
}

// hold has every table's flowtable stand at these interfaces, which are sorted, a new one if so asked. Without interfaces there is none.
func (f *fastPath) hold(interfaces []string, renew bool) error {
	c, err := elements.Connect()
	if err != nil {
		return err
	}
	var changed []*table
	for _, t := range f.tables {
		there, held, err := t.fastAt(c)
		if err != nil {
			return err
		}
		if !renew && slices.Equal(held, interfaces) && there == (len(interfaces) > 0) {
			continue
		}
		// Made anew: its flows take the slow path for a packet and come back.
		if there {
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
		return fmt.Errorf("make flowtables at interfaces %q: %w", interfaces, err)
	}
	for _, t := range changed {
		if err := t.setFastRules(); err != nil {
			return errors.Join(err, f.hold(nil, false))
		}
	}
	return nil
}

// fastAt tells whether the table has its flowtable, and at which interfaces, sorted: none if the set for the rules has others, or a rule
// is missing, as after the end of a process between the two transactions. The kernel takes an interface that goes out of the flowtable,
// but not out of the set, and renames it in the flowtable alone.
func (t *table) fastAt(c *nft.Conn) (there bool, interfaces []string, err error) {
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
	inSet, err := c.GetSetElements(t.fastInterfaces()) // which a rule looks into, so it is there
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
	// The flag counter keeps conntrack's accounting true where an administrator has turned that on.
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

// removeFlowtable removes chains and set, too, even if another program has done so already: what is there can be added.
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

// interfaceName is a key of type ifname.
func interfaceName(name string) []byte {
	key := make([]byte, unix.IFNAMSIZ)
	copy(key, name)
	return key
}
