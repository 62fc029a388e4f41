package translate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/phrase"
)

// DefaultAffinityTimeout is Kubernetes' default for sessionAffinity ClientIP.
const DefaultAffinityTimeout = 3 * time.Hour

// port is an exposed port with its target, both valid.
type port struct {
	protocol model.Protocol
	number   uint16
	target   uint16
	// nodePort is set if target is a NodePort.
	nodePort bool
}

// Check returns all problems of a LoadBalancer that do not depend on other LoadBalancers. tenant or addresses is nil if
// the object does not exist. It also sets the families of the endpoints, for Allocate.
func Check(lb *LoadBalancer, tenant *Tenant, addresses *Addresses, filter TargetFilter) []Problem {
	var r *resolution
	if addresses != nil && tenant != nil {
		r = resolve(*addresses, *tenant, filter)
	}
	t := parse(lb, tenant, r != nil, filter)
	lb.endpointFamilies = families(t.own)
	if t.referred && r != nil {
		lb.endpointFamilies = families(r.usable)
	}
	return t.withReferenceProblems(t.problems, r)
}

// families returns the families of the addresses.
func families(addresses []netip.Addr) (out []ipam.Family) {
	for _, family := range []ipam.Family{ipam.IPv4, ipam.IPv6} {
		if slices.ContainsFunc(addresses, func(a netip.Addr) bool { return ipam.FamilyOf(a) == family }) {
			out = append(out, family)
		}
	}
	return out
}

// Refused returns the first problem that is not partial.
func Refused(problems []Problem) (Problem, bool) {
	i := slices.IndexFunc(problems, func(p Problem) bool { return !p.Partial })
	if i < 0 {
		return Problem{}, false
	}
	return problems[i], true
}

// translation is a parsed LoadBalancer.
type translation struct {
	lb       *LoadBalancer
	tenant   *Tenant
	filter   TargetFilter
	problems []Problem

	vips         []netip.Addr
	ports        []port
	sourceRanges []netip.Prefix
	affinity     time.Duration
	// idle is how long a connection without packets is kept; 0 means the dataplane's default.
	idle time.Duration
	// referred is set if the LoadBalancer refers to an Addresses object that exists and that it may refer to.
	referred bool
	// own are the targets in the LoadBalancer itself, local those with a ready endpoint.
	own, local []netip.Addr
}

// parse parses the LoadBalancer without other objects. found says whether the Addresses object exists that it refers to.
func parse(lb *LoadBalancer, tenant *Tenant, found bool, filter TargetFilter) *translation {
	t := &translation{lb: lb, tenant: tenant, filter: filter}
	if !t.checkServed() {
		return t
	}
	t.problems = slices.Clone(lb.Malformed)
	t.vips = t.parseVIPs()
	t.ports = t.parsePorts()
	t.sourceRanges = t.parseSourceRanges()
	t.affinity = t.parseAffinity()
	t.idle = t.parseIdleTimeout()
	t.checkEnums()
	if lb.Reference == nil {
		t.own = t.checkInline(ownField, lb.own())
	} else if t.referenceAllowed() {
		if t.referred = found; !found {
			t.refuse(ReasonAddressesNotFound, referenceField, "Addresses %s/%s does not exist: the tenant's CCM creates it; the LoadBalancer is served once it exists", lb.Namespace, lb.Reference.Name)
		}
	}
	local := lb.local()
	if lb.Local != nil {
		t.local = t.checkInline(localField, local)
	}
	if t.onlyLocal() && len(local) == 0 {
		t.problems = append(t.problems, Problem{Reason: ReasonNoLocalEndpoints, Field: localField, Partial: true,
			Message: "externalTrafficPolicy is Local and no node has a ready endpoint, so connections are refused"})
	}
	if lb.LocalOnly && t.forwarding() == model.NAT && lb.ProxyProtocol == "" {
		t.problems = append(t.problems, Problem{Reason: ReasonClientAddressNotKept, Field: "spec.externalTrafficPolicy", Partial: true,
			Message: "externalTrafficPolicy is Local, but with forwarding nat the nodes see the gateway's address, not the client's"})
	}
	return t
}

