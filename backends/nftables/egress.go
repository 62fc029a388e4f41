package nftables

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	nft "github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/nftables/elements"
)

// egress is the table, for both families, that sees packets of direct flows at the interfaces to their endpoints.
type egress struct {
	nft        *nft.Table
	interfaces map[string]bool
}

func newEgress(name string) *egress {
	return &egress{nft: &nft.Table{Name: name, Family: nft.TableFamilyNetdev}, interfaces: map[string]bool{}}
}

// vips returns the family's map of the table.
func (e *egress) vips(f family) *nft.Set {
	return &nft.Set{Table: e.nft, Name: leaveMap(f), IsMap: true, KeyType: nft.TypeMark, DataType: f.address, KeyByteOrder: binaryutil.NativeEndian}
}

// egressChain begins the name of the chain of an interface.
const egressChain = "egress-"

func (e *egress) create(c *nft.Conn) error {
	c.AddTable(e.nft)
	for _, f := range families {
		if err := c.AddSet(e.vips(f), nil); err != nil {
			return fmt.Errorf("map %s: %w", leaveMap(f), err)
		}
	}
	addVersion(c, e.nft)
	addChains(c, e.nft, leaveChains())
	return nil
}

// adopt reads which interfaces have their chain.
func (e *egress) adopt(c *nft.Conn) error {
	found, err := e.chains(c)
	e.interfaces = found
	return err
}

func (e *egress) chains(c *nft.Conn) (map[string]bool, error) {
	chains, err := c.ListChainsOfTableFamily(nft.TableFamilyNetdev)
	if err != nil {
		return nil, err
	}
	found := map[string]bool{}
	for _, chain := range chains {
		if name, ok := strings.CutPrefix(chain.Name, egressChain); ok && chain.Table.Name == e.nft.Name {
			found[name] = true
		}
	}
	return found, nil
}

// watch has packets of direct flows restored at the interface.
func (e *egress) watch(name string) error {
	if e.interfaces[name] {
		return nil
	}
	c, err := elements.Connect()
	if err != nil {
		return err
	}
	e.addWatch(c, name)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("forwarding direct: see packets leave at interface %s (needs Linux 5.16 with CONFIG_NETFILTER_EGRESS): %w", name, err)
	}
	e.interfaces[name] = true
	return nil
}

// addWatch adds the chain of an interface to the transaction.
func (e *egress) addWatch(c *nft.Conn, name string) {
	policy := nft.ChainPolicyAccept
	chain := c.AddChain(&nft.Chain{Table: e.nft, Name: egressChain + name, Device: name, Type: nft.ChainTypeFilter,
		Hooknum: nft.ChainHookEgress, Priority: nft.ChainPriorityFilter, Policy: &policy})
	c.AddRule(&nft.Rule{Table: e.nft, Chain: chain, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: "leave"}}})
}

// lost names an interface whose chain is gone, as it is when an interface was removed, and forgets it.
func (e *egress) lost(c *nft.Conn) string {
	found, err := e.chains(c)
	if err != nil {
		return ""
	}
	for _, name := range slices.Sorted(maps.Keys(e.interfaces)) {
		if _, err := netlink.LinkByName(name); err == nil && !found[name] {
			delete(e.interfaces, name)
			return name
		}
	}
	return ""
}

// write renders the table. Its elements are those of both families' edits.
func (e *egress) write(w *strings.Builder, elements map[string][]string) {
	fmt.Fprintf(w, "table netdev %s {\n", e.nft.Name)
	for _, f := range families {
		address := "ipv6_addr"
		if f.v4 {
			address = "ipv4_addr"
		}
		fmt.Fprintf(w, "\tmap %s {\n\t\ttype mark : %s\n", leaveMap(f), address)
		if lines := elements[leaveMap(f)]; len(lines) > 0 {
			fmt.Fprintf(w, "\t\telements = { %s }\n", joinElements(lines, leaveMap(f)))
		}
		w.WriteString("\t}\n\n")
	}
	fmt.Fprintf(w, "\tchain %s {\n\t}\n\n", versionChain)
	for _, c := range leaveChains() {
		c.write(w)
	}
	w.WriteString("}\n")
}
