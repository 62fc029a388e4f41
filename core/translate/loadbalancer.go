package translate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"kubelb.k8c.io/core/model"
)

// DefaultAffinityTimeout is Kubernetes' default for sessionAffinity ClientIP.
const DefaultAffinityTimeout = 3 * time.Hour

// port is an exposed port with its target, both valid.
type port struct {
	protocol model.Protocol
	number   uint16
	target   uint16
}

// Check returns every problem of a LoadBalancer as far as it can be seen without other LoadBalancers. tenant or addresses
// is nil when there is no such object.
func Check(lb LoadBalancer, tenant *Tenant, addresses *Addresses, fence Fence) []Problem {
	t := translation{lb: lb, tenant: tenant, fence: fence}
	if !t.served() {
		return t.problems
	}
	t.ports()
	t.sourceRanges()
	t.affinity()
	if lb.Reference == nil {
		t.inline("spec.endpoints[0].addresses", lb.Addresses)
	} else if t.referenceAllowed() {
		t.problems = append(t.problems, checkReference(lb, addresses, *tenant, fence)...)
	}
	if lb.Local != nil {
		t.inline("spec.endpoints[0].localAddresses", *lb.Local)
	}
	if lb.LocalOnly && t.forwarding() == model.NAT {
		t.problems = append(t.problems, Problem{Reason: ReasonClientAddressNotKept, Partial: true,
			Message: "externalTrafficPolicy is Local, but with forwarding nat the nodes see the gateway's address, not the client's"})
	}
	return t.problems
}

// Refused returns the first problem that keeps the LoadBalancer from being served.
func Refused(problems []Problem) (Problem, bool) {
	i := slices.IndexFunc(problems, func(p Problem) bool { return !p.Partial })
	if i < 0 {
		return Problem{}, false
	}
	return problems[i], true
}

type translation struct {
	lb       LoadBalancer
	tenant   *Tenant
	fence    Fence
	problems []Problem
}

func (t *translation) refuse(reason, format string, args ...any) {
	t.problems = append(t.problems, Problem{Reason: reason, Message: fmt.Sprintf(format, args...)})
}

func (t *translation) served() bool {
	name := t.lb.Namespace
	switch {
	case t.lb.Type != "LoadBalancer":
		t.refuse(ReasonNotLoadBalancer, "spec.type is %q: only LoadBalancer gets an external address", t.lb.Type)
	case t.tenant == nil:
		t.refuse(ReasonTenantNotFound, "no Tenant owns namespace %s: create the Tenant %s", name, strings.TrimPrefix(name, "tenant-"))
	case t.tenant.Disabled:
		t.refuse(ReasonTenantDisabled, "Tenant %s has spec.loadBalancer.disable set", t.tenant.Name)
	default:
		return true
	}
	return false
}

// ports matches exposed ports with endpoint ports: by name, or else by position.
func (t *translation) ports() []port {
	if len(t.lb.Ports) == 0 {
		t.refuse(ReasonNoPorts, "spec.ports is empty: name at least one port")
	}
	var ports []port
	for i, exposed := range t.lb.Ports {
		field := fmt.Sprintf("spec.ports[%d]", i)
		protocol, ok := model.ParseProtocol(exposed.Protocol)
		if !ok {
			t.refuse(ReasonUnsupportedProtocol, "%s.protocol is %s: only TCP and UDP can be load-balanced", field, exposed.Protocol)
			continue
		}
		if exposed.Number < 1 || exposed.Number > 65535 {
			t.refuse(ReasonInvalidPort, "%s.port is %d: use 1 to 65535", field, exposed.Number)
			continue
		}
		target, ok := t.target(exposed, i)
		if !ok {
			t.refuse(ReasonPortsMismatch, "%s (%q, %s): spec.endpoints[0].ports has no port of that name, protocol and position", field, exposed.Name, protocol)
			continue
		}
		if target.Number == 0 {
			t.refuse(ReasonNoNodePort, "%s: the Service has no NodePort for it, and no dataplane here forwards without: set spec.allocateLoadBalancerNodePorts to true", field)
			continue
		}
		if target.Number < 1 || target.Number > 65535 {
			t.refuse(ReasonInvalidPort, "spec.endpoints[0].ports: port %d for %s: use 1 to 65535", target.Number, field)
			continue
		}
		ports = append(ports, port{protocol, uint16(exposed.Number), uint16(target.Number)})
	}
	return ports
}

