package render

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/spf13/pflag"

	"kubelb.k8c.io/tools/validation"
)

// defaultTenant owns the Services that are given.
const defaultTenant = "example"

// Options are what operators set by flags of the CCM and the manager.
type Options struct {
	// Tenant owns the Services, nodes and EndpointSlices; empty means the only Tenant that is given, or else "example".
	Tenant string
	// NodeAddressType is InternalIP, ExternalIP or Hostname; empty means InternalIP.
	NodeAddressType string
	ClassRequired   bool
	// ForbiddenCIDRs are networks that no tenant may target.
	ForbiddenCIDRs []string
	// Judge says what API servers refuse; nil for one that is made for the purpose.
	Judge *validation.Validator
	// AsStored takes the objects as they are, although API servers may refuse them.
	AsStored bool
}

// AddFlags defines the options as flags.
func (o *Options) AddFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.Tenant, "tenant", "", "the tenant that owns the Services (default: the only Tenant that is given, or \""+defaultTenant+"\")")
	flags.StringVar(&o.NodeAddressType, "node-address-type", "InternalIP", "which addresses of nodes are targets: InternalIP, ExternalIP or Hostname, as for the CCM")
	flags.BoolVar(&o.ClassRequired, "use-loadbalancer-class", false, "pass over Services without loadBalancerClass kubelb, as the CCM's flag of this name")
	flags.StringSliceVar(&o.ForbiddenCIDRs, "forbidden-cidrs", nil, "networks that no tenant may target, as for the manager")
}

// Check reports an option that has no meaning.
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
