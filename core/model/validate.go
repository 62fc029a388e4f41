package model

import (
	"errors"
	"fmt"
	"time"
)

// MaxEndpointID is the most bytes of an endpoint's ID. The kernel keeps it as a comment, which must not be long.
const MaxEndpointID = 100

// MaxAffinity is Kubernetes' upper bound of a ClientIP affinity timeout.
const MaxAffinity = 24 * time.Hour

// Validate returns an error for each field of the pool that is invalid.
func (p Pool) Validate() error {
	var errs []error
	if p.ID == "" || p.Tenant == "" {
		errs = append(errs, errors.New("pool without id or tenant"))
	} else if p.ID.Tenant() != p.Tenant {
		errs = append(errs, fmt.Errorf("tenant %s, but the id is one of tenant %s", p.Tenant, p.ID.Tenant()))
	}
	ids := map[string]bool{}
	for _, e := range p.Endpoints {
		switch {
		case e.ID == "" || ids[e.ID]:
			errs = append(errs, fmt.Errorf("endpoint id %q is empty or used twice", e.ID))
		case len(e.ID) > MaxEndpointID:
			errs = append(errs, fmt.Errorf("endpoint id of %d bytes: at most %d", len(e.ID), MaxEndpointID))
		case !e.Address.IsValid() || e.Address.Zone() != "" || e.Address.Is4In6():
			errs = append(errs, fmt.Errorf("endpoint %s: address %s is not a plain IPv4 or IPv6 address", e.ID, e.Address))
		case e.Address.Is4() != p.Endpoints[0].Address.Is4():
			errs = append(errs, fmt.Errorf("endpoint %s: both families in one pool", e.ID))
		case e.Weight == 0:
			errs = append(errs, fmt.Errorf("endpoint %s: weight 0", e.ID))
		case e.State > Unhealthy:
			errs = append(errs, fmt.Errorf("endpoint %s: %s", e.ID, e.State))
		}
		ids[e.ID] = true
	}
	return wrap("pool "+string(p.ID), errs)
}

// Validate returns an error for each field of the frontend that is invalid. Snapshot.Validate checks that its pool exists.
func (f Frontend) Validate() error {
	var errs []error
	failIf := func(invalid bool, format string, args ...any) {
		if invalid {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	failIf(!f.VIP.IsValid() || f.VIP.Zone() != "" || f.VIP.Is4In6(), "VIP is not a plain IPv4 or IPv6 address")
	failIf(f.Protocol != TCP && f.Protocol != UDP, "%s is neither TCP nor UDP", f.Protocol)
	failIf(f.Port == 0, "port 0")
	failIf(f.TargetPort == 0, "target port 0")
	failIf(f.Pool == "" || f.Tenant == "", "no pool or no tenant")
	failIf(f.Pool != "" && f.Tenant != "" && f.Pool.Tenant() != f.Tenant, "tenant %s, but pool %s belongs to tenant %s", f.Tenant, f.Pool, f.Pool.Tenant())
	failIf(f.Forwarding > Direct, "%s", f.Forwarding)
	failIf(f.AffinityTimeout < 0 || f.AffinityTimeout > MaxAffinity || f.AffinityTimeout%time.Second != 0,
		"affinity timeout %s is not a number of seconds up to a day", f.AffinityTimeout)
	failIf(f.IdleTimeout < 0, "idle timeout %s is negative", f.IdleTimeout)
	failIf(len(f.SourceRanges) > 0 && !f.Restricted, "source ranges without restriction")
	for _, r := range f.SourceRanges {
		failIf(!r.IsValid() || r != r.Masked() || r.Addr().Is4() != f.VIP.Is4(), "source range %s is unmasked or of the wrong family", r)
	}
	if next := f.Redirect.Next; !f.Redirect.IsZero() {
		failIf(!next.IsValid() || next.Zone() != "" || next.Is4() != f.VIP.Is4() || next.Is4In6(), "handover to %s, which is not a plain address of the VIP's family", next)
		failIf(f.Redirect.Limit < 1 || f.Redirect.Limit > MaxRedirects, "handover asks %d gateways, not 1 to %d", f.Redirect.Limit, MaxRedirects)
		failIf(f.Protocol != TCP || f.Forwarding != NAT, "handover on %s with forwarding %s, which needs TCP and nat", f.Protocol, f.Forwarding)
	}
	failIf(f.ProxyProtocol && f.Protocol != TCP, "PROXY protocol on %s", f.Protocol)
	return wrap("frontend "+f.FrontendKey.String(), errs)
}

// Validate checks every record, that keys are unique, and that each frontend's pool exists, is of its tenant and family.
func (s Snapshot) Validate() error {
	var errs []error
	pools := map[PoolID]Pool{}
	for _, p := range s.Pools {
		if _, twice := pools[p.ID]; twice {
			errs = append(errs, fmt.Errorf("pool %s appears twice", p.ID))
		}
		pools[p.ID] = p
		errs = append(errs, p.Validate())
	}
	keys := map[FrontendKey]bool{}
	for _, f := range s.Frontends {
		if keys[f.FrontendKey] {
			errs = append(errs, fmt.Errorf("frontend %s appears twice", f.FrontendKey))
		}
		keys[f.FrontendKey] = true
		errs = append(errs, f.Validate())
		pool, ok := pools[f.Pool]
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("frontend %s: pool %s does not exist", f.FrontendKey, f.Pool))
		case pool.Tenant != f.Tenant:
			errs = append(errs, fmt.Errorf("frontend %s of tenant %s: pool %s belongs to tenant %s", f.FrontendKey, f.Tenant, f.Pool, pool.Tenant))
		case len(pool.Endpoints) > 0 && pool.Endpoints[0].Address.Is4() != f.VIP.Is4():
			errs = append(errs, fmt.Errorf("frontend %s: pool %s is of the other family", f.FrontendKey, f.Pool))
		}
	}
	return errors.Join(errs...)
}

func wrap(what string, errs []error) error {
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
