package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	nft "github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/nftables/elements"
	"kubelb.k8c.io/core/model"
)

// open takes over the tables that an earlier process left, or makes them. Tables of another layout are replaced in the
// same transaction that makes the new ones: known flows go on, and the host sends all records again. A table of another program is left alone.
func open(tables []*table, e *egress) error {
	c, err := elements.Connect()
	if err != nil {
		return err
	}
	all := []*nft.Table{e.nft}
	for _, t := range tables {
		all = append(all, t.nft)
	}
	var present []*nft.Table
	ours := 0
	for _, t := range all {
		found, known, err := find(c, t)
		if err != nil {
			return err
		}
		if foreign, err := foreignTable(c, t); err != nil {
			return err
		} else if foreign {
			return fmt.Errorf("the nftables table %q of family %s is not KubeLB's: %s", t.Name, familyName(t), foreignAdvice)
		}
		if found {
			present = append(present, t)
		}
		if known {
			ours++
		}
	}
	if ours == len(all) {
		return errors.Join(adopt(c, tables, e), setPorts(tables))
	}
	for _, t := range present {
		c.DelTable(t)
	}
	for _, t := range tables {
		t.state.anew = len(present) == 0
		if err := t.create(c); err != nil {
			return err
		}
	}
	if err := e.create(c); err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("create nftables tables (needs CAP_NET_ADMIN and a kernel with nf_tables, NAT and conntrack): %w", err)
	}
	return setPorts(tables)
}

func setPorts(tables []*table) error {
	for _, t := range tables {
		if err := t.setPorts(); err != nil {
			return err
		}
	}
	return nil
}

func adopt(c *nft.Conn, tables []*table, e *egress) error {
	for _, t := range tables {
		if err := t.adopt(c); err != nil {
			return fmt.Errorf("take over table %s %s: %w", t.layout.name, t.nft.Name, err)
		}
	}
	return e.adopt(c)
}

// find reports whether there is a table of that name, and whether it has our layout.
func find(c *nft.Conn, t *nft.Table) (present, ours bool, err error) {
	existing, err := c.ListTablesOfFamily(t.Family)
	if err != nil {
		return false, false, fmt.Errorf("list nftables tables (needs CAP_NET_ADMIN): %w", err)
	}
	for _, e := range existing {
		present = present || e.Name == t.Name
	}
	if !present {
		return false, false, nil
	}
	chains, err := c.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return true, false, err
	}
	for _, chain := range chains {
		ours = ours || chain.Table.Name == t.Name && chain.Name == versionChain
	}
	return true, ours, nil
}

// adopt reads the state back from the kernel. Rows are not read: their number is known, and the first change of a pool
// writes them anew.
func (t *table) adopt(c *nft.Conn) error {
	s := t.state
	if err := t.adoptTimeouts(c); err != nil {
		return err
	}
	type part struct {
		set  string
		each func(nft.SetElement) error
	}
	parts := []part{
		{mapRegistry, s.adoptPool},
		{mapEndpoints, s.adoptEndpoint},
		{mapPools, s.adoptFrontend},
		{mapPorts, s.withFrontend(func(f *frontendState, e nft.SetElement) { f.target = binary.BigEndian.Uint16(e.Val) })},
		{mapAffinity, s.withFrontend(func(f *frontendState, e nft.SetElement) {
			f.number = binary.NativeEndian.Uint32(e.Val)
			// Which of the chains serves it is not read back: an impossible value makes the next change write it again.
			f.timeout = unknownTimeout
			s.lastNumber = max(s.lastNumber, f.number)
		})},
		{mapRanges, s.withFrontendOr(s.adoptRanges)},
		{setTransparent, s.withFrontend(func(f *frontendState, _ nft.SetElement) { f.forwarding = model.Transparent })},
		{mapDirect, s.withFrontend(func(f *frontendState, _ nft.SetElement) { f.forwarding = model.Direct })},
		{mapNext, s.withFrontend(func(f *frontendState, e nft.SetElement) { f.handover.Next, _ = netip.AddrFromSlice(e.Val) })},
		{mapAsks, s.withFrontendOr(adoptAsks)},
		{leaveMap(s.family), s.adoptNumbers()},
	}
	for _, k := range limitKinds() {
		parts = append(parts, part{k.verdicts, s.withFrontendOr(k.adopt)})
	}
	for _, part := range parts {
		elements, err := c.GetSetElements(t.sets[part.set])
		if err != nil {
			return fmt.Errorf("read %s: %w", part.set, err)
		}
		for _, e := range elements {
			if err := part.each(e); err != nil {
				return fmt.Errorf("read %s: %w", part.set, err)
			}
		}
	}
	for key, f := range s.frontends {
		if f.limits[connectionLimit] > 0 {
			s.slow[key.VIP]++
		}
	}
	return nil
}

const unknownTimeout = time.Duration(1)

