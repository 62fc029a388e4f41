package announce

import (
	"maps"
	"net/netip"
	"slices"

	"kubelb.k8c.io/manager/uplink"
)

// SetTenant tells whose an address is, before it is announced; nobody's if the tenant is empty. Of the groups that a gateway may join at an interface each
// tenant has its share.
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

// chosen are the groups to join at a link where not all of them can be; mu is held.
func (l *Layer2) chosen(joined func(netip.Addr) bool) map[netip.Addr]bool {
	of := map[string][]netip.Addr{}
	for a := range l.owned {
		if a.Is6() {
			tenant := l.tenants[a]
			of[tenant] = append(of[tenant], uplink.SolicitedNode(a))
		}
	}
	return inTurns(of, uplink.MostGroups, joined)
}

// inTurns chooses groups until there are so many: one of each tenant, and then again. Who has few gets all of them, whatever others have. Of one tenant those
// come first that are joined, so that a new one takes no other's place.
func inTurns(of map[string][]netip.Addr, most int, joined func(netip.Addr) bool) map[netip.Addr]bool {
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
			if len(chosen) >= most {
				return chosen
			}
			chosen[of[tenant][turn]] = true // another tenant may have it, too
		}
	}
	return chosen
}

// joinGroups joins and leaves the groups that were noted, and tries those again that could not be joined.
func (l *Layer2) joinGroups(k *link) {
	if k.sockets == nil {
		return // all are noted when there are sockets
	}
	groups := k.sockets.groups
	l.mu.Lock()
	var left []netip.Addr
	wanted := maps.Clone(k.unjoined)
	for group := range k.noted {
		if l.asked[group] > 0 {
			wanted[group] = true
			continue
		}
		left = append(left, group)
		delete(wanted, group)
	}
	clear(k.noted)
	unjoined := map[netip.Addr]bool{}
	var problem error
	if len(l.asked) > uplink.MostGroups {
		chosen := l.chosen(groups.Has)
		for group := range l.asked {
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
	l.noteUnjoined(k, unjoined, problem)
}
