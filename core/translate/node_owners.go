package translate

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"kubelb.k8c.io/core/model"
)

// NodeOwners decides which tenant owns the node with an address if several tenants may target it, so that no tenant reaches another tenant's nodes.
//
// Tenants with different values of backendNetwork are not compared. Within a network the owner is, by the first rule that distinguishes the tenants:
// the tenant whose backendCIDRs have the longest prefix with the address; the tenant that lists it in an Addresses object; the tenant whose
// status.held has it; the older tenant. So operators decide first, then what tenants list, and then which tenant was first.
//
// NodeOwners is not safe for concurrent use.
type NodeOwners struct {
	tenants map[string]Tenant
	// named has the namespaces of tenants by the networks in their backendCIDRs. lengths counts these networks by prefix length.
	named   map[namedNetwork]map[string]bool
	lengths map[int]int
	// listed has the namespaces that list an address, mostly one.
	listed  map[netip.Addr][]listing
	objects map[model.ObjectName]map[netip.Addr]bool
}

type namedNetwork struct {
	network string
	prefix  netip.Prefix
}

// listing counts the objects of a namespace that list an address, and those of them that have it in status.held.
type listing struct {
	namespace     string
	objects, held int32
}

// NewNodeOwners returns a NodeOwners without tenants.
func NewNodeOwners() *NodeOwners {
	return &NodeOwners{tenants: map[string]Tenant{}, named: map[namedNetwork]map[string]bool{}, lengths: map[int]int{}, listed: map[netip.Addr][]listing{},
		objects: map[model.ObjectName]map[netip.Addr]bool{}}
}

// SetTenant adds or replaces a tenant, and reports whether owners of addresses may have changed.
func (c *NodeOwners) SetTenant(t Tenant) bool {
	namespace := t.Namespace()
	if before, known := c.tenants[namespace]; known && before.Network == t.Network && before.Created == t.Created && slices.Equal(before.BackendCIDRs, t.BackendCIDRs) {
		return false
	}
	c.DeleteTenant(t.Name)
	c.tenants[namespace] = t
	for _, prefix := range t.BackendCIDRs {
		add(c.named, namedNetwork{t.Network, prefix}, namespace)
		c.lengths[prefix.Bits()]++
	}
	return true
}

// DeleteTenant removes a tenant. Its lists are kept, but ignored.
func (c *NodeOwners) DeleteTenant(name string) {
	namespace := Tenant{Name: name}.Namespace()
	before := c.tenants[namespace]
	for _, prefix := range before.BackendCIDRs {
		remove(c.named, namedNetwork{before.Network, prefix}, namespace)
		if c.lengths[prefix.Bits()]--; c.lengths[prefix.Bits()] == 0 {
			delete(c.lengths, prefix.Bits())
		}
	}
	delete(c.tenants, namespace)
}

// ChangedAddresses returns the addresses that differ between the object and the last SetAddresses: listed or not, on record or not. No other address gets another owner.
func (c *NodeOwners) ChangedAddresses(a Addresses) (differ []netip.Addr) {
	was, is := c.objects[a.ObjectName], a.entries()
	for address, onRecord := range is {
		if before, listed := was[address]; !listed || before != onRecord {
			differ = append(differ, address)
		}
	}
	for address := range was {
		if _, still := is[address]; !still {
			differ = append(differ, address)
		}
	}
	return differ
}

// entries returns the addresses that the object lists, and whether each is on record in its status.held.
func (a Addresses) entries() map[netip.Addr]bool {
	held, is := map[netip.Addr]bool{}, map[netip.Addr]bool{}
	for _, address := range a.Held {
		held[address] = true
	}
	eachAddress(a.List, func(address netip.Addr) { is[address] = held[address] })
	return is
}

// SetAddresses replaces what an object lists.
func (c *NodeOwners) SetAddresses(a Addresses) {
	is := a.entries()
	was := c.objects[a.ObjectName]
	for address, onRecord := range was {
		if now, still := is[address]; !still || now != onRecord {
			c.countListing(address, a.Namespace, -1, onRecord)
		}
	}
	for address, onRecord := range is {
		if before, was := was[address]; !was || before != onRecord {
			c.countListing(address, a.Namespace, 1, onRecord)
		}
	}
	if c.objects[a.ObjectName] = is; len(is) == 0 {
		delete(c.objects, a.ObjectName)
	}
}

