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

// A frontend with affinity that goes leaves its clients behind, each until its timeout: up to a day. The kernel finds them by number and client alone,
// and who they are only the kernel knows. So Watch sweeps: it reads the map in small parts, notes the clients whose number is no frontend's, and then
// deletes those in small transactions. Numbers are not given again by the same process, but may be by the next one: whose a number is counts when its
// clients are deleted.

const (
	// sweepEvery is the pause between two sweeps, where frontends with affinity have gone.
	sweepEvery = time.Minute
	// sweepFor is for how long one step reads: the kernel goes through the map from its beginning for each part.
	sweepFor = 10 * time.Millisecond
	// sweepDeletes is how many clients one step deletes, by so many transactions at most.
	sweepDeletes, sweepTransactions = 2000, 32
	// sweepSpares is for how long those stay at most that are left to the kernel, which would forget some of them while the sweep goes on: one of a
	// million clients takes a quarter of an hour.
	sweepSpares = 15 * time.Minute
)

// sweep is that of one table. It belongs to Watch.
type sweep struct {
	// dump is what is still to be read, nil if that is nothing.
	dump *clientDump
	// living are the numbers of frontends as it began, stale clients of others.
	living map[uint32]bool
	stale  []clientKey
	ended  time.Time
}

// clientKey is a key of the map: a number and an address. Of one of IPv4 the end is not used.
type clientKey [4 + 16]byte

func (k clientKey) number() uint32 { return binary.NativeEndian.Uint32(k[:]) }

// keyLength is that of a client's key.
func (t *table) keyLength() int {
	if t.layout.v4 {
		return 4 + 4
	}
	return 4 + 16
}

// sweepClients takes the next step of each table's sweep.
func (b *Backend) sweepClients(now time.Time, sweeps map[*table]*sweep) (err error) {
	b.busy.Lock()
	tables := slices.Clone(b.tables)
	b.busy.Unlock()
	for _, t := range tables {
		if sweeps[t] == nil {
			sweeps[t] = &sweep{}
		}
		if failed := b.sweepOf(t, sweeps[t], now); failed != nil {
			sweeps[t].end(now)
			err = errors.Join(err, fmt.Errorf("forget clients of frontends that have gone, in table %s: %w", t.layout.name, failed))
		}
	}
	return err
}

func endSweeps(sweeps map[*table]*sweep) {
	for _, s := range sweeps {
		s.end(time.Time{})
	}
}

func (b *Backend) sweepOf(t *table, s *sweep, now time.Time) error {
	switch {
	case s.dump != nil:
		return s.read(t.keyLength(), now)
	case len(s.stale) > 0:
		n := min(len(s.stale), sweepDeletes)
		err := b.deleteClients(t, s.stale[:n])
		if s.stale = s.stale[n:]; len(s.stale) == 0 {
			s.end(now)
		}
		return err
	case now.Sub(s.ended) < sweepEvery:
		return nil
	}
	if s.living = b.livingIfRetired(t); s.living == nil {
		return nil
	}
	var err error
	s.dump, err = dumpClients(t)
	return err
}

// livingIfRetired are the numbers whose clients are to stay, nil if no frontend with affinity has gone.
func (b *Backend) livingIfRetired(t *table) map[uint32]bool {
	b.busy.Lock()
	defer b.busy.Unlock()
	if !t.state.retired {
		return nil
	}
	t.state.retired = false
	return t.state.numbers()
}

// numbers are those of the frontends with affinity.
func (s *state) numbers() map[uint32]bool {
	out := map[uint32]bool{}
	for _, f := range s.frontends {
		if f.number != 0 {
			out[f.number] = true
		}
	}
	return out
}

// read reads for a moment.
func (s *sweep) read(length int, now time.Time) error {
	for began := time.Now(); time.Since(began) < sweepFor; {
		clients, more, err := s.dump.next()
		if err != nil {
			return err
		}
		for _, c := range clients {
			if len(c.key) == length && c.stays > sweepSpares && !s.living[binary.NativeEndian.Uint32(c.key)] {
				s.stale = append(s.stale, clientKey(append(c.key, make([]byte, len(clientKey{})-length)...)))
			}
		}
		if !more {
			s.dump.close()
			s.dump, s.living = nil, nil
			// While the kernel gives the map more room, or others change it, it may tell of one client twice, and of another one not at all.
			slices.SortFunc(s.stale, func(a, b clientKey) int { return bytes.Compare(a[:], b[:]) })
			if s.stale = slices.Compact(s.stale); len(s.stale) == 0 {
				s.end(now)
			}
			return nil
		}
	}
	return nil
}

// end waits for the next time.
func (s *sweep) end(now time.Time) {
	if s.dump != nil {
		s.dump.close()
	}
	*s = sweep{ended: now}
}

// deleteClients deletes those of the clients whose number is no frontend's now.
func (b *Backend) deleteClients(t *table, keys []clientKey) error {
	b.busy.Lock()
	defer b.busy.Unlock()
	if !slices.Contains(b.tables, t) {
		return nil // it was purged
	}
	living := t.state.numbers()
	var gone []nft.SetElement
	for _, key := range keys {
		if !living[key.number()] {
			gone = append(gone, nft.SetElement{Key: slices.Clone(key[:t.keyLength()])})
		}
	}
	t.state.retired = true // what was missed, or is left, is for the next sweep
	transactions := sweepTransactions
	return t.deleteThere(gone, &transactions)
}

// deleteThere deletes clients, by so many transactions at most. The kernel refuses all of them for one that is not there any more: then it is asked for
// halves.
func (t *table) deleteThere(clients []nft.SetElement, transactions *int) error {
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
	return errors.Join(t.deleteThere(clients[:half], transactions), t.deleteThere(clients[half:], transactions))
}

// clientDump reads a map's keys part by part, which the library does at once.
type clientDump struct {
	fd     int
	buffer []byte
}

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

// next reads one part. The kernel has it ready.
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
			return nil, false, refusalIn(body)
		}
		if clients, err = clientsIn(clients, body); err != nil {
			return nil, false, fmt.Errorf("read clients: %w", err)
		}
		rest = rest[min(len(rest), (length+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
	}
	return clients, true, nil
}

func refusalIn(body []byte) error {
	if len(body) < 4 {
		return errors.New("read clients: a message is cut off")
	}
	return fmt.Errorf("read clients: %w", unix.Errno(-int32(binary.NativeEndian.Uint32(body))))
}

// client is an element of the map: its key, and for how long it stays.
type client struct {
	key   []byte
	stays time.Duration
}

// clientsIn appends the elements of a message.
func clientsIn(clients []client, body []byte) ([]client, error) {
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
			c.stays = time.Duration(min(element.Uint64(), uint64(longestTimeout/time.Millisecond))) * time.Millisecond
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
