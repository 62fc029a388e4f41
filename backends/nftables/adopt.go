package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	nft "github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane/preflight"
	"kubelb.k8c.io/backends/nftables/elements"
	"kubelb.k8c.io/core/maglev"
	"kubelb.k8c.io/core/model"
)

// open adopts the tables that an earlier process left, or creates them. Tables of another layout, and tables that cannot be read, are replaced
// in the transaction that creates the new ones: known flows go on, and the manager sends all records again. unreadable is the reason if the
// tables could not be read. A table of another program is left alone, and is an error.
func open(tables []*table, e *egress) (unreadable, err error) {
	c, err := elements.Connect()
	if err != nil {
		return nil, err
	}
	all := []*nft.Table{e.nft}
	for _, t := range tables {
		all = append(all, t.nft)
	}
	var present []*nft.Table
	current := 0
	for _, t := range all {
		found, known, err := find(c, t)
		if err != nil {
			return nil, err
		}
		if foreign, err := foreignTable(c, t); err != nil {
			return nil, err
		} else if foreign {
			name := familyName(t) + " " + t.Name
			return nil, fmt.Errorf("the nftables table %s is not KubeLB's: delete it (%s), %s", name, preflight.DeleteTable(name), otherNames)
		}
		if found {
			present = append(present, t)
		}
		if known {
			current++
		}
	}
	if current == len(all) {
		unreadable = adopt(c, tables, e)
		if !errors.Is(unreadable, errUnreadable) {
			return nil, unreadable
		}
		for _, t := range tables {
			t.state = newState(t.layout.family)
		}
		e.interfaces = map[string]bool{}
	}
	for _, t := range present {
		c.DelTable(t)
	}
	for _, t := range tables {
		t.state.created = len(present) == 0
		if err := t.create(c); err != nil {
			return nil, err
		}
	}
	if err := e.create(c); err != nil {
		return nil, err
	}
	if err := c.Flush(); err != nil {
		return nil, fmt.Errorf("create nftables tables (needs CAP_NET_ADMIN and a kernel with nf_tables, NAT and conntrack): %w", err)
	}
	return unreadable, nil
}

func adopt(c *nft.Conn, tables []*table, e *egress) error {
	for _, t := range tables {
		if err := t.adopt(c); err != nil {
			return fmt.Errorf("adopt table %s %s: %w", t.layout.name, t.nft.Name, err)
		}
	}
	return e.adopt(c)
}

// find reports whether there is a table of that name, and whether it has the current layout.
func find(c *nft.Conn, t *nft.Table) (present, current bool, err error) {
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
		current = current || chain.Table.Name == t.Name && chain.Name == versionChain
	}
	return true, current, nil
}

// errUnreadable is the error for tables with elements that this version has not written.
var errUnreadable = errors.New("the table is not readable")

// adopt reads the state from the kernel. It does not read rows: their number is known, and the first change of a pool
// writes all of them.
func (t *table) adopt(c *nft.Conn) error {
	if err := t.adoptTimeouts(c); err != nil {
		return err
	}
	t.state.staleClients = true // an earlier process may have left stale clients
	return t.state.adopt(func(set string) ([]nft.SetElement, error) { return c.GetSetElements(t.sets[set]) })
}

// adopt reads the state from sets and maps.
func (s *state) adopt(read func(set string) ([]nft.SetElement, error)) error {
	type part struct {
		set  string
		each func(nft.SetElement) error
	}
	parts := []part{
		{mapRegistry, s.adoptPool},
		{mapEndpoints, s.adoptEndpoint},
		{mapNodes, s.adoptNodes()},
		{mapPools, s.adoptFrontend},
		{mapPorts, s.withFrontend(adoptPort)},
		{mapAffinity, s.withFrontend(s.adoptAffinity)},
		{mapRanges, s.withFrontend(s.adoptRanges)},
		{setTransparent, s.withFrontend(func(f *frontendState, _ nft.SetElement) error { return f.setForwarding(model.Transparent) })},
		{mapDirect, s.withFrontend(func(f *frontendState, _ nft.SetElement) error { return f.setForwarding(model.Direct) })},
		{mapNextGateway, s.withFrontend(s.adoptNext)},
		{mapRedirects, s.withFrontend(adoptAsks)},
		{egressVIPMap(s.family), s.adoptNumbers()},
	}
	for _, k := range limitKinds() {
		parts = append(parts, part{k.verdicts, s.withFrontend(k.adopt)})
	}
	for _, part := range parts {
		elements, err := read(part.set)
		if err != nil {
			return fmt.Errorf("read %s: %w", part.set, err)
		}
		for _, e := range elements {
			if err := part.each(e); err != nil {
				return fmt.Errorf("read %s: %w: %w", part.set, err, errUnreadable)
			}
		}
	}
	for id, p := range s.pools {
		if err := s.adoptUsers(p); err != nil {
			return fmt.Errorf("read pool %s: %w: %w", id, err, errUnreadable)
		}
	}
	for key, f := range s.frontends {
		if err := f.validate(); err != nil {
			return fmt.Errorf("read frontend %s: %w: %w", key, err, errUnreadable)
		}
		if f.limits[connectionLimit] > 0 {
			s.slow[key.VIP]++
		}
	}
	return nil
}

