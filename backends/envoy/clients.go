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

// clients remembers which endpoint the clients of frontends with affinity have, those that were seen last. It does so in a file as well,
// where each has a place, so that a new process remembers them: what is written survives the process, and need not survive the host.
type clients struct {
	most    int
	entries []entry // by place
	places  map[client]int32
	free    []int32
	// oldest and newest are the places of those seen longest ago and last, or nowhere.
	oldest, newest int32
	file           *os.File
	// unkept is why the file does not have all that is remembered, nil if it has; retryAt is when all of it is written again then.
	unkept  error
	retryAt time.Time
}

// client is an address that has come to a frontend.
type client struct {
	frontend identity
	address  [16]byte
}

// identity is a frontend of one tenant, and never 0.
type identity uint64

// entry is what is remembered of a client. That of nobody is a free place.
type entry struct {
	client
	endpoint     [16]byte
	seen         int64 // nanoseconds since 1970
	older, newer int32
}

// nowhere is no place.
const nowhere = -1

// The file begins with a line that says what it is. An entry of it is the frontend, the client, the endpoint and when it was seen.
const (
	clientsFormat = "clients of the Envoy backend, format 1\n"
	entrySize     = 8 + 16 + 16 + 8
)

func newClients(most int) *clients {
	return &clients{most: most, places: map[client]int32{}, oldest: nowhere, newest: nowhere}
}

// openClients remembers what the file says of frontends that are known. Without the file it works as well.
func openClients(path string, most int, known func(identity) bool) *clients {
	c := newClients(most)
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.unkept = err
		return c
	}
	if c.file, err = os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		c.unkept = err
		return c
	}
	saved, ours := bytes.CutPrefix(content, []byte(clientsFormat))
	if !ours {
		c.begin()
		return c
	}
	c.restore(saved, known)
	return c
}

// begin makes the file an empty one.
func (c *clients) begin() {
	err := c.file.Truncate(0)
	if err == nil {
		_, err = c.file.WriteAt([]byte(clientsFormat), 0)
	}
	if err != nil {
		c.unkept = errors.Join(err, c.close())
	}
}

// restore takes over what a file says. Damage makes a wrong endpoint at most, which is used only if it is one of the frontend's.
func (c *clients) restore(saved []byte, known func(identity) bool) {
	var used []int32
	for place := int32(0); len(saved) >= entrySize && int(place) < c.most; place++ {
		e := decode(saved[:entrySize])
		saved = saved[entrySize:]
		if _, twice := c.places[e.client]; twice || e.frontend == 0 || !known(e.frontend) {
			c.entries, c.free = append(c.entries, entry{}), append(c.free, place)
			continue
		}
		c.entries, used = append(c.entries, e), append(used, place)
		c.places[e.client] = place
	}
	slices.SortFunc(used, func(a, b int32) int { return cmp.Compare(c.entries[a].seen, c.entries[b].seen) })
	for _, place := range used {
		c.link(place)
	}
}

// find returns the client's endpoint if it was seen at that time or later.
func (c *clients) find(who client, since time.Time) (endpoint [16]byte, found bool) {
	place, known := c.places[who]
	if !known || c.entries[place].seen < since.UnixNano() {
		return endpoint, false
	}
	return c.entries[place].endpoint, true
}

// remember notes that the client is seen, and its endpoint. Where there is no place the one seen longest ago is forgotten.
func (c *clients) remember(who client, endpoint [16]byte, now time.Time) {
	place, known := c.places[who]
	switch {
	case known:
		c.unlink(place)
	case len(c.free) > 0:
		place = c.free[len(c.free)-1]
		c.free = c.free[:len(c.free)-1]
	case len(c.entries) < c.most:
		place = int32(len(c.entries))
		c.entries = append(c.entries, entry{})
	default:
		place = c.oldest
		delete(c.places, c.entries[place].client)
		c.unlink(place)
	}
	c.places[who] = place
	c.entries[place] = entry{client: who, endpoint: endpoint, seen: now.UnixNano()}
	c.link(place)
	c.write(place)
}

// forget forgets all clients of the frontends.
func (c *clients) forget(frontends map[identity]bool) {
	for place := range c.entries {
		if at := int32(place); frontends[c.entries[place].frontend] {
			delete(c.places, c.entries[place].client)
			c.unlink(at)
			c.entries[place] = entry{}
			c.free = append(c.free, at)
			c.write(at)
		}
	}
}

// link makes a place the one that was seen last.
func (c *clients) link(place int32) {
	e := &c.entries[place]
	e.older, e.newer = c.newest, nowhere
	if c.newest == nowhere {
		c.oldest = place
	} else {
		c.entries[c.newest].newer = place
	}
	c.newest = place
}

func (c *clients) unlink(place int32) {
	e := c.entries[place]
	if e.older == nowhere {
		c.oldest = e.newer
	} else {
		c.entries[e.older].newer = e.newer
	}
	if e.newer == nowhere {
		c.newest = e.older
	} else {
		c.entries[e.newer].older = e.older
	}
}

// write has the file say what is at a place.
func (c *clients) write(place int32) {
	first, last := place, place+1
	if c.unkept != nil {
		if time.Now().Before(c.retryAt) {
			return
		}
		first, last = 0, int32(len(c.entries))
	}
	if c.file == nil {
		return
	}
	var text []byte
	for _, e := range c.entries[first:last] {
		text = e.append(text)
	}
	_, c.unkept = c.file.WriteAt(text, int64(len(clientsFormat))+int64(first)*entrySize)
	c.retryAt = time.Now().Add(retryKeep)
}

func (e entry) append(to []byte) []byte {
	out := binary.BigEndian.AppendUint64(to, uint64(e.frontend))
	out = append(append(out, e.address[:]...), e.endpoint[:]...)
	return binary.BigEndian.AppendUint64(out, uint64(e.seen))
}

func decode(b []byte) entry {
	e := entry{client: client{frontend: identity(binary.BigEndian.Uint64(b))}, seen: int64(binary.BigEndian.Uint64(b[40:]))}
	copy(e.address[:], b[8:])
	copy(e.endpoint[:], b[24:])
	return e
}

func (c *clients) close() error {
	if c.file == nil {
		return nil
	}
	f := c.file
	c.file = nil
	return f.Close()
}
