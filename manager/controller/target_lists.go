package controller

import (
	"hash/maphash"
	"net/netip"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/core/translate"
)

// listsInTurn is how many lists of a tenant are looked at before those of others: 5,000 targets take two milliseconds.
const listsInTurn = 20

// listKey names a list of targets: that of Addresses, or a LoadBalancer's own.
type listKey struct {
	client.ObjectKey
	own bool
}

// list is what is remembered of a list of targets. What it lists stands in the cache.
type list struct {
	listKey
	version string
	// sum is of what it lists, mentions are hashes of its addresses.
	sum      uint64
	mentions translate.AddressHashes
	// refused says what of it cannot be used, endpoints is how many can, as of the last time that it was looked at.
	refused   string
	endpoints int32
	// isNew: it was never looked at. quiet: nobody waits for what is found the first time.
	isNew, quiet bool
	// waits: it stands in line, since it lists something else (changed) or something changed elsewhere (asked).
	waits, changed, asked bool
	there                 bool
}

// take takes over what was found, and tells whether that is news. A LoadBalancer may have been looked at in between, when its targets had changed and
// not what tenants may have.
func (l *list) take(refused string, endpoints int32) (news bool) {
	news = (!l.quiet || l.asked) && (l.isNew || l.refused != refused || l.changed && l.asked)
	l.refused, l.endpoints = refused, endpoints
	l.isNew, l.quiet, l.changed, l.asked = false, false, false, false
	return news
}

// lists remember all lists of targets, and which of them have to be looked at anew, in turns of the namespaces.
type lists struct {
	// seed is that of sums.
	seed   maphash.Seed
	hasher translate.AddressHasher
	of     map[string]map[listKey]*list
	line   map[string][]*list
	// first: nobody was told anything yet.
	first bool
}

func newLists() lists {
	return lists{seed: maphash.MakeSeed(), hasher: translate.NewAddressHasher(), of: map[string]map[listKey]*list{}, line: map[string][]*list{}, first: true}
}

// note remembers what a list has, and reports whether that differs. It asks for the targets if the version is another one.
func (s *lists) note(key listKey, version string, held []string, of func() []translate.Packed) bool {
	all := s.of[key.Namespace]
	if all == nil {
		all = map[listKey]*list{}
		s.of[key.Namespace] = all
	}
	l, known := all[key]
	if !known {
		l = &list{listKey: key, isNew: true, quiet: s.first}
		all[key] = l
	}
	l.there = true
	if known && l.version == version {
		return false
	}
	l.version = version
	targets := of()
	sum := s.sum(held, targets)
	if known && l.sum == sum {
		return false
	}
	l.sum, l.mentions, l.changed = sum, s.mentions(targets), true
	s.wait(l)
	return true
}

func (s *lists) sum(held []string, targets []translate.Packed) uint64 {
	var h maphash.Hash
	h.SetSeed(s.seed)
	text := func(t string) {
		maphash.WriteComparable(&h, len(t))
		h.WriteString(t)
	}
	for _, address := range held {
		text(address)
	}
	maphash.WriteComparable(&h, len(held))
	for _, list := range targets {
		text(string(list))
	}
	return h.Sum64()
}

func (s *lists) mentions(targets []translate.Packed) translate.AddressHashes {
	return s.hasher.Hashes(func(do func(netip.Addr)) {
		for _, list := range targets {
			list.Each(do)
		}
	})
}

// sweep forgets the lists that were not noted since the last time, and returns which they are.
func (s *lists) sweep() (gone []listKey) {
	for namespace, of := range s.of {
		for key, l := range of {
			if !l.there {
				gone = append(gone, key)
				delete(of, key)
			}
			l.there = false
		}
		if len(of) == 0 {
			delete(s.of, namespace)
		}
	}
	s.first = false
	return gone
}

// wait puts a list in line.
func (s *lists) wait(l *list) {
	if !l.waits {
		l.waits = true
		s.line[l.Namespace] = append(s.line[l.Namespace], l)
	}
}

// turn takes the next ones of each namespace, and reports whether more wait.
func (s *lists) turn() (next []listKey, more bool) {
	for namespace, line := range s.line {
		n := min(len(line), listsInTurn)
		for _, l := range line[:n] {
			l.waits = false
			next = append(next, l.listKey)
		}
		if s.line[namespace] = line[n:]; len(line) == n {
			delete(s.line, namespace)
		}
	}
	return next, len(s.line) > 0
}
