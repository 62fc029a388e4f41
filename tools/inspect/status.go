package inspect

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/phrase"
	"kubelb.k8c.io/manager/membership"
)

// Status is the page of `kubelb status`.
type Status struct {
	Gateways []GatewayLine `json:"gateways"`
	Pools    []PoolLine    `json:"pools"`
	Tenants  []TenantLine  `json:"tenants"`
	Problems []Problem     `json:"problems"`
}

// GatewayLine is one gateway. Sessions is how many of its BGP sessions are established. Numbers are absent if the gateway is gone or unknown, because those in its
// object may be out of date.
type GatewayLine struct {
	Name      string `json:"name"`
	State     string `json:"state"`
	Backend   string `json:"backend"`
	Frontends *int32 `json:"frontends,omitempty"`
	Addresses *int32 `json:"addresses,omitempty"`
	Sessions  string `json:"sessions,omitempty"`
}

// PoolLine is one AddressPool.
type PoolLine struct {
	Name  string `json:"name"`
	State string `json:"state"`
	Used4 int64  `json:"used4"`
	Free4 string `json:"free4"`
	Used6 int64  `json:"used6"`
	Free6 string `json:"free6"`
}

// TenantLine is one tenant, with the number of its LoadBalancers, and the number that are Ready.
type TenantLine struct {
	Name          string `json:"name"`
	State         string `json:"state"`
	LoadBalancers int    `json:"loadBalancers"`
	Ready         int    `json:"ready"`
}

// Problem is a fault, or something that may soon become a fault.
type Problem struct {
	// Severity is error if a LoadBalancer may not be served, else warning.
	Severity string `json:"severity"`
	// Object is kind and name.
	Object  string `json:"object"`
	Message string `json:"message"`
}

// Severities of problems.
const (
	Error   = "error"
	Warning = "warning"
)

// States of gateways and pools. A gateway or pool with a fault has the reason of its condition as its state instead.
const (
	ready    = "Ready"
	gone     = "Gone"
	draining = "Draining"
	unknown  = "Unknown"
)

// Broken reports whether a problem is an error.
func (s Status) Broken() bool {
	return slices.ContainsFunc(s.Problems, func(p Problem) bool { return p.Severity == Error })
}

// Status returns the page.
func (h *Snapshot) Status() Status {
	var s Status
	report := func(severity, object, format string, args ...any) {
		s.Problems = append(s.Problems, Problem{severity, plain.Line(object), plain.Line(fmt.Sprintf(format, args...))})
	}
	if outdated := Outdated(h.Elected, h.Now); outdated != "" {
		report(Error, "hub", "%s", outdated)
	}
	working := 0
	for i := range h.Gateways {
		line := h.gatewayLine(&h.Gateways[i], report)
		if line.State == ready {
			working++
		}
		s.Gateways = append(s.Gateways, line)
	}
	switch {
	case len(h.Gateways) == 0:
		report(Error, "hub", "there is no gateway: start a kubelb-manager with the gateway role")
	case working == 0:
		report(Error, "hub", "none of the %d gateways works", len(h.Gateways))
	}
	for i := range h.Pools {
		s.Pools = append(s.Pools, poolLine(&h.Pools[i], report))
	}
	if len(h.Pools) == 0 {
		report(Error, "hub", "there is no AddressPool: no LoadBalancer gets an address")
	}
	for i := range h.Tenants {
		s.Tenants = append(s.Tenants, h.tenantLine(&h.Tenants[i], report))
	}
	h.reportOrphans(report)
	slices.SortStableFunc(s.Problems, func(a, b Problem) int { return cmp.Compare(a.Severity, b.Severity) })
	return s
}

// reporter adds a problem.
type reporter func(severity, object, format string, args ...any)

