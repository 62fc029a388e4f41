package announce

import (
	"maps"
	"net/netip"
	"slices"

	"kubelb.k8c.io/manager/uplink"
)

// SetTenant sets the tenant of an address before it is announced. An empty tenant removes it. Each tenant has a share of the groups that a gateway may join
// at an interface.
func (l *Layer2) SetTenant(a netip.Addr, tenant string) {
	if !a.Is6() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if tenant == "" {
		delete(l.tenants, a)
		return
	}
	l.tenants[a] = tenant
}

// chosen returns the groups to join at a link that cannot join all of them. mu is held.
func (l *Layer2) chosen(joined func(netip.Addr) bool) map[netip.Addr]bool {
	of := map[string][]netip.Addr{}
	for a := range l.owned {
		if a.Is6() {
			tenant := l.tenants[a]
			of[tenant] = append(of[tenant], uplink.SolicitedNode(a))
		}
	}
	return fairShare(of, uplink.MaxGroups, joined)
}

// fairShare chooses at most limit groups: one of each tenant in turn. So a tenant with few groups gets all of them, however many others have. Joined groups
// of a tenant come first, so that its new groups replace none of them.
func fairShare(of map[string][]netip.Addr, limit int, joined func(netip.Addr) bool) map[netip.Addr]bool {
	for tenant, groups := range of {
		slices.SortFunc(groups, func(a, b netip.Addr) int {
			if is := joined(a); is != joined(b) {
				if is {
					return -1
				}
				return 1
			}
			return a.Compare(b)
		})
		of[tenant] = slices.Compact(groups)
	}
	chosen := map[netip.Addr]bool{}
	tenants := slices.Sorted(maps.Keys(of))
	for turn := 0; len(tenants) > 0; turn++ {
		tenants = slices.DeleteFunc(tenants, func(tenant string) bool { return turn >= len(of[tenant]) })
		for _, tenant := range tenants {
			if len(chosen) >= limit {
				return chosen
			}
			chosen[of[tenant][turn]] = true // another tenant may have the same group
		}
	}
	return chosen
}

// joinGroups joins and leaves the pending groups, and tries again to join those that failed before.
func (l *Layer2) joinGroups(k *link) {
	if k.sockets == nil {
		return // all groups become pending with new sockets
	}
	groups := k.sockets.groups
	l.mu.Lock()
	var left []netip.Addr
	wanted := maps.Clone(k.unjoined)
	for group := range k.pending {
		if l.groups[group] > 0 {
			wanted[group] = true
			continue
		}
		left = append(left, group)
		delete(wanted, group)
	}
	clear(k.pending)
	unjoined := map[netip.Addr]bool{}
	var problem error
	if len(l.groups) > uplink.MaxGroups {
		chosen := l.chosen(groups.Has)
		for group := range l.groups {
			switch {
			case chosen[group]:
				wanted[group] = true
			default:
				left = append(left, group)
				delete(wanted, group)
				unjoined[group], problem = true, uplink.ErrTooManyGroups
			}
		}
	}
	l.mu.Unlock()
	for _, group := range left {
		groups.Leave(group)
	}
	for group := range wanted {
		if err := groups.Join(group); err != nil {
			unjoined[group], problem = true, err
		}
	}
	l.setUnjoined(k, unjoined, problem)
}
