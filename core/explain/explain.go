package explain

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
)

// Version is the document format's version.
const Version = "v1"

// Input is all that the model depends on: tenant clusters (Clusters), objects of the hub (the other fields), or both.
type Input struct {
	Version string `json:"version"`
	// Clusters are tenant clusters, at most one for each tenant.
	Clusters []Cluster          `json:"clusters,omitempty"`
	Tenants  []translate.Tenant `json:"tenants,omitempty"`
	// AddressPools are sorted by age, the oldest first.
	AddressPools  []AddressPool            `json:"addressPools,omitempty"`
	Addresses     []translate.Addresses    `json:"addresses,omitempty"`
	LoadBalancers []translate.LoadBalancer `json:"loadBalancers,omitempty"`
	// Forbidden are the operator's networks that no tenant may target.
	Forbidden []netip.Prefix `json:"forbidden,omitempty"`
	// Health has results of health checks. All other targets are healthy.
	Health []Health `json:"health,omitempty"`
}

// Cluster is a tenant cluster.
type Cluster struct {
	Tenant string `json:"tenant"`
	// NodeAddressType is InternalIP, ExternalIP or Hostname; empty means InternalIP.
	NodeAddressType string `json:"nodeAddressType,omitempty"`
	// ClassRequired says that Services without a loadBalancerClass are not served.
	ClassRequired  bool                `json:"classRequired,omitempty"`
	Services       []translate.Service `json:"services,omitempty"`
	Nodes          []translate.Node    `json:"nodes,omitempty"`
	EndpointSlices []EndpointSlice     `json:"endpointSlices,omitempty"`
}

// EndpointSlice is a slice with the Service that it belongs to, in the same namespace.
type EndpointSlice struct {
	Namespace string `json:"namespace,omitempty"`
	Service   string `json:"service"`
	translate.Slice
}

// AddressPool is the hub's object of that kind.
type AddressPool struct {
	Name string `json:"name"`
	// Addresses are CIDRs and ranges first-last.
	Addresses             []string `json:"addresses"`
	Tenants               []string `json:"tenants,omitempty"`
	AutoAssign            bool     `json:"autoAssign,omitempty"`
	AvoidNetworkAddresses bool     `json:"avoidNetworkAddresses,omitempty"`
	// Priority orders pools: the one with the highest gives addresses first. Draining stops a pool from giving addresses.
	Priority int32 `json:"priority,omitempty"`
	Draining bool  `json:"draining,omitempty"`
}

// Health is the result of health checks of a node address, in all pools.
type Health struct {
	Address netip.Addr `json:"address"`
	// Port is the port of the check: a healthCheckNodePort, a NodePort, or 0 for the check of the node.
	Port   uint16              `json:"port,omitempty"`
	State  model.EndpointState `json:"state"`
	Weight uint16              `json:"weight,omitempty"`
}

// Output is the result for an Input.
type Output struct {
	Version string `json:"version"`
	// LoadBalancers and Addresses are the objects of the input and those that CCMs would write, with the external addresses
	// that the manager would allocate.
	LoadBalancers []translate.LoadBalancer `json:"loadBalancers,omitempty"`
	Addresses     []translate.Addresses    `json:"addresses,omitempty"`
	Model         model.Snapshot           `json:"model"`
	// Text is the model's text form.
	Text     string    `json:"text"`
	Problems []Problem `json:"problems,omitempty"`
	// Error says why the input could not be read. All other fields are empty then.
	Error string `json:"error,omitempty"`
}

// Problem is a problem and the object that has it.
type Problem struct {
	// Kind is Service, LoadBalancer, Addresses or AddressPool.
	Kind string `json:"kind"`
	// Tenant is the tenant of a Service, and empty for other kinds.
	Tenant string `json:"tenant,omitempty"`
	model.ObjectName
	translate.Problem
	// NotOurs says that KubeLB does not serve the Service, and that nothing is wrong with it.
	NotOurs bool `json:"notOurs,omitempty"`
}

// JSON reads an Input and returns an Output. It never fails: for invalid input it sets Output.Error.
func JSON(document []byte) []byte {
	in, err := parse(document)
	var out Output
	if err == nil {
		out, err = Explain(in)
	}
	if err != nil {
		out = Output{Version: Version, Error: err.Error()}
	}
	answer, err := json.Marshal(out)
	if err != nil {
		// Every Output can be encoded. Should that change, this returns the error.
		return fmt.Appendf(nil, `{"version":%q,"error":%q}`, Version, err.Error())
	}
	return answer
}