// stateOf returns the state of a gateway in one word, and a message. The message is empty if the state needs no explanation.
func (h *Snapshot) stateOf(g *v1alpha1.Gateway) (state, message string) {
	condition := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ConditionReady)
	_, expired := h.leaseExpired(g.Name)
	lease, hasLease := h.Leases[g.Name]
	switch {
	case expired:
		return gone, ""
	case !hasLease:
		return unknown, fmt.Sprintf("has no Lease in namespace %s, so it is not known whether it runs. Is that the manager's namespace (--namespace)?", h.Namespace)
	case membership.WriteError(&lease) != "":
		return unknown, "cannot write its Gateway object, which is out of date: " + membership.WriteError(&lease)
	case condition == nil, condition.Reason == v1alpha1.ReasonNotHeard:
		return unknown, "has not reported its state yet"
	case condition.Status != metav1.ConditionTrue:
		return condition.Reason, condition.Reason + ": " + oneLine(condition.Message)
	case g.Spec.Draining:
		return draining, ""
	case condition.Reason != "InSync":
		return ready, condition.Reason + ": " + condition.Message
	}
	return ready, ""
}

// Works reports whether a gateway renews its Lease, is ready, and does not drain.
func (h *Snapshot) Works(g *v1alpha1.Gateway) bool {
	state, _ := h.stateOf(g)
	return state == ready
}

// oneLine joins the lines of a message.
func oneLine(message string) string {
	return strings.ReplaceAll(strings.ReplaceAll(message, ":\n", ": "), "\n", "; ")
}

// reportMissing reports a problem for each thing that is missing on the host of a gateway. It skips lines that are part of state, the message of the gateway's state.
func reportMissing(g *v1alpha1.Gateway, state, object string, report reporter) {
	for _, c := range g.Status.Conditions {
		if !strings.HasPrefix(c.Type, v1alpha1.ConditionHostPrefix) || c.Status != metav1.ConditionFalse {
			continue
		}
		for line := range strings.Lines(c.Message) {
			if line = strings.TrimSpace(line); !strings.Contains(state, line) {
				report(Warning, object, "%s: %s", c.Type, line)
			}
		}
	}
}

func (h *Snapshot) gatewayLine(g *v1alpha1.Gateway, report reporter) GatewayLine {
	line := GatewayLine{Name: g.Name, Backend: g.Status.Backend.Name}
	object := "gateway " + g.Name
	var message string
	// If a gateway is gone or unknown, the numbers and faults in its object may be out of date.
	switch line.State, message = h.stateOf(g); line.State {
	case gone:
		since, _ := h.leaseExpired(g.Name)
		report(Warning, object, "nothing has been heard of it for %s: is its manager running? Delete the Gateway object if the gateway will not return", since)
		return line
	case unknown:
		report(Warning, object, "it %s", message)
		return line
	case draining:
		report(Warning, object, "it drains, and answers for %d addresses; 'kubelb drain %s --undo' reverts that", g.Status.AnnouncedAddresses, g.Name)
	case ready:
		if message != "" {
			report(Warning, object, "%s", message)
		}
	default:
		report(Error, object, "%s", message)
	}
	line.Frontends, line.Addresses = &g.Status.Frontends, &g.Status.AnnouncedAddresses
	reportMissing(g, message, object, report)
	for _, f := range g.Status.Failures {
		report(Error, object, "%s", strings.TrimPrefix(fmt.Sprintf("%s: %s: %s", f.LoadBalancer, f.Record, f.Message), ": "))
	}
	for _, namespace := range g.Status.Unlisted {
		if namespace == v1alpha1.AllNamespaces {
			report(Error, object, "there are refused LoadBalancers in more namespaces than its status names")
			continue
		}
		report(Error, object, "there are more refused LoadBalancers in namespace %s than its status names", namespace)
	}
	if nothing := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ConditionServed); nothing != nil {
		report(Error, object, "%s: %s", nothing.Reason, oneLine(nothing.Message))
	}
	if t := g.Status.Tries; t != nil && t.Problem != "" {
		report(Warning, object, "it cannot try its ports: %s", oneLine(t.Problem))
	}
	if refused := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ConditionHeartbeatsRefused); refused != nil {
		report(Warning, object, "%s: %s", refused.Type, oneLine(refused.Message))
	}
	if conflict := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ConditionAddressConflict); conflict != nil {
		report(Error, object, "%s: %s", conflict.Reason, conflict.Message)
	}
	if bgp := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ConditionBGPEstablished); bgp != nil {
		up := 0
		for _, session := range g.Status.BGPSessions {
			if session.State == v1alpha1.BGPEstablished {
				up++
			}
		}
		line.Sessions = fmt.Sprintf("%d of %d", up, len(g.Status.BGPSessions))
		if bgp.Status == metav1.ConditionFalse {
			report(map[bool]string{true: Error, false: Warning}[up == 0], object, "%s: %s", bgp.Reason, bgp.Message)
		}
	}
	return line
}

