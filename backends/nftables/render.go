package nftables

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"

	"kubelb.k8c.io/backends/nftables/elements"
	"kubelb.k8c.io/core/model"
)

// Render returns the tables with their elements in nft's syntax, as input for nft -f. It leaves out what depends on the host: the flowtables, and a
// chain for each interface to an endpoint of a direct frontend.
func (b *Backend) Render(_ context.Context, snapshot model.Snapshot) (string, error) {
	fresh := &Backend{egress: newEgress("kubelb")}
	for _, f := range families {
		fresh.tables = append(fresh.tables, newTable(f, fresh.egress))
	}
	snapshot = snapshot.Canonical()
	edits := map[*table][]edit{}
	lists := map[*table]rangeChanges{}
	for _, t := range fresh.tables {
		lists[t] = rangeChanges{}
	}
	commit := func(record string, plans []planned, err error) error {
		if err != nil {
			return fmt.Errorf("%s: %w", record, err)
		}
		for _, p := range plans {
			p.commit()
			edits[p.table] = append(edits[p.table], p.edits...)
			if p.timeout != 0 {
				p.table.state.timeouts[p.timeout] = true
			}
			p.table.state.limits.merge(p.table.state.limits.missing(p.limits))
			lists[p.table].add(p.ranges)
			edits[p.table] = slices.Concat(edits[p.table], membership(setVIPs, p.table.state.vips, p.vips), membership(setSlowPath, p.table.state.slow, p.slow))
			tally(p.table.state.vips, p.vips)
			tally(p.table.state.slow, p.slow)
		}
		return nil
	}
	for _, p := range snapshot.Pools {
		plans, err := fresh.planPool(p)
		if err := commit("pool "+string(p.ID), plans, err); err != nil {
			return "", err
		}
	}
	for _, f := range snapshot.Frontends {
		plans, err := fresh.planFrontend(f)
		if err := commit("frontend "+f.FrontendKey.String(), plans, err); err != nil {
			return "", err
		}
	}
	var text strings.Builder
	leaving := map[string][]string{}
	for _, t := range fresh.tables {
		t.write(&text, edits[t], lists[t])
		name := egressVIPMap(t.layout.family)
		for _, e := range edits[t] {
			if e.set == name {
				leaving[name] = append(leaving[name], t.element(keySet{set: *t.sets[name]}, e.element))
			}
		}
	}
	fresh.egress.write(&text, leaving)
	return text.String(), nil
}

// write renders one table.
func (t *table) write(w *strings.Builder, edits []edit, lists rangeChanges) {
	fmt.Fprintf(w, "table %s %s {\n", t.layout.name, t.nft.Name)
	sets := t.layout.sets()
	for _, k := range limitKinds() {
		for _, number := range slices.Sorted(maps.Keys(t.state.limits[k.name])) {
			sets = append(sets, t.layout.limitSet(k, number))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(lists)) {
		sets = append(sets, t.layout.rangesSet(lists[name].list))
	}
	for _, s := range sets {
		kind := "set"
		if s.set.IsMap {
			kind = "map"
		}
		fmt.Fprintf(w, "\t%s %s {\n", kind, s.name)
		for _, part := range strings.Split(s.text, "; ") {
			fmt.Fprintf(w, "\t\t%s\n", part)
		}
		var lines []string
		for _, e := range edits {
			if e.set == s.name {
				lines = append(lines, t.element(s, e.element))
			}
		}
		if change, found := lists[s.name]; found {
			lines = append(lines, intervals(change.list)...)
		}
		if len(lines) > 0 {
			fmt.Fprintf(w, "\t\telements = { %s }\n", joinElements(lines, s.name))
		}
		w.WriteString("\t}\n\n")
	}
	for _, name := range counters() {
		fmt.Fprintf(w, "\tcounter %s {\n\t}\n\n", name)
	}
	fmt.Fprintf(w, "\tchain %s {\n\t}\n\n", versionChain)
	layout := t.layout
	layout.protocols = func() *nft.Set { return &nft.Set{} }
	chains := layout.chains()
	for _, timeout := range slices.Sorted(maps.Keys(t.state.timeouts)) {
		if timeout != longestTimeout {
			chains = append(chains, layout.affinityChains(timeout)...)
		}
	}
	for _, k := range limitKinds() {
		for _, number := range slices.Sorted(maps.Keys(t.state.limits[k.name])) {
			chains = append(chains, layout.limitChain(k, number))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(lists)) {
		chains = append(chains, layout.rangesChain(name))
	}
	for _, c := range chains {
		c.write(w)
	}
	w.WriteString("}\n")
}

// joinElements writes one element a line, as nft does, and several rows of the Maglev tables a line, since there are hundreds.
func joinElements(elements []string, set string) string {
	const nextLine = ",\n\t\t\t     "
	if set != mapRows {
		return strings.Join(elements, nextLine)
	}
	var lines []string
	for line := range slices.Chunk(elements, 6) {
		lines = append(lines, strings.Join(line, ", "))
	}
	return strings.Join(lines, nextLine)
}

func (c chain) write(w *strings.Builder) {
	fmt.Fprintf(w, "\tchain %s {\n", c.name)
	if c.text != "" {
		fmt.Fprintf(w, "\t\t%s\n", c.text)
	}
	for _, rule := range c.rules {
		parts := make([]string, len(rule))
		for i, s := range rule {
			parts[i] = s.text
		}
		fmt.Fprintf(w, "\t\t%s\n", strings.Join(parts, " "))
	}
	w.WriteString("\t}\n\n")
}

// element renders an element as nft writes it.
func (t *table) element(s keySet, e nft.SetElement) string {
	key := t.value(s.set.KeyType.Name, e.Key)
	if s.set.Counter {
		key += " counter packets 0 bytes 0"
	}
	if e.Comment != "" {
		key += fmt.Sprintf(" comment %q", e.Comment)
	}
	switch {
	case e.VerdictData != nil:
		verb := "goto"
		if e.VerdictData.Kind == expr.VerdictJump {
			verb = "jump"
		}
		return key + " : " + verb + " " + e.VerdictData.Chain
	case e.Val != nil:
		return key + " : " + t.value(s.set.DataType.Name, e.Val)
	}
	return key
}

// intervals renders the intervals of a list as nft does: as a network if possible.
func intervals(list elements.Ranges) []string {
	var out []string
	for _, i := range list.Intervals {
		switch network, ok := elements.Network(i); {
		case i.First == i.Last:
			out = append(out, i.First.String())
		case ok:
			out = append(out, network.String())
		default:
			out = append(out, i.String())
		}
	}
	return out
}

// value renders bytes of a type, or of several types joined by dots.
func (t *table) value(typeNames string, b []byte) string {
	var parts []string
	for _, name := range strings.Split(typeNames, " . ") {
		switch name {
		case nft.TypeMark.Name:
			parts = append(parts, fmt.Sprintf("0x%08x", binary.NativeEndian.Uint32(b)))
			b = b[4:]
		case nft.TypeInetProto.Name:
			parts = append(parts, strings.ToLower(model.Protocol(b[0]).String()))
			b = b[4:]
		case nft.TypeInetService.Name:
			parts = append(parts, fmt.Sprint(binary.BigEndian.Uint16(b)))
			b = b[min(4, len(b)):]
		default:
			n := int(t.layout.size)
			address, _ := netip.AddrFromSlice(b[:n])
			parts = append(parts, address.String())
			b = b[n:]
		}
	}
	return strings.Join(parts, " . ")
}