// validate returns an error if an element of the frontend is missing: a plan to delete the frontend would fail.
func (f *frontendState) validate() error {
	switch h := f.redirect; {
	case f.target == 0:
		return errors.New("it has no target port")
	case f.forwarding == model.Direct && f.direct == 0:
		return errors.New("it is direct and has no number")
	case h.Next.IsValid() != (h.Limit > 0):
		return errors.New("it has only one of the next gateway and the number of redirects")
	}
	return nil
}

func (f *frontendState) setForwarding(mode model.Forwarding) error {
	if f.forwarding != model.NAT {
		return fmt.Errorf("its forwarding is both %s and %s", f.forwarding, mode)
	}
	f.forwarding = mode
	return nil
}

// parseNumber parses a number in a key or a value.
func parseNumber(b []byte, from, to uint32) (uint32, error) {
	if len(b) != 4 {
		return 0, fmt.Errorf("number of %d bytes", len(b))
	}
	n := binary.NativeEndian.Uint32(b)
	if n < from || n > to {
		return 0, fmt.Errorf("number %d is not between %d and %d", n, from, to)
	}
	return n, nil
}

// address parses an address of the family.
func (s *state) address(b []byte) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(b)
	if !ok || a.Is4() != s.family.v4 || a.Is4In6() || a.IsUnspecified() {
		return netip.Addr{}, fmt.Errorf("%x is not an address of the family", b)
	}
	return a, nil
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
		if n, err := strconv.Atoi(seconds); found && err == nil && n > 0 && n <= int(model.MaxAffinity/time.Second) && chain.Table.Name == t.nft.Name {
			t.state.timeouts[time.Duration(n)*time.Second] = true
		}
	}
	return nil
}

func (s *state) adoptPool(e nft.SetElement) error {
	digest, name, ok := strings.Cut(e.Comment, " ")
	id := model.PoolID(name)
	if !ok || name == "" || !utf8.ValidString(name) || s.pools[id] != nil {
		return fmt.Errorf("comment %q names no pool, or a pool that exists twice", e.Comment)
	}
	pool, err := parseNumber(e.Key, 1, handleBit-1)
	if err != nil {
		return fmt.Errorf("pool %s: %w", id, err)
	}
	size, err := parseNumber(e.Val, 0, math.MaxInt32)
	if err != nil {
		return fmt.Errorf("pool %s: %w", id, err)
	}
	if size > 0 && !slices.Contains(maglev.Sizes(), int(size)) {
		return fmt.Errorf("pool %s: no table has %d rows", id, size)
	}
	s.pools[id], s.poolOf[pool] = &poolState{mark: pool, digest: model.ParseDigest(digest), size: int(size), endpoints: map[string]endpointState{}}, id
	s.lastPool = max(s.lastPool, pool)
	return nil
}

func (s *state) adoptEndpoint(e nft.SetElement) error {
	text, id, ok := strings.Cut(e.Comment, " ")
	pool, err := strconv.ParseUint(text, 10, 32)
	p := s.pools[s.poolOf[uint32(pool)]]
	if !ok || err != nil || p == nil || !utf8.ValidString(id) {
		return fmt.Errorf("comment %q does not name a known pool and an endpoint", e.Comment)
	}
	if _, twice := p.endpoints[id]; twice {
		return fmt.Errorf("endpoint %q of pool %d exists twice", id, pool)
	}
	address, err := s.address(e.Val)
	if err != nil {
		return fmt.Errorf("endpoint %q of pool %d: %w", id, pool, err)
	}
	handle, err := parseNumber(e.Key, handleBit+1, math.MaxUint32-1)
	if err != nil {
		return fmt.Errorf("endpoint %q of pool %d: %w", id, pool, err)
	}
	p.endpoints[id] = endpointState{handle: handle, address: address, listed: true, keepsFlows: true}
	s.lastHandle = max(s.lastHandle, handle)
	return nil
}