// fewAddresses is the highest number of free addresses for which a pool gets a warning.
const fewAddresses = 1

func poolLine(p *v1alpha1.AddressPool, report reporter) PoolLine {
	line := PoolLine{Name: p.Name, State: unknown, Free4: "-", Free6: "-"}
	object := "addresspool " + p.Name
	if c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady); c != nil {
		if c.ObservedGeneration >= p.Generation {
			line.State = ready
		}
		if c.Status != metav1.ConditionTrue {
			line.State = c.Reason
			report(Error, object, "%s", c.Message)
		}
	}
	if p.Spec.Draining && line.State == ready {
		line.State = draining
	}
	for _, f := range []struct {
		family string
		count  *v1alpha1.AddressCount
		used   *int64
		free   *string
	}{{"IPv4", p.Status.IPv4, &line.Used4, &line.Free4}, {"IPv6", p.Status.IPv6, &line.Used6, &line.Free6}} {
		if f.count == nil {
			continue
		}
		*f.used, *f.free = f.count.Used, f.count.Free
		if f.count.Used > 0 && len(f.count.Free) == 1 && f.count.Free <= fmt.Sprint(fewAddresses) && !p.Spec.Draining {
			report(Warning, object, "%s of its %d %s addresses are free: add some to spec.addresses", f.count.Free, f.count.Used+int64(f.count.Free[0]-'0'), f.family)
		}
	}
	return line
}

// disabledBy returns the field by which an operator has disabled the tenant. It is empty if the tenant is served.
func disabledBy(t *v1alpha1.Tenant) string {
	switch {
	case t.Spec.Revoked:
		return "spec.revoked"
	case t.Spec.LoadBalancer.Disable:
		return "spec.loadBalancer.disable"
	}
	return ""
}

// TenantState returns the state of a tenant in one word. A status of an earlier generation counts as Pending.
func TenantState(t *v1alpha1.Tenant) string {
	switch {
	case disabledBy(t) != "":
		return "Disabled"
	case t.DeletionTimestamp == nil && t.Status.ObservedGeneration < t.Generation:
		return v1alpha1.TenantPending
	}
	return cmp.Or(t.Status.Phase, unknown)
}

// ccmSilent returns a message if a tenant's CCM does not renew its Lease any more. It is empty if the CCM renews the Lease, or never did, as KubeLB's own CCM. Traffic
// continues without a CCM.
func ccmSilent(t *v1alpha1.Tenant) string {
	if c := plain.NotTrue(t.Status.Conditions, v1alpha1.ConditionConnected); c != nil && !t.Spec.Revoked {
		return c.Message
	}
	return ""
}

