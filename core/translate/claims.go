package translate

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"kubelb.k8c.io/core/model"
)

// Claims know whose node an address is, where several tenants may target it: no tenant reaches another one's nodes.
//
// Tenants with different values of backendNetwork are never compared. Within a network the first of these rules that tells tenants apart decides: the
// tenant whose backendCIDRs name the address most precisely; the tenant that lists it in an Addresses object; the tenant whose status.held names
// it; the tenant that is older. The operator's word comes first, then what tenants write, and among tenants the earlier one's.
//
// They are not safe for concurrent use.
type Claims struct {
	tenants map[string]Tenant
	// named are the namespaces of tenants by the networks that their operators named, lengths how many of those have so many bits.
	named   map[namedNetwork]map[string]bool
	lengths map[int]int
	// listed is who lists an address, in how many of its objects, and whether it is on record there. Mostly that is one.
	listed  map[netip.Addr][]listing
	objects map[model.ObjectName]map[netip.Addr]bool
}

type namedNetwork struct {
	network string
	prefix  netip.Prefix
}

type listing struct {
	namespace     string
	objects, held int32
}

// NewClaims returns those of no tenant.
func NewClaims() *Claims {
	return &Claims{tenants: map[string]Tenant{}, named: map[namedNetwork]map[string]bool{}, lengths: map[int]int{}, listed: map[netip.Addr][]listing{},
		objects: map[model.ObjectName]map[netip.Addr]bool{}}
}

// SetTenant adds or replaces a tenant, and reports whether that may concern others.
func (c *Claims) SetTenant(t Tenant) bool {
	namespace := t.Namespace()
	if b, known := c.tenants[namespace]; known && b.Network == t.Network && b.Created == t.Created && slices.Equal(b.BackendCIDRs, t.BackendCIDRs) {
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

// DeleteTenant forgets a tenant. What it lists stays known, and counts for nothing.
func (c *Claims) DeleteTenant(name string) {
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

// Differing returns the addresses for which the object now says something else than at the last SetAddresses. Other addresses keep their owners.
func (c *Claims) Differing(a Addresses) (differ []netip.Addr) {
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

// entries are the addresses that the object lists, and whether each is on record there.
func (a Addresses) entries() map[netip.Addr]bool {
	held, is := map[netip.Addr]bool{}, map[netip.Addr]bool{}
	for _, address := range a.Held {
		held[address] = true
	}
	eachAddress(a.List, func(address netip.Addr) { is[address] = held[address] })
	return is
}

// SetAddresses replaces what an object lists.
func (c *Claims) SetAddresses(a Addresses) {
	is := a.entries()
	was := c.objects[a.ObjectName]
	for address, onRecord := range was {
		if now, still := is[address]; !still || now != onRecord {
			c.count(address, a.Namespace, -1, onRecord)
		}
	}
	for address, onRecord := range is {
		if before, was := was[address]; !was || before != onRecord {
			c.count(address, a.Namespace, 1, onRecord)
		}
	}
	if c.objects[a.ObjectName] = is; len(is) == 0 {
		delete(c.objects, a.ObjectName)
	}
}

func (c *Claims) count(address netip.Addr, namespace string, change int32, held bool) {
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

// listing is what a namespace's objects say of the address.
func (c *Claims) listing(address netip.Addr, namespace string) listing {
	for _, l := range c.listed[address] {
		if l.namespace == namespace {
			return l
		}
	}
	return listing{}
}

// Rival returns the name of the tenant whose node the address is, if it is not this one's.
func (c *Claims) Rival(tenant Tenant, address netip.Addr) (name string, is bool) {
	if c == nil {
		return "", false
	}
	own := precision(tenant, address)
	for bits := range c.lengths {
		if bits <= own || bits > address.BitLen() {
			continue
		}
		prefix, _ := address.Prefix(bits)
		for namespace := range c.named[namedNetwork{tenant.Network, prefix}] {
			if other := c.tenants[namespace].Name; !is || other < name {
				name, is = other, true
			}
		}
	}
	if is {
		return name, true
	}
	mine := standing{tenant, c.listing(address, tenant.Namespace())}
	for _, l := range c.listed[address] {
		other, known := c.tenants[l.namespace]
		if !known || l.namespace == tenant.Namespace() || other.Network != tenant.Network || precision(other, address) < own {
			continue
		}
		if theirs := (standing{other, l}); theirs.before(mine) && (!is || other.Name < name) {
			name, is = other.Name, true
		}
	}
	return name, is
}

// precision is how many bits of the address the operator named for the tenant; -1 for none.
func precision(t Tenant, address netip.Addr) int {
	bits := -1
	for _, prefix := range t.BackendCIDRs {
		if prefix.Contains(address) {
			bits = max(bits, prefix.Bits())
		}
	}
	return bits
}

// standing is what a tenant has to show for an address that the operator lets it have as much as another one.
type standing struct {
	tenant Tenant
	listing
}

func (s standing) before(o standing) bool {
	has := func(n int32) int32 { return min(n, 1) }
	return cmp.Or(cmp.Compare(has(o.objects), has(s.objects)), cmp.Compare(has(o.held), has(s.held)), cmp.Compare(s.tenant.Created, o.tenant.Created), cmp.Compare(s.tenant.Name, o.tenant.Name)) < 0
}

// ToHold are the addresses that the object's status.held has to name, sorted. Each belongs to the object's tenant, and another one may claim it: the
// operator has named it as precisely for that one, which might list it later, or that one lists it, for which the operator might name it later. What is on
// record stays so, whatever others list and do not list any more.
func (c *Claims) ToHold(a Addresses) []netip.Addr {
	tenant, known := c.tenants[a.Namespace]
	if !known {
		return nil
	}
	hold := map[netip.Addr]bool{}
	for address, onRecord := range c.objects[a.ObjectName] {
		own := precision(tenant, address)
		if own < 0 {
			continue
		}
		prefix, _ := address.Prefix(own)
		disputed := onRecord || len(c.listed[address]) > 1 || len(c.named[namedNetwork{tenant.Network, prefix}]) > 1
		if _, rival := c.Rival(tenant, address); !rival && disputed {
			hold[address] = true
		}
	}
	return slices.SortedFunc(maps.Keys(hold), netip.Addr.Compare)
}
