package translate

import (
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"
)

// AddressHashes are hashes of the addresses of a list, sorted, four bytes each. Other addresses may have the same hashes.
type AddressHashes []uint32

// AddressHasher hashes addresses. Hashes of different hashers cannot be compared.
type AddressHasher struct{ seed maphash.Seed }

// NewAddressHasher returns a hasher.
func NewAddressHasher() AddressHasher { return AddressHasher{maphash.MakeSeed()} }

func (h AddressHasher) hash(a netip.Addr) uint32 {
	bytes := a.As16()
	return uint32(maphash.Bytes(h.seed, bytes[:]))
}

// Hashes returns the hashes of the addresses that each yields.
func (h AddressHasher) Hashes(each func(do func(netip.Addr))) (out AddressHashes) {
	each(func(address netip.Addr) { out = append(out, h.hash(address)) })
	slices.Sort(out)
	return slices.Clone(slices.Compact(out)) // without the room to grow
}

// AddressSearch has the addresses to search for, by their hashes.
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

// In returns the searched addresses that the list has, and maybe others with the same hash. Its cost depends on the shorter of the two: a tenant may
// list thousands of addresses while hundreds of other tenants have a few each.
func (s AddressSearch) In(list AddressHashes) (found []netip.Addr) {
	few, many := s.hashes, list
	if len(few) > len(many) {
		few, many = many, few
	}
	binarySearch := len(many) > 16*len(few)
	for _, hash := range few {
		i := 0
		if binarySearch {
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
