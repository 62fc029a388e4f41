// Package shares divides what all tenants of a gateway use together: tables of a fixed size, or memory. The last quarter of each is for tenants that have no
// more than a quarter.
package shares

import "fmt"

// Resource is one thing that tenants share.
type Resource struct {
	// Unit is what it holds, in the plural; Size is how much of it there is.
	Unit string
	Size int
	// Advice says what to do when there is too little.
	Advice string
}

// Usage is how much something takes of each room, in the order of the rooms.
type Usage []int

// Shares is how much each tenant has, and all of them together. It is not safe for concurrent use.
type Shares struct {
	rooms []Resource
	of    map[string]Usage
	all   Usage
}

// New returns the rooms, empty.
func New(rooms []Resource) *Shares {
	return &Shares{rooms: rooms, of: map[string]Usage{}, all: make(Usage, len(rooms))}
}

// Usage is how much the tenant has.
func (s *Shares) Usage(tenant string) Usage {
	if has, ok := s.of[tenant]; ok {
		return has
	}
	return make(Usage, len(s.rooms))
}

// Add adds what the tenant has already.
func (s *Shares) Add(tenant string, h Usage) { s.add(tenant, h, 1) }

func (s *Shares) add(tenant string, h Usage, times int) {
	has := s.Usage(tenant)
	for i := range h {
		has[i] += times * h[i]
		s.all[i] += times * h[i]
	}
	s.of[tenant] = has
}

// Replace has the tenant have what it wants instead of what it had. It refuses what would leave less than a quarter of a room to others, if the tenant has more
// than a quarter. It never refuses a holding that is no larger than before.
func (s *Shares) Replace(tenant string, wants, had Usage) error {
	const quarter = 4
	has := s.Usage(tenant)
	for i, r := range s.rooms {
		more := wants[i] - had[i]
		if more > 0 && has[i]+more > r.Size/quarter && s.all[i]+more > r.Size-r.Size/quarter {
			return fmt.Errorf("tenant %s would have %d %s, at this gateway, where less than a quarter of %d would be left for others; %s", tenant, has[i]+more, r.Unit, r.Size, r.Advice)
		}
	}
	s.add(tenant, had, -1)
	s.add(tenant, wants, 1)
	return nil
}