// onlyLocal reports whether the endpoints are the nodes with a ready endpoint that the tenant lists.
func (t *translation) onlyLocal() bool { return t.lb.LocalOnly && t.lb.Local != nil }

// refuse adds a problem because of which the LoadBalancer is not served.
func (t *translation) refuse(reason, field, format string, args ...any) {
	t.problems = append(t.problems, Problem{Reason: reason, Field: field, Message: fmt.Sprintf(format, args...)})
}

func (t *translation) checkServed() bool {
	name := t.lb.Namespace
	switch {
	case t.lb.Type != typeLoadBalancer:
		t.refuse(ReasonNotLoadBalancer, "spec.type", "spec.type is %q: only LoadBalancer gets an external address", t.lb.Type)
	case t.tenant == nil:
		t.refuse(ReasonTenantNotFound, "metadata.namespace", "no Tenant owns namespace %s: create the Tenant %s", name, strings.TrimPrefix(name, TenantNamespacePrefix))
	case t.tenant.Deleting:
		t.refuse(ReasonTenantDeleted, "metadata.namespace", "the management cluster's operator is deleting Tenant %s: none of its Services is served any more, and their addresses may go to other tenants", t.tenant.Name)
	case t.tenant.Disabled:
		t.refuse(ReasonTenantDisabled, "metadata.namespace", "Tenant %s is disabled by the management cluster's operator (spec.loadBalancer.disable or spec.revoked)", t.tenant.Name)
	default:
		return true
	}
	return false
}

// parseVIPs returns the addresses on record, each once.
func (t *translation) parseVIPs() []netip.Addr {
	var vips []netip.Addr
	for i, vip := range t.lb.VIPs {
		if !vip.IsValid() || vip.Zone() != "" || vip.Is4In6() {
			t.refuse(ReasonInvalidAddress, fmt.Sprintf("status.addresses[%d]", i), "status.addresses[%d] is %s: only plain IPv4 and IPv6 addresses can be served", i, vip)
			continue
		}
		if !slices.Contains(vips, vip) {
			vips = append(vips, vip)
		}
	}
	return vips
}