func parse(document []byte) (Input, error) {
	var in Input
	decoder := json.NewDecoder(bytes.NewReader(document))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&in); err != nil {
		return in, fmt.Errorf("not a document of version %s: %w", Version, err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return in, errors.New("something follows the end of the document")
	}
	return in, nil
}

// Explain translates the input. It returns an error if the input is ambiguous. Errors in single objects are in
// Output.Problems.
func Explain(in Input) (Output, error) {
	if in.Version != Version {
		return Output{}, fmt.Errorf("version is %q: this core reads %s", in.Version, Version)
	}
	e := explanation{out: Output{Version: Version, Addresses: slices.Clone(in.Addresses), LoadBalancers: slices.Clone(in.LoadBalancers)},
		tenants: map[string]translate.Tenant{}, allocator: ipam.NewAllocator(), filter: translate.TargetFilter{Forbidden: in.Forbidden, NodeOwners: translate.NewNodeOwners()}}
	for _, c := range sorted(in.Clusters, func(a, b Cluster) int { return cmp.Compare(a.Tenant, b.Tenant) }) {
		e.cluster(c)
	}
	slices.SortFunc(e.out.Addresses, func(a, b translate.Addresses) int { return compareNames(a.ObjectName, b.ObjectName) })
	slices.SortFunc(e.out.LoadBalancers, func(a, b translate.LoadBalancer) int { return compareNames(a.ObjectName, b.ObjectName) })
	if err := checkNames(in, e.out); err != nil {
		return Output{}, err
	}
	for _, t := range in.Tenants {
		e.tenants[t.Namespace()] = t
		e.filter.NodeOwners.SetTenant(t)
	}
	for _, a := range e.out.Addresses {
		e.filter.NodeOwners.SetAddresses(a)
	}
	e.pools(in.AddressPools)
	e.allocate()
	e.model(in.Health)
	return e.out, nil
}

// checkNames returns an error for two objects of one name. It checks the input's objects before those that CCMs would write.
func checkNames(in Input, out Output) error {
	names := map[string]bool{}
	add := func(kind, tenant string, name model.ObjectName) error {
		key := fmt.Sprintf("%s %s", kind, name)
		if tenant != "" {
			key += " of tenant " + tenant
		}
		if names[key] {
			return fmt.Errorf("%s appears twice", key)
		}
		names[key] = true
		return nil
	}
	var errs []error
	for _, c := range in.Clusters {
		errs = append(errs, add("Cluster", "", model.ObjectName{Name: c.Tenant}))
		for _, s := range c.Services {
			errs = append(errs, add("Service", c.Tenant, model.ObjectName{Namespace: s.Namespace, Name: s.Name}))
		}
		for _, n := range c.Nodes {
			errs = append(errs, add("Node", c.Tenant, model.ObjectName{Name: n.Name}))
		}
	}
	for _, t := range in.Tenants {
		errs = append(errs, add("Tenant", "", model.ObjectName{Name: t.Name}))
	}
	for _, p := range in.AddressPools {
		errs = append(errs, add("AddressPool", "", model.ObjectName{Name: p.Name}))
	}
	for _, h := range in.Health {
		errs = append(errs, add("Health", "", model.ObjectName{Name: netip.AddrPortFrom(h.Address, h.Port).String()}))
	}
	if err := firstOf(errs); err != nil {
		return err
	}
	for _, a := range out.Addresses {
		errs = append(errs, add("Addresses", "", a.ObjectName))
	}
	for _, lb := range out.LoadBalancers {
		errs = append(errs, add("LoadBalancer", "", lb.ObjectName))
	}
	return firstOf(errs)
}

// firstOf returns the first error in the order of their texts, so that the order of the input does not matter.
func firstOf(errs []error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(errs) == 0 {
		return nil
	}
	return slices.MinFunc(errs, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
}

func sorted[T any](list []T, compare func(a, b T) int) []T {
	return slices.SortedStableFunc(slices.Values(list), compare)
}

func compareNames(a, b model.ObjectName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
