package translate

import (
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"
)

// AddressHashes are those of the addresses of a list, sorted, four bytes each. Some addresses that the list does not have, have the same hashes.
type AddressHashes []uint32

// AddressHasher makes hashes that can be compared with others that it has made, and with no others.
type AddressHasher struct{ seed maphash.Seed }

// NewAddressHasher returns a hasher.
func NewAddressHasher() AddressHasher { return AddressHasher{maphash.MakeSeed()} }

func (h AddressHasher) hash(a netip.Addr) uint32 {
	bytes := a.As16()
	return uint32(maphash.Bytes(h.seed, bytes[:]))
}

// Hashes are those of the addresses that each gives.
func (h AddressHasher) Hashes(each func(do func(netip.Addr))) (out AddressHashes) {
	each(func(address netip.Addr) { out = append(out, h.hash(address)) })
	slices.Sort(out)
	return slices.Clone(slices.Compact(out)) // without the room to grow
}

// AddressSearch are addresses by their hashes.
type AddressSearch struct {
	hashes AddressHashes
	of     map[uint32][]netip.Addr
}

// Search prepares a search for addresses in many lists.
func (h AddressHasher) Search(addresses []netip.Addr) AddressSearch {
	out := AddressSearch{of: map[uint32][]netip.Addr{}}
	for _, address := range addresses {
		hash := h.hash(address)
		out.of[hash] = append(out.of[hash], address)
	}
	out.hashes = slices.Sorted(maps.Keys(out.of))
	return out
}

// In are the searched addresses that the list has, and maybe some that have the same hash. It costs as much as the shorter of the two is long, and not
// as much as the longer one: a tenant may list thousands of addresses, and hundreds of other tenants have a few each.
func (s AddressSearch) In(list AddressHashes) (found []netip.Addr) {
	few, many := s.hashes, list
	if len(few) > len(many) {
		few, many = many, few
	}
	leaps := len(many) > 16*len(few)
	for _, hash := range few {
		i := 0
		if leaps {
			i, _ = slices.BinarySearch(many, hash)
		} else {
			for i < len(many) && many[i] < hash {
				i++
			}
		}
		if many = many[i:]; len(many) > 0 && many[0] == hash {
			found = append(found, s.of[hash]...)
		}
	}
	return found
}
