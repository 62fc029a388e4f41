package nftables

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	nft "github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/nftables/elements"
)

// A frontend with affinity that is deleted leaves its clients in the kernel's map, each until its timeout: a day at most. A key of the map is the
// frontend's number and the client's address, and only the kernel knows the addresses. So Watch sweeps the map: it reads the keys in small parts, notes
// stale clients (no frontend has their number), and deletes them in small transactions. A process does not use a number twice, but the next process may:
// so a stale client is checked again when it is deleted.

const (
	// sweepInterval is the pause between two sweeps. A sweep needs a reason: state.staleClients.
	sweepInterval = time.Minute
	// sweepReadTime is how long one step reads. For each part the kernel walks the map from its beginning.
	sweepReadTime = 10 * time.Millisecond
	// One step deletes at most so many clients, in at most so many transactions.
	maxSweepDeletes, maxSweepTransactions = 2000, 32
	// Clients that expire within sweepMinTimeout are left to the kernel: a sweep of a million clients takes about as long.
	sweepMinTimeout = 15 * time.Minute
)

// clientSweep is the state of one table's sweep: it reads while dump is set, then deletes stale, then waits since ended. It belongs to Watch.
type clientSweep struct {
	dump *clientDump
	// inUse are the numbers of the table's frontends at the start of the sweep.
	inUse map[uint32]bool
	stale []clientKey
	ended time.Time
}

// clientKey is a key of the map: the frontend's number and the client's address, which for IPv4 is followed by zeros.
type clientKey [4 + 16]byte

func (k clientKey) number() uint32 { return binary.NativeEndian.Uint32(k[:]) }

// keyLength is the length of the map's keys in bytes.
func (t *table) keyLength() int {
	if t.layout.v4 {
		return 4 + 4
	}
	return 4 + 16
}

// sweepClients takes the next step of each table's sweep.
func (b *Backend) sweepClients(now time.Time, sweeps map[*table]*clientSweep) (err error) {
	b.mu.Lock()
	tables := slices.Clone(b.tables)
	b.mu.Unlock()
	for _, t := range tables {
		if sweeps[t] == nil {
			sweeps[t] = &clientSweep{}
		}
		if failed := b.sweepStep(t, sweeps[t], now); failed != nil {
			sweeps[t].end(now)
			b.sweepAgain(t)
			err = errors.Join(err, fmt.Errorf("delete clients of former frontends from table %s: %w", t.layout.name, failed))
		}
	}
	return err
}

func endSweeps(sweeps map[*table]*clientSweep) {
	for _, s := range sweeps {
		s.end(time.Time{})
	}
}

// sweepStep reads for sweepReadTime, or deletes up to maxSweepDeletes clients, or starts a sweep if one is due.
func (b *Backend) sweepStep(t *table, s *clientSweep, now time.Time) error {
	switch {
	case s.dump != nil:
		return s.read(t.keyLength(), now)
	case len(s.stale) > 0:
		n := min(len(s.stale), maxSweepDeletes)
		err := b.deleteClients(t, s.stale[:n])
		if s.stale = s.stale[n:]; len(s.stale) == 0 {
			s.end(now)
		}
		return err
	case now.Sub(s.ended) < sweepInterval:
		return nil
	}
	if s.inUse = b.startSweep(t); s.inUse == nil {
		return nil
	}
	var err error
	s.dump, err = dumpClients(t)
	return err
}

// startSweep returns the numbers whose clients stay, or nil if there are no stale clients.
func (b *Backend) startSweep(t *table) map[uint32]bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !t.state.staleClients {
		return nil
	}
	t.state.staleClients = false
	return t.state.affinityNumbers()
}

// sweepAgain has another sweep follow one that failed.
func (b *Backend) sweepAgain(t *table) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t.state.staleClients = true
}

// affinityNumbers returns the numbers of the frontends with affinity.
func (s *state) affinityNumbers() map[uint32]bool {
	out := map[uint32]bool{}
	for _, f := range s.frontends {
		if f.number != 0 {
			out[f.number] = true
		}
	}
	return out
}

// read reads parts of the dump for sweepReadTime, and notes stale clients.
func (s *clientSweep) read(length int, now time.Time) error {
	for began := time.Now(); time.Since(began) < sweepReadTime; {
		clients, more, err := s.dump.next()
		if err != nil {
			return err
		}
		for _, c := range clients {
			if len(c.key) == length && c.expires > sweepMinTimeout && !s.inUse[binary.NativeEndian.Uint32(c.key)] {
				s.stale = append(s.stale, clientKey(append(c.key, make([]byte, len(clientKey{})-length)...)))
			}
		}
		if !more {
			s.dump.close()
			s.dump, s.inUse = nil, nil
			// If the map is resized or changed during the dump, the kernel may list one client twice, and leave out another one.
			slices.SortFunc(s.stale, func(a, b clientKey) int { return bytes.Compare(a[:], b[:]) })
			if s.stale = slices.Compact(s.stale); len(s.stale) == 0 {
				s.end(now)
			}
			return nil
		}
	}
	return nil
}

// end stops the sweep. The next one starts after sweepInterval.
func (s *clientSweep) end(now time.Time) {
	if s.dump != nil {
		s.dump.close()
	}
	*s = clientSweep{ended: now}
}

