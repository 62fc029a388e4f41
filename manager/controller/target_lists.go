package controller

import (
	"hash/maphash"
	"net/netip"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/core/translate"
)

// listsPerTurn is the number of lists of a tenant that are evaluated before it is the next tenant's turn: 5,000 targets take two milliseconds.
const listsPerTurn = 20

// listKey identifies a list of targets: in an Addresses object, or in a LoadBalancer (own).
type listKey struct {
	client.ObjectKey
	own bool
}

// targetList is the state of a list of targets. The targets themselves are only in the cache.
type targetList struct {
	listKey
	version string
	// sum is a hash of the list, mentions are hashes of its addresses.
	sum      uint64
	mentions translate.AddressHashes
	// refused names the refused targets, endpoints is the number of usable ones, as of the last evaluation.
	refused   string
	endpoints int32
	// isNew: the list was never evaluated. skipFirst: the first result needs no reconcile.
	isNew, skipFirst bool
	// queued: the list is queued, because it has changed (changed) or because another object has (affected).
	queued, changed, affected bool
	// present: the last refresh has seen the list.
	present bool
}

// setResult records a result, and reports whether LoadBalancers have to be reconciled. A change of its own targets reconciles a LoadBalancer anyway.
func (l *targetList) setResult(refused string, endpoints int32) (reconcile bool) {
	reconcile = (!l.skipFirst || l.affected) && (l.isNew || l.refused != refused || l.changed && l.affected)
	l.refused, l.endpoints = refused, endpoints
	l.isNew, l.skipFirst, l.changed, l.affected = false, false, false, false
	return reconcile
}

// targetLists has all lists of targets, and a queue of those to evaluate. Namespaces take turns.
type targetLists struct {
	// seed is the seed of the sums.
	seed        maphash.Seed
	hasher      translate.AddressHasher
	byNamespace map[string]map[listKey]*targetList
	queues      map[string][]*targetList
	// initial: this is the first refresh.
	initial bool
}

func newTargetLists() targetLists {
	return targetLists{seed: maphash.MakeSeed(), hasher: translate.NewAddressHasher(), byNamespace: map[string]map[listKey]*targetList{}, queues: map[string][]*targetList{}, initial: true}
}

// update updates the state of a list, and reports whether the list has changed. It calls of, which returns the targets, only for another version.
func (s *targetLists) update(key listKey, version string, held []string, of func() []translate.Packed) bool {
	all := s.byNamespace[key.Namespace]
	if all == nil {
		all = map[listKey]*targetList{}
		s.byNamespace[key.Namespace] = all
	}
	l, known := all[key]
	if !known {
		l = &targetList{listKey: key, isNew: true, skipFirst: s.initial}
		all[key] = l
	}
	l.present = true
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
	s.enqueue(l)
	return true
}

func (s *targetLists) sum(held []string, targets []translate.Packed) uint64 {
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

func (s *targetLists) mentions(targets []translate.Packed) translate.AddressHashes {
	return s.hasher.Hashes(func(do func(netip.Addr)) {
		for _, list := range targets {
			list.Each(do)
		}
	})
}

// sweep removes the lists that were not updated since the last sweep, and returns their keys.
func (s *targetLists) sweep() (gone []listKey) {
	for namespace, of := range s.byNamespace {
		for key, l := range of {
			if !l.present {
				gone = append(gone, key)
				delete(of, key)
			}
			l.present = false
		}
		if len(of) == 0 {
			delete(s.byNamespace, namespace)
		}
	}
	s.initial = false
	return gone
}

// enqueue queues a list.
func (s *targetLists) enqueue(l *targetList) {
	if !l.queued {
		l.queued = true
		s.queues[l.Namespace] = append(s.queues[l.Namespace], l)
	}
}

// dequeue removes the next lists of each namespace from the queue, and reports whether more are queued.
func (s *targetLists) dequeue() (next []listKey, more bool) {
	for namespace, queue := range s.queues {
		n := min(len(queue), listsPerTurn)
		for _, l := range queue[:n] {
			l.queued = false
			next = append(next, l.listKey)
		}
		if s.queues[namespace] = queue[n:]; len(queue) == n {
			delete(s.queues, namespace)
		}
	}
	return next, len(s.queues) > 0
}
