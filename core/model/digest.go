package model

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// Digest identifies a record's content: equal digests mean equal forwarding. It is short enough to be kept beside the
// record in the kernel.
type Digest string

// digestOf hashes a record's text form, which has all that affects forwarding. With 96 bits, two states of one record
// practically never collide. A tenant gains nothing from a collision with another record: the text has tenant and key.
func digestOf(text string) Digest {
	sum := sha256.Sum256([]byte(text))
	return Digest(hex.EncodeToString(sum[:digestBytes]))
}

const digestBytes = 12

// ParseDigest reads a digest that a dataplane has kept as text. It returns the empty digest, which no record has, if the text is not a digest.
func ParseDigest(text string) Digest {
	if len(text) != hex.EncodedLen(digestBytes) || strings.Trim(text, "0123456789abcdef") != "" {
		return ""
	}
	return Digest(text)
}

// Digest identifies the pool's content.
func (p Pool) Digest() Digest { return digestOf(p.Text()) }

// Digest identifies the frontend's content.
func (f Frontend) Digest() Digest { return digestOf(f.Text()) }

// Digests are the digests of a set of records, by their keys.
type Digests struct {
	Pools     map[PoolID]Digest
	Frontends map[FrontendKey]Digest
}

// NewDigests returns empty, writable digests.
func NewDigests() Digests {
	return Digests{Pools: map[PoolID]Digest{}, Frontends: map[FrontendKey]Digest{}}
}

// Digests returns the digests of all records.
func (s Snapshot) Digests() Digests {
	d := NewDigests()
	for _, p := range s.Pools {
		d.Pools[p.ID] = p.Digest()
	}
	for _, f := range s.Frontends {
		d.Frontends[f.FrontendKey] = f.Digest()
	}
	return d
}