// countListing changes the listing of the address in the namespace by one object more (1) or less (-1).
func (c *NodeOwners) countListing(address netip.Addr, namespace string, change int32, held bool) {
	by := c.listed[address]
	i := slices.IndexFunc(by, func(l listing) bool { return l.namespace == namespace })
	if i < 0 {
		i, by = len(by), append(by, listing{namespace: namespace})
	}
	l := &by[i]
	l.objects += change
	if held {
		l.held += change
	}
	if l.objects == 0 {
		by = slices.Delete(by, i, i+1)
	}
	if c.listed[address] = by; len(by) == 0 {
		delete(c.listed, address)
	}
}

// listing returns how the namespace lists the address.
func (c *NodeOwners) listing(address netip.Addr, namespace string) listing {
	for _, l := range c.listed[address] {
		if l.namespace == namespace {
			return l
		}
	}
	return listing{}
}

// OtherOwner returns the name of the tenant that owns the address, if it is another tenant.
func (c *NodeOwners) OtherOwner(tenant Tenant, address netip.Addr) (name string, found bool) {
	if c == nil {
		return "", false
	}
	own := prefixLength(tenant, address)
	for bits := range c.lengths {
		if bits <= own || bits > address.BitLen() {
			continue
		}
		prefix, _ := address.Prefix(bits)
		for namespace := range c.named[namedNetwork{tenant.Network, prefix}] {
			if other := c.tenants[namespace].Name; !found || other < name {
				name, found = other, true
			}
		}
	}
	if found {
		return name, true
	}
	rank := claimRank{tenant, c.listing(address, tenant.Namespace())}
	for _, l := range c.listed[address] {
		other, known := c.tenants[l.namespace]
		if !known || l.namespace == tenant.Namespace() || other.Network != tenant.Network || prefixLength(other, address) < own {
			continue
		}
		if otherRank := (claimRank{other, l}); otherRank.before(rank) && (!found || other.Name < name) {
			name, found = other.Name, true
		}
	}
	return name, found
}

// prefixLength returns the length of the longest of the tenant's backendCIDRs that contains the address, -1 for none.
func prefixLength(t Tenant, address netip.Addr) int {
	bits := -1
	for _, prefix := range t.BackendCIDRs {
		if prefix.Contains(address) {
			bits = max(bits, prefix.Bits())
		}
	}
	return bits
}

// claimRank orders tenants with equal prefix lengths by their claims to an address.
type claimRank struct {
	tenant Tenant
	listing
}

func (s claimRank) before(o claimRank) bool {
	has := func(n int32) int32 { return min(n, 1) }
	return cmp.Or(cmp.Compare(has(o.objects), has(s.objects)), cmp.Compare(has(o.held), has(s.held)), cmp.Compare(s.tenant.Created, o.tenant.Created), cmp.Compare(s.tenant.Name, o.tenant.Name)) < 0
}

// AddressesToHold returns the addresses that the object's status.held has to have, sorted. They belong to the object's tenant, but another tenant may claim them:
// its backendCIDRs have a prefix of the same length, and it may list the address later; or it lists the address, and its backendCIDRs may be
// extended later. An address that is on record stays so, whatever others list.
func (c *NodeOwners) AddressesToHold(a Addresses) []netip.Addr {
	tenant, known := c.tenants[a.Namespace]
	if !known {
		return nil
	}
	hold := map[netip.Addr]bool{}
	for address, onRecord := range c.objects[a.ObjectName] {
		own := prefixLength(tenant, address)
		if own < 0 {
			continue
		}
		prefix, _ := address.Prefix(own)
		disputed := onRecord || len(c.listed[address]) > 1 || len(c.named[namedNetwork{tenant.Network, prefix}]) > 1
		if _, rival := c.OtherOwner(tenant, address); !rival && disputed {
			hold[address] = true
		}
	}
	return slices.SortedFunc(maps.Keys(hold), netip.Addr.Compare)
}
