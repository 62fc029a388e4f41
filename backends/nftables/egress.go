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

// egress is the table that sees packets of direct flows of both families at the interfaces to their endpoints.
type egress struct {
	nft        *nft.Table
	interfaces map[string]bool
}

func newEgress(name string) *egress {
	return &egress{nft: &nft.Table{Name: name, Family: nft.TableFamilyNetdev}, interfaces: map[string]bool{}}
}

// vips returns the family's map of the table.
func (e *egress) vips(f family) *nft.Set {
	return &nft.Set{Table: e.nft, Name: egressVIPMap(f), IsMap: true, KeyType: nft.TypeMark, DataType: f.address, KeyByteOrder: binaryutil.NativeEndian}
}

// egressChain is the prefix of the name of an interface's chain.
const egressChain = "egress-"

func (e *egress) create(c *nft.Conn) error {
	c.AddTable(e.nft)
	for _, f := range families {
		if err := c.AddSet(e.vips(f), nil); err != nil {
			return fmt.Errorf("map %s: %w", egressVIPMap(f), err)
		}
	}
	addVersion(c, e.nft)
	addChains(c, e.nft, egressChains())
	return nil
}

// adopt reads which interfaces have a chain.
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

// ensureChain adds the chain that restores packets of direct flows at the interface.
func (e *egress) ensureChain(name string) error {
	if e.interfaces[name] {
		return nil
	}
	c, err := elements.Connect()
	if err != nil {
		return err
	}
	e.addChain(c, name)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("forwarding direct: add the egress chain of interface %s (needs Linux 5.16 with CONFIG_NETFILTER_EGRESS): %w", name, err)
	}
	e.interfaces[name] = true
	return nil
}

// addChain adds the chain of an interface to the transaction.
func (e *egress) addChain(c *nft.Conn, name string) {
	policy := nft.ChainPolicyAccept
	chain := c.AddChain(&nft.Chain{Table: e.nft, Name: egressChain + name, Device: name, Type: nft.ChainTypeFilter,
		Hooknum: nft.ChainHookEgress, Priority: nft.ChainPriorityFilter, Policy: &policy})
	c.AddRule(&nft.Rule{Table: e.nft, Chain: chain, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: "leave"}}})
}

// missingChain returns an interface that exists but whose chain is missing, as after an interface was removed and added again. The interface is
// removed from the state, so that the next change adds the chain.
func (e *egress) missingChain(c *nft.Conn) string {
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

// write renders the table with these elements of its maps.
func (e *egress) write(w *strings.Builder, elements map[string][]string) {
	fmt.Fprintf(w, "table netdev %s {\n", e.nft.Name)
	for _, f := range families {
		address := "ipv6_addr"
		if f.v4 {
			address = "ipv4_addr"
		}
		fmt.Fprintf(w, "\tmap %s {\n\t\ttype mark : %s\n", egressVIPMap(f), address)
		if lines := elements[egressVIPMap(f)]; len(lines) > 0 {
			fmt.Fprintf(w, "\t\telements = { %s }\n", joinElements(lines, egressVIPMap(f)))
		}
		w.WriteString("\t}\n\n")
	}
	fmt.Fprintf(w, "\tchain %s {\n\t}\n\n", versionChain)
	for _, c := range egressChains() {
		c.write(w)
	}
	w.WriteString("}\n")
}
