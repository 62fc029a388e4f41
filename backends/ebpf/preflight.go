package ebpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// requireForwarding says what to do where the kernel finds no routes for packets of others.
func requireForwarding(v4 bool) error {
	path, key := "/proc/sys/net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"
	if v4 {
		path, key = "/proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward"
	}
	value, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("sysctl %s: %w", key, err)
	}
	if strings.TrimSpace(string(value)) == "0" {
		return fmt.Errorf("sysctl %s is 0, so the kernel has no routes for packets of others: run 'sysctl -w %s=1' and make it permanent", key, key)
	}
	return nil
}

// forwarding asks once for each family.
type forwarding map[bool]error

func (f forwarding) require(v4 bool) error {
	err, known := f[v4]
	if !known {
		err = requireForwarding(v4)
		f[v4] = err
	}
	return err
}

// requireDirect says why the frontend cannot be direct.
func (s *state) requireDirect(f model.Frontend) error {
	p := s.pools[f.Pool]
	if p == nil {
		return dataplane.MissingPool(f.Pool)
	}
	var errs []error
	for _, e := range p.endpoints {
		errs = append(errs, requireNeighbour(e.address))
	}
	return errors.Join(errs...)
}

// requireNeighbours says why the pool cannot become what is asked, if a direct frontend uses it.
func (s *state) requireNeighbours(p model.Pool) error {
	known := s.pools[p.ID]
	if known == nil || s.direct[known.number] == 0 {
		return nil
	}
	var errs []error
	for _, e := range p.Endpoints {
		errs = append(errs, requireNeighbour(e.Address))
	}
	return errors.Join(errs...)
}

// requireNeighbour says why a packet for a VIP cannot be handed to the endpoint: a router between them would send it back.
func requireNeighbour(address netip.Addr) error {
	routes, err := netlink.RouteGet(address.AsSlice())
	if err != nil {
		return fmt.Errorf("forwarding direct: no route to endpoint %s: %w", address, err)
	}
	if len(routes[0].Gw) > 0 {
		return fmt.Errorf("forwarding direct: endpoint %s is behind router %s, and not on a segment of this gateway; use nat", address, routes[0].Gw)
	}
	return nil
}
