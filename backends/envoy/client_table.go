package envoy

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"slices"
	"time"
)

// clientTable stores the endpoint of each client, up to its capacity. Each tenant with clients has an equal share of the slots, and more while
// other tenants do not need theirs. A file has a copy of each slot, so that the next process has the clients. The file is not synced: it survives
// the process, and need not survive the host.
type clientTable struct {
	capacity  int
	entries   []clientEntry // by slot
	slots     map[clientKey]int32
	freeSlots []int32
	tenants   map[tenantID]*clientList
	// file is nil if there is none; openErr is why.
	file    *clientFile
	openErr error
}

// clientKey is a client address of a frontend.
type clientKey struct {
	frontend frontendID
	address  [16]byte
}

// frontendID identifies a frontend of one tenant. It is never 0. Its first bits are the tenant's.
type frontendID uint64

// tenantID identifies a tenant. It has 24 bits, so that two tenants may have the same one. They have one share together then.
type tenantID uint32

// frontendBits is the number of bits of a frontendID that identify a frontend of the tenant.
const frontendBits = 40

func (f frontendID) tenant() tenantID { return tenantID(f >> frontendBits) }

// clientList has the clients of a tenant, sorted by when they were seen.
type clientList struct {
	// oldest and newest are the slots of the least and the most recently seen client, or noSlot.
	oldest, newest int32
	length         int
}

// clientEntry is the content of a slot. In a free slot the frontend is 0.
type clientEntry struct {
	clientKey
	endpoint     [16]byte
	seen         int64 // nanoseconds since 1970
	older, newer int32 // slots: the entries are a list, sorted by seen
}

// noSlot is the end of the list.
const noSlot = -1

// The file begins with clientsFormat. Then it has for each slot: frontend, client address, endpoint, seen.
const (
	clientsFormat = "clients of the Envoy backend, format 1\n"
	entrySize     = 8 + 16 + 16 + 8 // bytes
)

func newClientTable(capacity int) *clientTable {
	return &clientTable{capacity: capacity, slots: map[clientKey]int32{}, tenants: map[tenantID]*clientList{}}
}

// openClientTable reads the clients of known frontends from the file. If the file cannot be read or opened, the table works without it.
func openClientTable(path string, capacity int, known func(frontendID) bool) *clientTable {
	c := newClientTable(capacity)
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.openErr = err
		return c
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		c.openErr = err
		return c
	}
	if saved, ok := bytes.CutPrefix(content, []byte(clientsFormat)); ok {
		c.restore(saved, known)
	} else if err := resetFile(f); err != nil {
		c.openErr = errors.Join(err, f.Close())
		return c
	}
	c.file = &clientFile{path: path, file: f}
	c.file.start()
	return c
}

// resetFile replaces the content by that of an empty table.
func resetFile(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(clientsFormat), 0)
	return err
}

// restore reads saved entries. A damaged entry may name a wrong endpoint: it is used only if it is an endpoint of the frontend.
func (c *clientTable) restore(saved []byte, known func(frontendID) bool) {
	var used []int32
	for slot := int32(0); len(saved) >= entrySize && int(slot) < c.capacity; slot++ {
		e := decodeEntry(saved[:entrySize])
		saved = saved[entrySize:]
		if _, duplicate := c.slots[e.clientKey]; duplicate || e.frontend == 0 || !known(e.frontend) {
			c.entries, c.freeSlots = append(c.entries, clientEntry{}), append(c.freeSlots, slot)
			continue
		}
		c.entries, used = append(c.entries, e), append(used, slot)
		c.slots[e.clientKey] = slot
	}
	slices.SortFunc(used, func(a, b int32) int { return cmp.Compare(c.entries[a].seen, c.entries[b].seen) })
	for _, slot := range used {
		c.link(slot)
	}
}

// find returns the client's endpoint if the client was seen at since or later.
func (c *clientTable) find(key clientKey, since time.Time) (endpoint [16]byte, found bool) {
	slot, known := c.slots[key]
	if !known || c.entries[slot].seen < since.UnixNano() {
		return endpoint, false
	}
	return c.entries[slot].endpoint, true
}

