// Package shares divides resources that all tenants of a gateway share: tables of a fixed size, or memory. The last quarter of each resource is reserved for
// tenants that use no more than a quarter of it.
package shares

import "fmt"

// Resource is one shared resource.
type Resource struct {
	// Unit is what it consists of, in the plural. Size is the number of units.
	Unit string
	Size int
	// Advice says what to do when there is too little.
	Advice string
}

// Usage is the use of each resource, in the order of the resources.
type Usage []int

// Shares counts the usage of each tenant and of all together. It is not safe for concurrent use.
type Shares struct {
	resources []Resource
	tenants   map[string]Usage
	total     Usage
}

// New returns shares of the resources, which nobody uses yet.
func New(resources []Resource) *Shares {
	return &Shares{resources: resources, tenants: map[string]Usage{}, total: make(Usage, len(resources))}
}

// Usage returns the usage of the tenant.
func (s *Shares) Usage(tenant string) Usage {
	if usage, ok := s.tenants[tenant]; ok {
		return usage
	}
	return make(Usage, len(s.resources))
}

// Add adds existing usage of the tenant, without a check.
func (s *Shares) Add(tenant string, u Usage) { s.add(tenant, u, 1) }

func (s *Shares) add(tenant string, u Usage, times int) {
	usage := s.Usage(tenant)
	for i := range u {
		usage[i] += times * u[i]
		s.total[i] += times * u[i]
	}
	s.tenants[tenant] = usage
}

// Replace replaces usage of the tenant. It refuses an increase that leaves less than a quarter of a resource for others while the tenant uses more than a
// quarter. It never refuses a decrease, nor unchanged usage.
func (s *Shares) Replace(tenant string, former, next Usage) error {
	const quarter = 4
	usage := s.Usage(tenant)
	for i, r := range s.resources {
		increase := next[i] - former[i]
		if increase > 0 && usage[i]+increase > r.Size/quarter && s.total[i]+increase > r.Size-r.Size/quarter {
			return fmt.Errorf("tenant %s would have %d %s at this gateway, and less than a quarter of %d would be left for other tenants; %s", tenant, usage[i]+increase, r.Unit, r.Size, r.Advice)
		}
	}
	s.add(tenant, former, -1)
	s.add(tenant, next, 1)
	return nil
}