// adoptNodes returns a function that sets the node of the endpoint with an element's handle.
func (s *state) adoptNodes() func(nft.SetElement) error {
	type place struct {
		pool *poolState
		id   string
	}
	var places map[uint32]place
	return func(e nft.SetElement) error {
		if places == nil {
			places = map[uint32]place{}
			for _, p := range s.pools {
				for id, e := range p.endpoints {
					places[e.handle] = place{p, id}
				}
			}
		}
		handle, err := parseNumber(e.Key, handleBit+1, math.MaxUint32-1)
		if err != nil {
			return err
		}
		at, found := places[handle]
		if !found {
			return fmt.Errorf("handle %d belongs to no endpoint", handle)
		}
		endpoint := at.pool.endpoints[at.id]
		if endpoint.node, err = parseNumber(e.Val, 1, handleBit-1); err != nil {
			return fmt.Errorf("endpoint %q: %w", at.id, err)
		}
		at.pool.endpoints[at.id] = endpoint
		s.lastNode = max(s.lastNode, endpoint.node)
		return nil
	}
}

// adoptUsers counts the nodes of the pool's endpoints. Each endpoint must have one node.
func (s *state) adoptUsers(p *poolState) error {
	for id, e := range p.endpoints {
		key := nodeKey{id, e.address}
		if known, found := s.nodes[key]; e.node == 0 || found && known.number != e.node {
			return fmt.Errorf("endpoint %q has node %d, and node %d in another pool", id, e.node, known.number)
		}
	}
	s.useNodes(&poolState{}, p)
	return nil
}

func (s *state) adoptFrontend(e nft.SetElement) error {
	key, err := decodeKey(e.Key)
	if err != nil {
		return err
	}
	if _, err := s.address(key.VIP.AsSlice()); err != nil || key.Protocol != model.TCP && key.Protocol != model.UDP {
		return fmt.Errorf("frontend %s is not of the family", key)
	}
	pool, err := parseNumber(e.Val, 1, handleBit-1)
	if err != nil {
		return fmt.Errorf("frontend %s: %w", key, err)
	}
	f := &frontendState{digest: model.ParseDigest(e.Comment), pool: pool}
	if _, known := s.poolOf[pool]; !known {
		f.digest = ""
	}
	s.frontends[key] = f
	s.vips[key.VIP]++
	return nil
}

// withFrontend returns a function that calls set for the frontend of an element.
func (s *state) withFrontend(set func(*frontendState, nft.SetElement) error) func(nft.SetElement) error {
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

func adoptPort(f *frontendState, e nft.SetElement) error {
	if len(e.Val) != 2 {
		return fmt.Errorf("target port of %d bytes", len(e.Val))
	}
	f.target = binary.BigEndian.Uint16(e.Val)
	return nil
}

func (s *state) adoptAffinity(f *frontendState, e nft.SetElement) (err error) {
	f.number, err = parseNumber(e.Val, 1, math.MaxInt32)
	// The timeout is not read: with an impossible value the next change writes it again.
	f.timeout = unknownTimeout
	s.lastNumber = max(s.lastNumber, f.number)
	return err
}

func (s *state) adoptNext(f *frontendState, e nft.SetElement) (err error) {
	f.redirect.Next, err = s.address(e.Val)
	return err
}

// chainOf returns the chain of an element's verdict.
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
	return "", errors.New("a verdict has no chain")
}

// numberOfChain parses the number of the chain <name>-<number> of an element's verdict.
func numberOfChain(e nft.SetElement, name string) (uint32, error) {
	chain, err := chainOf(e)
	if err != nil {
		return 0, err
	}
	text, found := strings.CutPrefix(chain, name+"-")
	number, err := strconv.ParseUint(text, 10, 32)
	if !found || err != nil {
		return 0, fmt.Errorf("chain %q is not %s-<number>", chain, name)
	}
	return uint32(number), nil
}

func adoptAsks(f *frontendState, e nft.SetElement) error {
	limit, err := numberOfChain(e, "ask")
	if err == nil && (limit < 1 || limit > model.MaxRedirects) {
		err = fmt.Errorf("it redirects %d times, not 1 to %d", limit, model.MaxRedirects)
	}
	f.redirect.Limit = uint8(min(limit, model.MaxRedirects))
	return err
}

// adoptNumbers returns a function that sets the number of the direct frontend in an element's comment.
func (s *state) adoptNumbers() func(nft.SetElement) error {
	var byName map[string]*frontendState
	return func(e nft.SetElement) error {
		if byName == nil {
			byName = make(map[string]*frontendState, len(s.frontends))
			for key, f := range s.frontends {
				byName[key.String()] = f
			}
		}
		f := byName[e.Comment]
		if f == nil {
			return fmt.Errorf("comment %q names no frontend", e.Comment)
		}
		number, err := parseNumber(e.Key, directNumbers+1, directNumbers|^uint32(directMask)-1)
		if err != nil {
			return fmt.Errorf("frontend %s: %w", e.Comment, err)
		}
		if f.direct != 0 {
			return fmt.Errorf("frontend %s has two numbers", e.Comment)
		}
		f.direct = number
		s.lastDirect = max(s.lastDirect, f.direct)
		return nil
	}
}