func (t *table) adoptTimeouts(c *nft.Conn) error {
	chains, err := c.ListChainsOfTableFamily(t.nft.Family)
	if err != nil {
		return err
	}
	for _, chain := range chains {
		if chain.Table.Name == t.nft.Name {
			t.state.limits.adopt(chain.Name)
		}
		seconds, found := strings.CutPrefix(chain.Name, "affinity-")
		if n, err := strconv.Atoi(seconds); found && err == nil && chain.Table.Name == t.nft.Name {
			t.state.timeouts[time.Duration(n)*time.Second] = true
		}
	}
	return nil
}

func (s *state) adoptPool(e nft.SetElement) error {
	digest, name, ok := strings.Cut(e.Comment, " ")
	if !ok {
		return fmt.Errorf("comment %q names no pool", e.Comment)
	}
	p := &poolState{mark: binary.NativeEndian.Uint32(e.Key), digest: model.Digest(digest), size: int(binary.NativeEndian.Uint32(e.Val)), endpoints: map[string]endpointState{}}
	s.pools[model.PoolID(name)], s.poolOf[p.mark] = p, model.PoolID(name)
	s.lastPool = max(s.lastPool, p.mark)
	return nil
}

func (s *state) adoptEndpoint(e nft.SetElement) error {
	number, id, ok := strings.Cut(e.Comment, " ")
	pool, err := strconv.ParseUint(number, 10, 32)
	if !ok || err != nil {
		return fmt.Errorf("comment %q names no pool and endpoint", e.Comment)
	}
	address, ok := netip.AddrFromSlice(e.Val)
	p := s.pools[s.poolOf[uint32(pool)]]
	if !ok || p == nil {
		return fmt.Errorf("endpoint %q: address %x of pool %d", id, e.Val, pool)
	}
	handle := binary.NativeEndian.Uint32(e.Key)
	p.endpoints[id] = endpointState{handle: handle, address: address, listed: true, keeps: true}
	s.lastHandle = max(s.lastHandle, handle)
	return nil
}

func (s *state) adoptFrontend(e nft.SetElement) error {
	key, err := decodeKey(e.Key)
	if err != nil {
		return err
	}
	s.frontends[key] = &frontendState{digest: model.Digest(e.Comment), pool: binary.NativeEndian.Uint32(e.Val)}
	s.vips[key.VIP]++
	return nil
}

// withFrontend finds the frontend that an element belongs to.
func (s *state) withFrontend(set func(*frontendState, nft.SetElement)) func(nft.SetElement) error {
	return s.withFrontendOr(func(f *frontendState, e nft.SetElement) error {
		set(f, e)
		return nil
	})
}

// withFrontendOr is withFrontend for what may fail.
func (s *state) withFrontendOr(set func(*frontendState, nft.SetElement) error) func(nft.SetElement) error {
	return func(e nft.SetElement) error {
		key, err := decodeKey(e.Key)
		if err != nil {
			return err
		}
		f := s.frontends[key]
		if f == nil {
			return fmt.Errorf("element of an unknown frontend %s", key)
		}
		return set(f, e)
	}
}

// chainOf reads the chain that an element leads to.
func chainOf(e nft.SetElement) (string, error) {
	verdict, err := netlink.UnmarshalAttributes(e.Val)
	if err != nil {
		return "", err
	}
	for _, a := range verdict {
		if a.Type == unix.NFTA_VERDICT_CHAIN {
			return strings.TrimRight(string(a.Data), "\x00"), nil
		}
	}
	return "", errors.New("a verdict leads to no chain")
}

// numberOfChain reads the number off the chain <name>-<number> that an element leads to.
func numberOfChain(e nft.SetElement, name string) (uint32, error) {
	chain, err := chainOf(e)
	if err != nil {
		return 0, err
	}
	text, found := strings.CutPrefix(chain, name+"-")
	number, err := strconv.ParseUint(text, 10, 32)
	if !found || err != nil {
		return 0, fmt.Errorf("chain %q is no %s-<number>", chain, name)
	}
	return uint32(number), nil
}

func adoptAsks(f *frontendState, e nft.SetElement) error {
	asks, err := numberOfChain(e, "ask")
	f.handover.Asks = uint8(asks)
	return err
}

// adoptNumbers finds the frontend by the comment.
func (s *state) adoptNumbers() func(nft.SetElement) error {
	var named map[string]*frontendState
	return func(e nft.SetElement) error {
		if named == nil {
			named = make(map[string]*frontendState, len(s.frontends))
			for key, f := range s.frontends {
				named[key.String()] = f
			}
		}
		f := named[e.Comment]
		if f == nil {
			return fmt.Errorf("comment %q names no frontend", e.Comment)
		}
		f.direct = binary.NativeEndian.Uint32(e.Key)
		s.lastDirect = max(s.lastDirect, f.direct)
		return nil
	}
}