// deleteClients deletes clients, unless a frontend has their number by now.
func (b *Backend) deleteClients(t *table, keys []clientKey) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Contains(b.tables, t) {
		return nil // it was purged
	}
	inUse := t.state.affinityNumbers()
	var stale []nft.SetElement
	for _, key := range keys {
		if !inUse[key.number()] {
			stale = append(stale, nft.SetElement{Key: slices.Clone(key[:t.keyLength()])})
		}
	}
	t.state.staleClients = true // the next sweep looks for clients that this sweep missed or left
	transactions := maxSweepTransactions
	return t.deleteExisting(stale, &transactions)
}

// deleteExisting deletes the clients that still exist, in at most so many transactions. If one client has expired, the kernel refuses the whole
// transaction. Then each half is tried by itself.
func (t *table) deleteExisting(clients []nft.SetElement, transactions *int) error {
	if len(clients) == 0 || *transactions == 0 {
		return nil
	}
	*transactions--
	c, err := elements.Connect()
	if err != nil {
		return err
	}
	for chunk := range slices.Chunk(clients, elements.PerMessage) {
		if err := c.SetDeleteElements(t.sets[mapClients], chunk); err != nil {
			return err
		}
	}
	err = c.Flush()
	switch {
	case !errors.Is(err, os.ErrNotExist):
		return err
	case len(clients) == 1:
		return nil
	}
	half := len(clients) / 2
	return errors.Join(t.deleteExisting(clients[:half], transactions), t.deleteExisting(clients[half:], transactions))
}

// clientDump reads a map's elements part by part (NFT_MSG_GETSETELEM). The nftables library reads all of them at once.
type clientDump struct {
	fd     int
	buffer []byte
}

// dumpClients asks the kernel for the map of clients. The caller closes the dump.
func dumpClients(t *table) (*clientDump, error) {
	encoder := netlink.NewAttributeEncoder()
	encoder.String(unix.NFTA_SET_ELEM_LIST_TABLE, t.nft.Name)
	encoder.String(unix.NFTA_SET_ELEM_LIST_SET, mapClients)
	attributes, err := encoder.Encode()
	if err != nil {
		return nil, err
	}
	request := netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETSETELEM, Flags: netlink.Request | netlink.Dump, Sequence: 1},
		Data:   append([]byte{byte(t.nft.Family), unix.NFNETLINK_V0, 0, 0}, attributes...),
	}
	request.Header.Length = uint32(unix.NLMSG_HDRLEN + len(request.Data))
	message, err := request.MarshalBinary()
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("read clients: %w", err)
	}
	d := &clientDump{fd, make([]byte, 64<<10)}
	if err := unix.Sendto(fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		d.close()
		return nil, fmt.Errorf("read clients: %w", err)
	}
	return d, nil
}

func (d *clientDump) close() { _ = unix.Close(d.fd) }

// next reads one part. It does not block, since the kernel prepares the next part before it is read.
func (d *clientDump) next() (clients []client, more bool, err error) {
	n, _, err := unix.Recvfrom(d.fd, d.buffer, unix.MSG_DONTWAIT)
	if err != nil {
		return nil, false, fmt.Errorf("read clients: %w", err)
	}
	for rest := d.buffer[:n]; len(rest) >= unix.NLMSG_HDRLEN; {
		length := int(binary.NativeEndian.Uint32(rest))
		if length < unix.NLMSG_HDRLEN || length > len(rest) {
			return nil, false, errors.New("read clients: a message is cut off")
		}
		body := rest[unix.NLMSG_HDRLEN:length]
		switch binary.NativeEndian.Uint16(rest[4:]) {
		case unix.NLMSG_DONE:
			return clients, false, nil
		case unix.NLMSG_ERROR:
			return nil, false, netlinkError(body)
		}
		if clients, err = appendClients(clients, body); err != nil {
			return nil, false, fmt.Errorf("read clients: %w", err)
		}
		rest = rest[min(len(rest), (length+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
	}
	return clients, true, nil
}

// netlinkError returns the error in the body of an NLMSG_ERROR message.
func netlinkError(body []byte) error {
	if len(body) < 4 {
		return errors.New("read clients: a message is cut off")
	}
	return fmt.Errorf("read clients: %w", unix.Errno(-int32(binary.NativeEndian.Uint32(body))))
}

// client is an element of the map: its key, and the time until it expires.
type client struct {
	key     []byte
	expires time.Duration
}

// appendClients appends the elements of a message.
func appendClients(clients []client, body []byte) ([]client, error) {
	const header = 4 // struct nfgenmsg
	if len(body) < header {
		return nil, errors.New("a message is cut off")
	}
	decoder, err := netlink.NewAttributeDecoder(body[header:])
	if err != nil {
		return nil, err
	}
	for decoder.Next() {
		if decoder.Type() != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			continue
		}
		decoder.Nested(func(list *netlink.AttributeDecoder) error {
			for list.Next() {
				var c client
				list.Nested(c.decode)
				clients = append(clients, c)
			}
			return nil
		})
	}
	return clients, decoder.Err()
}

func (c *client) decode(element *netlink.AttributeDecoder) error {
	element.ByteOrder = binary.BigEndian
	for element.Next() {
		switch element.Type() {
		case unix.NFTA_SET_ELEM_EXPIRATION:
			c.expires = time.Duration(min(element.Uint64(), uint64(longestTimeout/time.Millisecond))) * time.Millisecond
		case unix.NFTA_SET_ELEM_KEY:
			element.Nested(func(key *netlink.AttributeDecoder) error {
				for key.Next() {
					if key.Type() == unix.NFTA_DATA_VALUE {
						c.key = key.Bytes()
					}
				}
				return nil
			})
		}
	}
	return nil
}