// parsePorts matches exposed ports with endpoint ports: by name, or else by position.
func (t *translation) parsePorts() []port {
	if len(t.lb.Ports) == 0 {
		t.refuse(ReasonNoPorts, "spec.ports", "spec.ports is empty: name at least one port")
	}
	if problem, found := tooManyPorts(len(t.lb.Ports)); found {
		t.problems = append(t.problems, problem)
		return nil
	}
	var ports []port
	for i, exposed := range t.lb.Ports {
		field := fmt.Sprintf("spec.ports[%d]", i)
		protocol, ok := model.ParseProtocol(exposed.Protocol)
		if !ok {
			t.refuse(ReasonUnsupportedProtocol, field+".protocol", "%s.protocol is %s: only TCP and UDP can be load-balanced", field, exposed.Protocol)
			continue
		}
		if exposed.Number < 1 || exposed.Number > 65535 {
			t.refuse(ReasonInvalidPort, field+".port", "%s.port is %d: use 1 to 65535", field, exposed.Number)
			continue
		}
		if !t.admitted(protocol, exposed.Number) {
			t.problems = append(t.problems, Problem{Reason: ReasonLimitReached, Field: field, Partial: true, Message: fmt.Sprintf(
				"%s: Tenant %s has as many ports as it may have (spec.limits.ports), so %s port %d is not served: remove a port that is not needed, or have the management cluster's operator raise the limit", field, t.tenant.Name, protocol, exposed.Number)})
			continue
		}
		target, ok := t.target(exposed, i)
		if !ok {
			t.refuse(ReasonPortsMismatch, field, "%s (%q, %s): spec.endpoints[0].ports has no port of that name, protocol and position", field, exposed.Name, protocol)
			continue
		}
		nodePort := target.Number != 0
		if !nodePort && t.forwarding() == model.Direct {
			// The node gets the packet as the gateway did, for the VIP and its port, and kube-proxy takes it for these.
			target.Number = exposed.Number
		} else if !nodePort {
			t.refuse(ReasonNoNodePort, field, "%s: the Service has no NodePort for it: set spec.allocateLoadBalancerNodePorts to true, or, where the nodes are on a segment of the gateways, set %s to direct", field, AnnotationForwarding)
			continue
		}
		if target.Number < 1 || target.Number > 65535 {
			t.refuse(ReasonInvalidPort, "spec.endpoints[0].ports", "spec.endpoints[0].ports: port %d for %s: use 1 to 65535", target.Number, field)
			continue
		}
		if nodePort && !t.checkBackendPort("spec.endpoints[0].ports", target.Number) {
			continue
		}
		p := port{protocol, uint16(exposed.Number), uint16(target.Number), nodePort}
		if slices.ContainsFunc(ports, func(o port) bool { return o.protocol == p.protocol && o.number == p.number }) {
			t.refuse(ReasonDuplicatePort, field+".port", "%s: %s port %d is listed twice; list each port once", field, protocol, p.number)
			continue
		}
		ports = append(ports, p)
	}
	if health := t.lb.HealthCheckNodePort; health < 0 || health > 65535 {
		t.refuse(ReasonInvalidPort, "spec.healthCheckNodePort", "spec.healthCheckNodePort is %d: use 1 to 65535, or 0 for none", health)
	} else if health > 0 {
		t.checkBackendPort("spec.healthCheckNodePort", health)
	}
	return ports
}

// admitted reports whether the tenant's limit of ports allows the port.
func (t *translation) admitted(protocol model.Protocol, number int32) bool {
	return t.lb.AdmittedPorts == nil || slices.ContainsFunc(*t.lb.AdmittedPorts, func(p Port) bool { return p.Number == number && cmp.Or(p.Protocol, "TCP") == protocol.String() })
}

