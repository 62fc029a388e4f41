package ebpf

import (
	"errors"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
	"kubelb.k8c.io/backends/dataplane/routes"
	"kubelb.k8c.io/core/model"
)

// forwardingResults are the results of RequireForwarding by family: true is IPv4. Each family is checked once.
type forwardingResults map[bool]error

func (f forwardingResults) check(v4 bool) error {
	err, known := f[v4]
	if !known {
		err = preflight.Host{}.RequireForwarding(v4)
		f[v4] = err
	}
	return err
}

// checkDirect returns an error if the frontend cannot be direct: if an endpoint of its pool is not on a segment of this gateway.
func (s *state) checkDirect(f model.Frontend) error {
	p := s.pools[f.Pool]
	if p == nil {
		return dataplane.MissingPool(f.Pool)
	}
	var errs []error
	for _, e := range p.endpoints {
		_, err := routes.OnLink(e.address)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// checkPoolOnLink returns an error if a direct frontend uses the pool, and an endpoint is not on a segment of this gateway.
func (s *state) checkPoolOnLink(p model.Pool) error {
	known := s.pools[p.ID]
	if known == nil || s.direct[known.number] == 0 {
		return nil
	}
	var errs []error
	for _, e := range p.Endpoints {
		_, err := routes.OnLink(e.Address)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
