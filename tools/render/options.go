package render

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/spf13/pflag"

	"kubelb.k8c.io/tools/validation"
)

// defaultTenant owns the Services if no tenant is given.
const defaultTenant = "example"

// Options correspond to flags of the CCM and the manager.
type Options struct {
	// Tenant owns the Services, nodes and EndpointSlices. Empty means the only given Tenant, or else "example".
	Tenant string
	// NodeAddressType is InternalIP, ExternalIP or Hostname; empty means InternalIP.
	NodeAddressType string
	ClassRequired   bool
	// ForbiddenCIDRs are networks that no tenant may target.
	ForbiddenCIDRs []string
	// Validator checks what API servers refuse. nil means a new one.
	Validator *validation.Validator
	// AsStored accepts all objects, also those that API servers refuse.
	AsStored bool
}

// AddFlags defines the options as flags.
func (o *Options) AddFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.Tenant, "tenant", "", "the tenant that owns the Services (default: the only given Tenant, or \""+defaultTenant+"\")")
	flags.StringVar(&o.NodeAddressType, "node-address-type", "InternalIP", "which addresses of nodes are targets: InternalIP, ExternalIP or Hostname, as in the CCM's flag of this name")
	flags.BoolVar(&o.ClassRequired, "use-loadbalancer-class", false, "skip Services without loadBalancerClass kubelb, as the CCM's flag of this name does")
	flags.StringSliceVar(&o.ForbiddenCIDRs, "forbidden-cidrs", nil, "networks that no tenant may target, as in the manager's flag of this name")
}

// Check returns an error for an invalid option.
func (o *Options) Check() error {
	if !slices.Contains([]string{"", "InternalIP", "ExternalIP", "Hostname"}, o.NodeAddressType) {
		return fmt.Errorf("--node-address-type is %q: use InternalIP, ExternalIP or Hostname", o.NodeAddressType)
	}
	_, err := o.forbidden()
	return err
}

func (o *Options) forbidden() ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range o.ForbiddenCIDRs {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("--forbidden-cidrs: %w", err)
		}
		out = append(out, prefix.Masked())
	}
	return out, nil
}