func (t *translation) target(exposed Port, position int) (Port, bool) {
	same := func(p Port) bool { return cmp.Or(p.Protocol, "TCP") == cmp.Or(exposed.Protocol, "TCP") }
	if exposed.Name != "" {
		for _, p := range t.lb.EndpointPorts {
			if p.Name == exposed.Name && same(p) {
				return p, true
			}
		}
	}
	if position < len(t.lb.EndpointPorts) && same(t.lb.EndpointPorts[position]) {
		return t.lb.EndpointPorts[position], true
	}
	return Port{}, false
}

// sourceRanges returns the allowed client networks by family, masked, sorted, without those inside another.
func (t *translation) sourceRanges() []netip.Prefix {
	var ranges []netip.Prefix
	for i, text := range t.lb.SourceRanges {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil || prefix.Addr().Is4In6() {
			t.refuse(ReasonInvalidSourceRange, "spec.loadBalancerSourceRanges[%d] %q is not a CIDR such as 192.0.2.0/24", i, text)
			continue
		}
		ranges = append(ranges, prefix.Masked())
	}
	slices.SortFunc(ranges, model.ComparePrefix)
	var outer []netip.Prefix
	for _, r := range ranges {
		if len(outer) == 0 || !outer[len(outer)-1].Contains(r.Addr()) {
			outer = append(outer, r)
		}
	}
	return outer
}

func (t *translation) affinity() time.Duration {
	if !t.lb.Affinity {
		return 0
	}
	timeout := cmp.Or(t.lb.AffinityTimeout, DefaultAffinityTimeout)
	if timeout < time.Second || timeout > model.MaxAffinity || timeout%time.Second != 0 {
		t.refuse(ReasonInvalidAffinity, "spec.persistence.timeoutSeconds is %v: use 1 to 86400", timeout.Seconds())
		return 0
	}
	return timeout
}

func (t *translation) forwarding() model.Forwarding {
	switch t.lb.Forwarding {
	case "transparent":
		return model.Transparent
	case "direct":
		return model.Direct
	}
	return model.NAT
}

// referenceAllowed: a tenant refers to its own objects only.
func (t *translation) referenceAllowed() bool {
	ns := t.lb.Reference.Namespace
	if ns != "" && ns != t.lb.Namespace {
		t.refuse(ReasonReferenceNotAllowed, "spec.endpoints[0].addressesReference.namespace is %q: leave it empty; only Addresses in %s can be referred to", ns, t.lb.Namespace)
		return false
	}
	return true
}

// inline checks targets that stand in the LoadBalancer itself: one bad target refuses the whole.
func (t *translation) inline(field string, list []Address) []netip.Addr {
	good, refused := targets(field, list, *t.tenant, t.fence)
	for _, r := range refused {
		t.refuse(ReasonEndpointRefused, "%s", r)
	}
	return good
}

// checkReference checks the Addresses that a LoadBalancer refers to: bad targets are left out and named.
func checkReference(lb LoadBalancer, addresses *Addresses, tenant Tenant, fence Fence) []Problem {
	if addresses == nil {
		return []Problem{{Reason: ReasonAddressesNotFound, Message: fmt.Sprintf(
			"Addresses %s/%s does not exist: the tenant's CCM writes it; it is served as soon as it is there", lb.Namespace, lb.Reference.Name)}}
	}
	return CheckAddresses(*addresses, tenant, fence)
}

// CheckAddresses returns what of an Addresses object cannot be used: targets that the tenant may not have are left out and
// named, and it is said when none is left.
func CheckAddresses(a Addresses, tenant Tenant, fence Fence) []Problem {
	good, refused := targets("Addresses "+a.Name+" spec.addresses", a.List, tenant, fence)
	var problems []Problem
	if len(good) == 0 {
		problems = append(problems, Problem{Reason: ReasonNoNodes, Partial: true,
			Message: fmt.Sprintf("there are no available nodes: Addresses %s/%s holds none that can be used, so connections are refused", a.Namespace, a.Name)})
	}
	if len(refused) > 0 {
		problems = append(problems, Problem{Reason: ReasonEndpointRefused, Message: "left out: " + strings.Join(refused, "; "), Partial: true})
	}
	return problems
}

// targets splits a list into addresses that the tenant may target, sorted and unique, and messages for the others.
func targets(field string, list []Address, tenant Tenant, fence Fence) (good []netip.Addr, refused []string) {
	for i, a := range list {
		if a.IP == "" {
			refused = append(refused, fmt.Sprintf("%s[%d].hostname %q: the hub resolves no names; give its address in ip", field, i, a.Hostname))
			continue
		}
		address, err := fence.Check(a.IP, tenant)
		if err != nil {
			refused = append(refused, fmt.Sprintf("%s[%d].ip: %v", field, i, err))
			continue
		}
		good = append(good, address)
	}
	slices.SortFunc(good, netip.Addr.Compare)
	return slices.Compact(good), refused
}