// checkBackendPort refuses a port of the nodes outside the tenant's range, such as that of sshd or kubelet.
func (t *translation) checkBackendPort(field string, number int32) bool {
	allowed := t.tenant.backendPorts()
	if number >= int32(allowed.First) && number <= int32(allowed.Last) {
		return true
	}
	t.refuse(ReasonPortRefused, field, "%s: port %d is outside of %d to %d, the NodePorts that Tenant %s may use: let the cluster choose it, or have the management cluster's operator change spec.backendPorts of the Tenant",
		field, number, allowed.First, allowed.Last, t.tenant.Name)
	return false
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

// parseSourceRanges returns the allowed client networks by family, masked, sorted, without those inside another.
func (t *translation) parseSourceRanges() []netip.Prefix {
	if problem, found := tooManySourceRanges("spec.loadBalancerSourceRanges", t.lb.SourceRanges); found {
		t.problems = append(t.problems, problem)
		return nil
	}
	var ranges []netip.Prefix
	for i, text := range t.lb.SourceRanges {
		prefix, valid := ParseSourceRange(text)
		if !valid {
			t.refuse(ReasonInvalidSourceRange, fmt.Sprintf("spec.loadBalancerSourceRanges[%d]", i), "spec.loadBalancerSourceRanges[%d] %q is not a CIDR such as 192.0.2.0/24", i, text)
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

func (t *translation) parseAffinity() time.Duration {
	if !t.lb.Affinity {
		return 0
	}
	timeout := cmp.Or(time.Duration(t.lb.AffinitySeconds)*time.Second, DefaultAffinityTimeout)
	if timeout < time.Second || timeout > model.MaxAffinity {
		t.refuse(ReasonInvalidAffinity, "spec.persistence.timeoutSeconds", "spec.persistence.timeoutSeconds is %d: use 1 to 86400", t.lb.AffinitySeconds)
		return 0
	}
	return timeout
}

func (t *translation) parseIdleTimeout() time.Duration {
	if t.lb.IdleTimeout == "" {
		return 0
	}
	timeout, valid := ParseIdleTimeout(t.lb.IdleTimeout)
	if !valid {
		t.problems = append(t.problems, InvalidIdleTimeout("spec.idleTimeout", t.lb.IdleTimeout))
	}
	return timeout
}

// checkEnums refuses invalid values of fields that the hub's schema does not check.
func (t *translation) checkEnums() {
	check := func(reason, field, value string, values ...string) {
		if value != "" && !slices.Contains(values, value) {
			t.refuse(reason, field, "%s is %q: use one of %s", field, value, strings.Join(values, ", "))
		}
	}
	check(ReasonInvalidFamilyPolicy, "spec.ipFamilyPolicy", string(t.lb.FamilyPolicy), string(ipam.SingleStack), string(ipam.PreferDualStack), string(ipam.RequireDualStack))
	check(ReasonInvalidForwarding, "spec.forwarding", t.lb.Forwarding, forwardings...)
	if t.lb.ProxyProtocol != "" && t.lb.ProxyProtocol != ProxyProtocolV2 {
		t.problems = append(t.problems, InvalidProxyProtocol("spec.proxyProtocol", t.lb.ProxyProtocol))
	}
}

// ProxyProtocolV2 is the only supported version of the PROXY protocol: the binary one.
const ProxyProtocolV2 = "v2"

// InvalidProxyProtocol returns the problem of an unsupported version of the PROXY protocol in a field or annotation.
func InvalidProxyProtocol(field, version string) Problem {
	return Problem{Reason: ReasonInvalidProxyProtocol, Field: field, Message: fmt.Sprintf("%s is %q: use %s, or remove it", field, version, ProxyProtocolV2)}
}

// forwardings are the names of the forwarding modes.
var forwardings = []string{model.NAT.String(), model.Transparent.String(), model.Direct.String()}

func (t *translation) forwarding() model.Forwarding {
	switch t.lb.Forwarding {
	case "transparent":
		return model.Transparent
	case "direct":
		return model.Direct
	}
	return model.NAT
}

// referenceAllowed refuses references to objects in other namespaces.
func (t *translation) referenceAllowed() bool {
	ns := t.lb.Reference.Namespace
	if ns != "" && ns != t.lb.Namespace {
		t.refuse(ReasonReferenceNotAllowed, "spec.endpoints[0].addressesReference.namespace", "spec.endpoints[0].addressesReference.namespace is %q: leave it empty; only Addresses in %s can be referred to", ns, t.lb.Namespace)
		return false
	}
	return true
}

// checkInline checks targets in the LoadBalancer itself. Targets that the tenant may not have are left out. If none is left, the LoadBalancer is
// refused.
func (t *translation) checkInline(field string, list []Address) []netip.Addr {
	good, refused := checkTargets(field, list, *t.tenant, t.filter)
	if len(good) > 0 && refused.all > 0 {
		t.problems = append(t.problems, leftOut(refused.first[0].field, "", refused))
		refused = refusedTargets{}
	}
	for _, r := range refused.first {
		t.refuse(ReasonEndpointRefused, r.field, "%s", r.message)
	}
	if more := refused.all - len(refused.first); more > 0 {
		t.refuse(ReasonEndpointRefused, field, "%s: %d more are refused", field, more)
	}
	good, excess := truncate(good, t.tenant.ownEndpointLimit())
	if excess > 0 {
		t.problems = append(t.problems, t.tenant.tooManyEndpoints(field, excess, t.tenant.ownEndpointLimit()))
	}
	return good
}

// resolution has the usable targets of an Addresses object. It is shared and never changed.
type resolution struct {
	usable   []netip.Addr
	problems []Problem
}

// resolve checks the targets of an Addresses object. Targets that the tenant may not have are left out, and named in a
// problem. If none is left, that is a problem, too.
func resolve(a Addresses, tenant Tenant, filter TargetFilter) *resolution {
	good, refused := checkTargets("spec.addresses", a.List, tenant, filter)
	good, excess := truncate(good, tenant.EndpointsPerLoadBalancer)
	r := &resolution{usable: good}
	if excess > 0 {
		r.problems = append(r.problems, tenant.tooManyEndpoints(addressesField(a.Name), excess, tenant.EndpointsPerLoadBalancer))
	}
	if len(good) == 0 {
		r.problems = append(r.problems, Problem{Reason: ReasonNoNodes, Partial: true,
			Message: fmt.Sprintf("there are no available nodes: Addresses %s/%s has none that can be used, so connections are refused", a.Namespace, a.Name)})
	}
	if refused.all > 0 {
		r.problems = append(r.problems, leftOut("", "Addresses "+a.Name+" ", refused))
	}
	return r
}

// leftOut returns the problem of refused targets of a list that has other targets.
func leftOut(field, prefix string, refused refusedTargets) Problem {
	messages := make([]string, len(refused.first))
	for i, t := range refused.first {
		messages[i] = prefix + t.message
	}
	return Problem{Reason: ReasonEndpointRefused, Field: field, Message: "left out: " + phrase.FewOf(messages, refused.all, "; "), Partial: true}
}

// Fields of a LoadBalancer with its targets.
const (
	ownField       = "spec.endpoints[0].addresses"
	localField     = "spec.endpoints[0].localAddresses"
	referenceField = "spec.endpoints[0].addressesReference"
)

// withReferenceProblems adds problems of the Addresses that the LoadBalancer refers to, and of families that no target has.
func (t *translation) withReferenceProblems(problems []Problem, r *resolution) []Problem {
	if t.tenant == nil {
		return problems
	}
	// These come first, since the address does not work at all.
	problems = slices.Concat(t.familiesWithoutTargets(r), problems)
	if !t.referred || r == nil {
		return problems
	}
	for _, p := range r.problems {
		p.Field = referenceField
		problems = append(problems, p)
	}
	if kind, _ := t.check(); kind == CheckNode || t.onlyLocal() {
		return problems
	}
	if _, excess := truncate(r.usable, t.tenant.ownEndpointLimit()); excess > 0 {
		problem := t.tenant.tooManyEndpoints(addressesField(t.lb.Reference.Name), excess, t.tenant.ownEndpointLimit())
		problem.Field = referenceField
		problems = append(problems, problem)
	}
	return problems
}

func addressesField(addresses string) string { return "Addresses " + addresses + " spec.addresses" }

// familiesWithoutTargets returns a problem for each external address of a family that no target has, if there are targets of the other family.
func (t *translation) familiesWithoutTargets(r *resolution) (problems []Problem) {
	targets, field := t.own, ownField
	switch {
	case t.onlyLocal():
		targets, field = t.local, localField
	case t.lb.Reference != nil && r != nil:
		targets, field = r.usable, referenceField
	}
	for _, vip := range t.vips {
		if len(targets) == 0 || slices.ContainsFunc(targets, func(a netip.Addr) bool { return a.Is4() == vip.Is4() }) {
			continue
		}
		problems = append(problems, Problem{Reason: ReasonNoNodesOfFamily, Field: field, Partial: true, Message: fmt.Sprintf(
			"%[1]s is not served: no node that takes its traffic has an %[2]s address, so connections to it are refused. Give nodes an %[2]s address, or the Service another family (spec.ipFamilies)", vip, ipam.FamilyOf(vip))})
	}
	return problems
}

// CheckAddresses returns the problems of an Addresses object.
func CheckAddresses(a Addresses, tenant Tenant, filter TargetFilter) []Problem {
	problems, _ := CheckAddressFamilies(a, tenant, filter)
	return problems
}

// CheckAddressFamilies is CheckAddresses, and also returns the families of the usable addresses.
func CheckAddressFamilies(a Addresses, tenant Tenant, filter TargetFilter) ([]Problem, []ipam.Family) {
	r := resolve(a, tenant, filter)
	return r.problems, families(r.usable)
}

// CheckAndCountAddresses is CheckAddresses, and also returns how many endpoints a LoadBalancer has with this list, of the family that has more.
func CheckAndCountAddresses(a Addresses, tenant Tenant, filter TargetFilter) (problems []Problem, endpoints int) {
	r := resolve(a, tenant, filter)
	return r.problems, countLargerFamily(r.usable)
}

func countLargerFamily(targets []netip.Addr) int {
	four := 0
	for _, a := range targets {
		if a.Is4() {
			four++
		}
	}
	return max(four, len(targets)-four)
}

// refusedTargets has the first refused entries of a list, and the number of all. Messages for all of them would take more memory than the list.
type refusedTargets struct {
	first []refusedTarget
	all   int
}

// refusedTarget has the field of a refused entry, and the reason.
type refusedTarget struct{ field, message string }

// add counts an entry, and keeps it if it is one of the first.
func (r *refusedTargets) add(describe func() refusedTarget) {
	if r.all++; len(r.first) < phrase.Named {
		r.first = append(r.first, describe())
	}
}

// checkTargets returns the addresses of a list that the tenant may target, sorted and unique, and the entries that it may not target.
func checkTargets(field string, list []Address, tenant Tenant, filter TargetFilter) (good []netip.Addr, refused refusedTargets) {
	for i, a := range list {
		if a.IP == "" {
			refused.add(func() refusedTarget {
				path := fmt.Sprintf("%s[%d].hostname", field, i)
				return refusedTarget{path, fmt.Sprintf("%s %q: the hub resolves no names; give its address in ip", path, a.Hostname)}
			})
			continue
		}
		address, err := filter.Check(a.IP, tenant)
		if err != nil {
			refused.add(func() refusedTarget {
				path := fmt.Sprintf("%s[%d].ip", field, i)
				return refusedTarget{path, fmt.Sprintf("%s: %v", path, err)}
			})
			continue
		}
		good = append(good, address)
	}
	slices.SortFunc(good, netip.Addr.Compare)
	return slices.Compact(good), refused
}

// CountTargets returns how many addresses of the list a LoadBalancer of the tenant can target, of the family that has more.
func CountTargets(list []Address, tenant Tenant, filter TargetFilter) int {
	good, _ := checkTargets("", list, tenant, filter)
	kept, _ := truncate(good, tenant.EndpointsPerLoadBalancer)
	return countLargerFamily(kept)
}

// ownEndpointLimit returns how many endpoints of each family a LoadBalancer may have that it does not share with others; 0 means no limit.
func (t Tenant) ownEndpointLimit() uint32 {
	return cmp.Or(t.EndpointsPerLoadBalancer, t.OwnEndpointsPerLoadBalancer)
}

// truncate keeps the first targets of each family up to the limit, and counts the others. 0 keeps all.
func truncate(targets []netip.Addr, limit uint32) (kept []netip.Addr, excess int) {
	if limit == 0 {
		return targets, 0
	}
	four, six := ofFamily(targets, true), ofFamily(targets, false)
	// A copy: a slice of the list would keep the whole list in memory.
	kept = slices.Concat(four[:min(int(limit), len(four))], six[:min(int(limit), len(six))])
	return kept, len(targets) - len(kept)
}

func (t Tenant) tooManyEndpoints(field string, excess int, limit uint32) Problem {
	return Problem{Reason: ReasonLimitReached, Field: field, Partial: true, Message: fmt.Sprintf(
		"%s: %d more than the %d of each family that Tenant %s may have (spec.limits.endpointsPerLoadBalancer) are left out: have the management cluster's operator raise it, or exclude nodes from load balancers",
		field, excess, limit, t.Name)}
}
