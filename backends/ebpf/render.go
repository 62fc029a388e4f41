package ebpf

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"kubelb.k8c.io/core/model"
)

// Render returns the content of the maps for the snapshot, one element on each line. Source addresses, which depend on the routes of the host, are shown as
// unspecified.
func (b *Backend) Render(_ context.Context, snapshot model.Snapshot) (string, error) {
	s := newState()
	var text strings.Builder
	print := func(writes []write) {
		for _, w := range writes {
			if !isRecordMap(w.mapName) {
				fmt.Fprintf(&text, "%s %s\n", w.mapName, w.text())
			}
		}
	}
	execute := func(p *plan, err error) error {
		if err != nil {
			return err
		}
		print(p.writes)
		p.commit()
		if p.roles != nil {
			vips := &plan{}
			s.planRoles(vips, p.roles)
			s.commitRoles(p.roles)
			print(vips.writes)
		}
		return nil
	}
	unspecified := func(to netip.Addr) (netip.Addr, error) {
		if to.Is4() {
			return netip.IPv4Unspecified(), nil
		}
		return netip.IPv6Unspecified(), nil
	}
	snapshot = snapshot.Canonical()
	for _, p := range snapshot.Pools {
		if err := execute(s.planPool(p, unspecified)); err != nil {
			return "", fmt.Errorf("pool %s: %w", p.ID, err)
		}
	}
	for _, f := range snapshot.Frontends {
		if err := execute(s.planFrontend(f)); err != nil {
			return "", fmt.Errorf("frontend %s: %w", f.FrontendKey, err)
		}
	}
	return text.String(), nil
}

// isRecordMap tells whether only the plugin reads the map.
func isRecordMap(table string) bool {
	return table == mapNumbers || table == mapPoolRecords || table == mapEndpointRecords || table == mapServiceRecords
}

// text returns key and value of an element.
func (w write) text() string {
	switch value := w.value.(type) {
	case []uint32:
		shares := map[uint32]int{}
		for _, handle := range value {
			shares[handle]++
		}
		return fmt.Sprintf("%d: %d rows, of endpoints %v", w.key, len(value), shares)
	case endpoint:
		return fmt.Sprintf("%d: address %s source %s state %d", w.key, value.Address, value.Source, value.State)
	case service:
		text := fmt.Sprintf("%d: pool %d target %s %s affinity %ds checks %d", w.key, value.Pool, value.TargetPort, model.Forwarding(value.Forwarding), value.Affinity, value.Checks)
		if value.Idle > 0 {
			text += fmt.Sprintf(" idle %ds", value.Idle)
		}
		return text
	case limit:
		return fmt.Sprintf("%d: %d flows at once, %d in a second", w.key, value.MaxFlows, value.MaxNewPerSecond)
	}
	return fmt.Sprintf("%v: %v", w.key, w.value)
}

func (a address) String() string {
	if four := netip.AddrFrom4([4]byte(a[12:])); netip.AddrFrom16(a) == netip.IPv6Unspecified() || [12]byte(a[:12]) == [12]byte{} {
		return four.String()
	}
	return netip.AddrFrom16(a).String()
}

func (p port) String() string { return fmt.Sprint(p.number()) }

func (k rangeKey) String() string {
	return fmt.Sprintf("service %d from %s, %d bits", k.Service, k.Source, k.Length-32)
}

func (k memberKey) String() string { return fmt.Sprintf("pool %d at %s", k.Pool, k.Endpoint) }

func (k addressKey) String() string { return k.Address.String() }

func (k frontendKey) String() string {
	return fmt.Sprintf("%s %s port %s", model.Protocol(k.Protocol), k.VIP, k.Port)
}
