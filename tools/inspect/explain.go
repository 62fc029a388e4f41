package inspect

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
)

// Explanation has the steps from a LoadBalancer's tenant to the announcement of its addresses.
type Explanation struct {
	Object string `json:"object"`
	Steps  []Step `json:"steps"`
}

// Step is one condition that has to hold.
type Step struct {
	What string `json:"what"`
	// Holds is false for the first step that does not hold, which is the last step of the explanation.
	Holds bool `json:"holds"`
	// Message has details if the step holds, else the reason and the fix.
	Message string `json:"message"`
}

// Served reports whether all steps hold.
func (e Explanation) Served() bool {
	return !slices.ContainsFunc(e.Steps, func(s Step) bool { return !s.Holds })
}

// Text writes one line for each step.
func (e Explanation) Text(w io.Writer) error {
	fmt.Fprintln(w, e.Object)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range e.Steps {
		fmt.Fprintf(table, "  %s\t%s\t%s\n", map[bool]string{true: "yes", false: "NO"}[s.Holds], s.What, s.Message)
	}
	return table.Flush()
}

// Find returns the LoadBalancer with a name. name is the LoadBalancer's NAME or NAMESPACE/NAME, or NAMESPACE/NAME of its Service. If tenant is not empty, only the
// tenant's LoadBalancers count.
func (h *Snapshot) Find(name, tenant string) (*v1alpha1.LoadBalancer, error) {
	var found []*v1alpha1.LoadBalancer
	for i := range h.LoadBalancers {
		lb := &h.LoadBalancers[i]
		if tenant != "" && lb.Namespace != v1alpha1.TenantNamespacePrefix+tenant {
			continue
		}
		origin := lb.Labels[v1alpha1.LabelOriginNamespace] + "/" + lb.Labels[v1alpha1.LabelOriginName]
		if name == lb.Name || name == lb.Namespace+"/"+lb.Name || name == origin {
			found = append(found, lb)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, fmt.Errorf("there is no LoadBalancer %q on the management cluster. If the Service exists, the tenant's CCM has not written its LoadBalancer: see 'kubectl describe service' in the tenant cluster, and the CCM's log", name)
	}
	var names []string
	for _, lb := range found {
		names = append(names, lb.Namespace+"/"+lb.Name)
	}
	return nil, fmt.Errorf("%q is the name of several LoadBalancers: %s. Name one of them, or add --tenant", name, strings.Join(names, ", "))
}

// Explain returns the steps up to the first one that does not hold.
func (h *Snapshot) Explain(lb *v1alpha1.LoadBalancer) Explanation {
	e := Explanation{Object: nameOf(lb)}
	for _, step := range []struct {
		what  string
		check func(*v1alpha1.LoadBalancer) (string, bool)
	}{
		{"it is not being deleted", notDeleted},
		{"its tenant is served", h.tenantServed},
		{"a controller has seen it", h.seenByController},
		{"it is accepted", condition(v1alpha1.ConditionAccepted)},
		{"its tenant's nodes are known", h.nodesKnownSince},
		{"it has addresses", allocated},
		{"gateways work", h.gatewaysWork},
		{"a dataplane holds it", condition(v1alpha1.ConditionProgrammed)},
		{"its addresses are announced", condition(v1alpha1.ConditionAnnounced)},
		{"connections to it are answered", h.answered},
		{"its status shows its addresses", addressesInStatus},
	} {
		message, holds := step.check(lb)
		e.Steps = append(e.Steps, Step{step.what, holds, plain.Line(message)})
		if !holds {
			break
		}
	}
	return e
}

func notDeleted(lb *v1alpha1.LoadBalancer) (string, bool) {
	if lb.DeletionTimestamp == nil {
		return "it has no deletion timestamp", true
	}
	return fmt.Sprintf("it is being deleted since %s, and is gone once gateways have withdrawn its addresses (finalizers: %s)", lb.DeletionTimestamp.UTC().Format("15:04:05"), strings.Join(lb.Finalizers, ", ")), false
}

func (h *Snapshot) tenantServed(lb *v1alpha1.LoadBalancer) (string, bool) {
	name := strings.TrimPrefix(lb.Namespace, v1alpha1.TenantNamespacePrefix)
	t := h.tenantOf(lb)
	switch {
	case t == nil:
		return fmt.Sprintf("namespace %[2]s needs Tenant %[1]s, which does not exist: create the Tenant, or create the LoadBalancer in another namespace", name, lb.Namespace), false
	case disabledBy(t) != "":
		return fmt.Sprintf("%s of Tenant %s is set", disabledBy(t), name), false
	case len(t.Spec.BackendCIDRs) == 0:
		return fmt.Sprintf("spec.backendCIDRs of Tenant %s is empty, so that no node is an allowed target: add the networks of the nodes", name), false
	}
	return fmt.Sprintf("Tenant %s may target %s", name, strings.Join(t.Spec.BackendCIDRs, ", ")), true
}

// tenantOf returns the LoadBalancer's Tenant, or nil.
func (h *Snapshot) tenantOf(lb *v1alpha1.LoadBalancer) *v1alpha1.Tenant {
	i := slices.IndexFunc(h.Tenants, func(t v1alpha1.Tenant) bool { return v1alpha1.TenantNamespacePrefix+t.Name == lb.Namespace })
	if i < 0 {
		return nil
	}
	return &h.Tenants[i]
}

func (h *Snapshot) seenByController(lb *v1alpha1.LoadBalancer) (string, bool) {
	if len(lb.Status.Conditions) == 0 {
		return "its status has no conditions: no kubelb-manager with the controller role runs, or it cannot write the status", false
	}
	if outdated := Outdated(h.Elected, h.Now); outdated != "" {
		was := ""
		if c := meta.FindStatusCondition(lb.Status.Conditions, v1alpha1.ConditionReady); c != nil {
			was = fmt.Sprintf(". It was Ready=%s, %s: %s", c.Status, c.Reason, c.Message)
		}
		return outdated + was, false
	}
	return fmt.Sprintf("%d conditions", len(lb.Status.Conditions)), true
}

// condition returns a step that holds if the LoadBalancer's condition is True for the current generation.
func condition(kind string) func(*v1alpha1.LoadBalancer) (string, bool) {
	return func(lb *v1alpha1.LoadBalancer) (string, bool) {
		c := meta.FindStatusCondition(lb.Status.Conditions, kind)
		switch {
		case c == nil:
			return "the controllers have not set condition " + kind + " yet", false
		case c.Status != metav1.ConditionTrue:
			return c.Reason + ": " + c.Message, false
		case c.ObservedGeneration < lb.Generation:
			return beforeLastChange(c, lb), false
		}
		return c.Message, true
	}
}

// nodesKnownSince is like nodesKnown, but adds a remark if the tenant's CCM is silent, because the tenant's nodes may have changed since.
func (h *Snapshot) nodesKnownSince(lb *v1alpha1.LoadBalancer) (string, bool) {
	message, holds := h.nodesKnown(lb)
	if t := h.tenantOf(lb); t != nil && ccmSilent(t) != "" {
		message += "; " + ccmSilent(t)
	}
	return message, holds
}

// beforeLastChange is the message for a condition that is about an earlier generation of the LoadBalancer.
func beforeLastChange(c *metav1.Condition, lb *v1alpha1.LoadBalancer) string {
	return fmt.Sprintf("as it was before its last change (generation %d of %d): gateways have not applied the change yet, or refuse it", c.ObservedGeneration, lb.Generation)
}

func (h *Snapshot) nodesKnown(lb *v1alpha1.LoadBalancer) (string, bool) {
	if len(lb.Spec.Endpoints) == 0 {
		return "spec.endpoints is empty: there is no node to forward to", false
	}
	endpoint := lb.Spec.Endpoints[0]
	if endpoint.AddressesReference == nil {
		return fmt.Sprintf("%d addresses of its own", len(endpoint.Addresses)), len(endpoint.Addresses) > 0
	}
	name := cmp.Or(endpoint.AddressesReference.Name, v1alpha1.DefaultAddressesName)
	i := slices.IndexFunc(h.Addresses, func(a v1alpha1.Addresses) bool { return a.Namespace == lb.Namespace && a.Name == name })
	switch {
	case i < 0:
		return fmt.Sprintf("there is no Addresses object %s/%s: the tenant's CCM writes it. Is the CCM running?", lb.Namespace, name), false
	case len(h.Addresses[i].Spec.Addresses) == 0:
		return fmt.Sprintf("Addresses %s/%s is empty: the tenant has no node that may take traffic (do all nodes have the label %s?)", lb.Namespace, name, "node.kubernetes.io/exclude-from-external-load-balancers"), false
	case noLocalPods(lb) != "":
		return noLocalPods(lb), true
	}
	targets := h.Addresses[i].Spec.Addresses
	if endpoint.LocalAddresses != nil {
		targets = *endpoint.LocalAddresses
	}
	for _, vip := range lb.Status.Addresses {
		six := strings.Contains(vip.Address, ":")
		if !slices.ContainsFunc(targets, func(a v1alpha1.EndpointAddress) bool { return a.IP != "" && strings.Contains(a.IP, ":") == six }) {
			return fmt.Sprintf("no node that may take traffic has an %s address: connections to %s are refused", map[bool]string{false: "IPv4", true: "IPv6"}[six], vip.Address), false
		}
	}
	return fmt.Sprintf("%d addresses of nodes", len(targets)), true
}

// noLocalPods returns a message if the Service has externalTrafficPolicy Local, and no node has a ready pod of it. Connections are refused then. That is no fault of
// the load balancer, because the tenant runs the pods.
func noLocalPods(lb *v1alpha1.LoadBalancer) string {
	if e := lb.Spec.Endpoints; len(e) > 0 && e[0].LocalAddresses != nil && len(*e[0].LocalAddresses) == 0 {
		return "externalTrafficPolicy is Local, and no node has a ready pod of the Service: connections are refused until one has"
	}
	return ""
}

func allocated(lb *v1alpha1.LoadBalancer) (string, bool) {
	if message, holds := condition(v1alpha1.ConditionAddressAllocated)(lb); !holds {
		return message, false
	}
	var all []string
	for _, a := range lb.Status.Addresses {
		all = append(all, fmt.Sprintf("%s of pool %s", a.Address, a.Pool))
	}
	return strings.Join(all, ", "), len(all) > 0
}

// gatewaysWork holds if the AddressPools of the LoadBalancer's addresses choose a gateway that works.
func (h *Snapshot) gatewaysWork(lb *v1alpha1.LoadBalancer) (string, bool) {
	var working, failing []string
	for _, g := range h.serving(lb) {
		switch state, why := h.stateOf(g); {
		case state == ready || state == draining:
			working = append(working, g.Name)
		case state == gone:
			failing = append(failing, g.Name+" is gone")
		default:
			failing = append(failing, g.Name+" "+why)
		}
	}
	switch {
	case len(working) > 0:
		return strings.Join(working, ", "), true
	case len(h.Gateways) == 0:
		return "there is no gateway: start a kubelb-manager with the gateway role", false
	case len(failing) == 0:
		return "its address pools choose none of the gateways: " + h.choices(lb) + "; label one: kubectl label gateways.kubelb.k8c.io GATEWAY KEY=VALUE", false
	}
	return strings.Join(failing, "; "), false
}

// choices names the label selectors of the AddressPools of the LoadBalancer's addresses.
func (h *Snapshot) choices(lb *v1alpha1.LoadBalancer) string {
	var all []string
	for _, a := range lb.Status.Addresses {
		if choice := fmt.Sprintf("AddressPool %s chooses gateways with %s", a.Pool, h.selectorOf(a.Pool)); !slices.Contains(all, choice) {
			all = append(all, choice)
		}
	}
	return strings.Join(all, ", ")
}

// answered holds if no gateway knows of a failed try of the LoadBalancer's ports.
func (h *Snapshot) answered(lb *v1alpha1.LoadBalancer) (string, bool) {
	if c := plain.NotTrue(lb.Status.Conditions, v1alpha1.ConditionServed); c != nil {
		return c.Reason + ": " + c.Message, false
	}
	if c := meta.FindStatusCondition(lb.Status.Conditions, v1alpha1.ConditionAnnounced); c != nil && c.Reason == v1alpha1.ReasonAddressConflict {
		return c.Reason + ": " + c.Message, false
	}
	if why := noLocalPods(lb); why != "" {
		return why, true
	}
	messages, known := h.triedBy(lb)
	if !known {
		return "unknown: " + cmp.Or(strings.Join(messages, "; "), "its address pool chooses no gateway"), false
	}
	return "no failure is known; " + strings.Join(messages, "; "), true
}

func addressesInStatus(lb *v1alpha1.LoadBalancer) (string, bool) {
	var ips []string
	for _, ingress := range lb.Status.LoadBalancer.Ingress {
		ips = append(ips, ingress.IP)
	}
	if len(ips) == 0 {
		return "status.loadBalancer is empty", false
	}
	return strings.Join(ips, ", ") + ": if the Service does not show them, see the tenant's CCM", true
}