func (h *Snapshot) tenantLine(t *v1alpha1.Tenant, report reporter) TenantLine {
	line := TenantLine{Name: t.Name, State: TenantState(t)}
	if field := disabledBy(t); field != "" {
		report(Warning, "tenant "+t.Name, "%s is set: none of its LoadBalancers is served", field)
	}
	if t.Status.Phase == v1alpha1.TenantFailed {
		for _, c := range t.Status.Conditions {
			if c.Status == metav1.ConditionFalse {
				report(Error, "tenant "+t.Name, "%s: %s", c.Reason, c.Message)
			}
		}
	}
	if silent := ccmSilent(t); silent != "" {
		report(Warning, "tenant "+t.Name, "%s", silent)
	}
	for i := range h.LoadBalancers {
		lb := &h.LoadBalancers[i]
		if lb.Namespace != v1alpha1.TenantNamespacePrefix+t.Name {
			continue
		}
		line.LoadBalancers++
		c := meta.FindStatusCondition(lb.Status.Conditions, v1alpha1.ConditionReady)
		switch {
		case c != nil && c.Status == metav1.ConditionTrue && c.ObservedGeneration < lb.Generation:
			report(Warning, nameOf(lb), "it is Ready %s", beforeLastChange(c, lb))
		case c != nil && c.Status == metav1.ConditionTrue:
			line.Ready++
			if why, known := h.nodesKnown(lb); !known {
				report(Error, nameOf(lb), "%s", why)
			}
		case disabledBy(t) != "":
		case c == nil:
			report(Error, nameOf(lb), "no controller has set its status: is a kubelb-manager with the controller role running?")
		default:
			report(Error, nameOf(lb), "%s: %s", c.Reason, c.Message)
		}
	}
	return line
}

// nameOf names a LoadBalancer in messages: by its own name, which is a UID, and by the name of its Service.
func nameOf(lb *v1alpha1.LoadBalancer) string {
	out := "loadbalancer " + lb.Namespace + "/" + lb.Name
	if name := lb.Labels[v1alpha1.LabelOriginName]; name != "" {
		out += fmt.Sprintf(" (Service %s/%s)", lb.Labels[v1alpha1.LabelOriginNamespace], name)
	}
	return out
}

// reportOrphans reports LoadBalancers that belong to no Tenant, as an error for each namespace.
func (h *Snapshot) reportOrphans(report reporter) {
	orphans := map[string][]string{}
	for i := range h.LoadBalancers {
		if lb := &h.LoadBalancers[i]; h.tenantOf(lb) == nil {
			orphans[lb.Namespace] = append(orphans[lb.Namespace], strings.TrimPrefix(nameOf(lb), "loadbalancer "+lb.Namespace+"/"))
		}
	}
	for _, namespace := range slices.Sorted(maps.Keys(orphans)) {
		names, fix := orphans[namespace], "delete them, because the namespace belongs to no tenant"
		if tenant, ok := strings.CutPrefix(namespace, v1alpha1.TenantNamespacePrefix); ok {
			fix = fmt.Sprintf("create Tenant %s, or delete them", tenant)
		}
		report(Error, "namespace "+namespace, "%d LoadBalancers belong to no Tenant, so no gateway serves them: %s (%s)", len(names), fix, phrase.Few(names, ", "))
	}
}

// count returns the number, or a dash if it is not known.
func count(n *int32) string {
	if n == nil {
		return "-"
	}
	return strconv.Itoa(int(*n))
}

// Text writes the page as text.
func (s Status) Text(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "GATEWAY\tSTATE\tBACKEND\tFRONTENDS\tADDRESSES\tBGP")
	for _, g := range s.Gateways {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", g.Name, g.State, g.Backend, count(g.Frontends), count(g.Addresses), cmp.Or(g.Sessions, "-"))
	}
	fmt.Fprintln(table, "\nPOOL\tSTATE\tUSED4\tFREE4\tUSED6\tFREE6")
	for _, p := range s.Pools {
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%d\t%s\n", p.Name, p.State, p.Used4, p.Free4, p.Used6, p.Free6)
	}
	fmt.Fprintln(table, "\nTENANT\tSTATE\tLOADBALANCERS\tREADY")
	for _, t := range s.Tenants {
		fmt.Fprintf(table, "%s\t%s\t%d\t%d\n", t.Name, t.State, t.LoadBalancers, t.Ready)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if len(s.Problems) == 0 {
		_, err := fmt.Fprintln(w, "\nno problems")
		return err
	}
	fmt.Fprintln(w, "\nPROBLEMS")
	for _, p := range s.Problems {
		if _, err := fmt.Fprintf(w, "%s: %s: %s\n", p.Severity, p.Object, p.Message); err != nil {
			return err
		}
	}
	return nil
}