// put stores the client's endpoint and that the client is seen now. If the table is full, it evicts another client.
func (c *clientTable) put(key clientKey, endpoint [16]byte, now time.Time) {
	slot, known := c.slots[key]
	switch {
	case known:
		c.unlink(slot)
	case len(c.freeSlots) > 0:
		slot = c.freeSlots[len(c.freeSlots)-1]
		c.freeSlots = c.freeSlots[:len(c.freeSlots)-1]
	case len(c.entries) < c.capacity:
		slot = int32(len(c.entries))
		c.entries = append(c.entries, clientEntry{})
	default:
		slot = c.slotToEvict(key.frontend.tenant())
		delete(c.slots, c.entries[slot].clientKey)
		c.unlink(slot)
	}
	c.slots[key] = slot
	c.entries[slot] = clientEntry{clientKey: key, endpoint: endpoint, seen: now.UnixNano()}
	c.link(slot)
	c.write(slot)
}

// slotToEvict returns the slot of the client to evict for a new client of the tenant: the least recently seen client of the tenant itself if the
// tenant has its share, and otherwise of the tenant with the most clients, which has more than its share.
func (c *clientTable) slotToEvict(newcomer tenantID) int32 {
	list, tenants := c.tenants[newcomer], len(c.tenants)
	if list == nil {
		list, tenants = &clientList{}, tenants+1
	}
	if list.length*tenants < c.capacity {
		for _, other := range c.tenants {
			if other.length > list.length {
				list = other
			}
		}
	}
	return list.oldest
}

// deleteFrontends deletes all clients of the frontends.
func (c *clientTable) deleteFrontends(frontends map[frontendID]bool) {
	for i := range c.entries {
		if slot := int32(i); frontends[c.entries[i].frontend] {
			delete(c.slots, c.entries[i].clientKey)
			c.unlink(slot)
			c.entries[i] = clientEntry{}
			c.freeSlots = append(c.freeSlots, slot)
			c.write(slot)
		}
	}
}

// link adds a slot to its tenant's list as the newest.
func (c *clientTable) link(slot int32) {
	e := &c.entries[slot]
	list := c.tenants[e.frontend.tenant()]
	if list == nil {
		list = &clientList{oldest: noSlot, newest: noSlot}
		c.tenants[e.frontend.tenant()] = list
	}
	e.older, e.newer = list.newest, noSlot
	if list.newest == noSlot {
		list.oldest = slot
	} else {
		c.entries[list.newest].newer = slot
	}
	list.newest = slot
	list.length++
}

// unlink removes a slot from its tenant's list.
func (c *clientTable) unlink(slot int32) {
	e := c.entries[slot]
	list := c.tenants[e.frontend.tenant()]
	if e.older == noSlot {
		list.oldest = e.newer
	} else {
		c.entries[e.older].newer = e.newer
	}
	if e.newer == noSlot {
		list.newest = e.older
	} else {
		c.entries[e.newer].older = e.older
	}
	if list.length--; list.length == 0 {
		delete(c.tenants, e.frontend.tenant())
	}
}

// write queues a slot to be written to the file.
func (c *clientTable) write(slot int32) {
	if c.file != nil {
		c.file.put(slot, c.entries[slot])
	}
}

// problem returns why the file is incomplete, nil if it is complete or soon will be.
func (c *clientTable) problem() error {
	if c.file == nil {
		return c.openErr
	}
	return c.file.problem(time.Now())
}

func (e clientEntry) append(to []byte) []byte {
	out := binary.BigEndian.AppendUint64(to, uint64(e.frontend))
	out = append(append(out, e.address[:]...), e.endpoint[:]...)
	return binary.BigEndian.AppendUint64(out, uint64(e.seen))
}

func decodeEntry(b []byte) clientEntry {
	e := clientEntry{clientKey: clientKey{frontend: frontendID(binary.BigEndian.Uint64(b))}, seen: int64(binary.BigEndian.Uint64(b[40:]))}
	copy(e.address[:], b[8:])
	copy(e.endpoint[:], b[24:])
	return e
}

func (c *clientTable) close() error {
	if c.file == nil {
		return nil
	}
	return c.file.close()
}
