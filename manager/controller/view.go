package controller

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/phrase"
	"kubelb.k8c.io/manager/convert"
	"kubelb.k8c.io/manager/selection"
)

// gatewayView combines the reports of all gateways about one LoadBalancer.
type gatewayView struct {
	applied bool
	// announced: each of its addresses is announced by a gateway. unanswered names the other addresses, with the reason.
	announced  bool
	unanswered []string
	// silenced: one of the unanswered addresses is announced to nobody by any gateway, and no gateway is about to change that.
	silenced bool
	// failure is the refusal of the first gateway that refuses the LoadBalancer, empty if another gateway has applied it. undecided: some gateways have
	// neither applied nor refused it.
	failure   string
	undecided bool
	// maybeRefused are the gateways that may have refused the LoadBalancer, with the reason: their list of refused LoadBalancers of this namespace is not
	// complete.
	maybeRefused []string
	gateways     int
	// silent are the silent gateways, with the reasons. working: another gateway renews its Lease and applies changes.
	silent  []string
	working bool
	// unknownReason is set if a gateway in silent or maybeRefused may announce one of the unanswered addresses.
	unknownReason string
	// problems are the reasons why gateways apply no changes at present.
	problems []string
	// broken are the gateways at which connections to the LoadBalancer fail, with what happens. brokenReason is the condition's reason, from the first of
	// them.
	broken       []string
	brokenReason string
	// conflicts are the addresses that a host that is no gateway also answers for.
	conflicts []string
}

// viewOf combines the reports of gateways. A gateway that has applied an equal or later version holds the present LoadBalancer. It sorts gateways by name,
// so that messages do not depend on their order: each written status makes gateways report again. silent has the silent gateways with the reasons, by
// name.
func viewOf(gateways []v1alpha1.Gateway, silent map[string]string, pools []v1alpha1.AddressPool, lb *v1alpha1.LoadBalancer) gatewayView {
	gateways = slices.SortedFunc(slices.Values(gateways), func(a, b v1alpha1.Gateway) int { return strings.Compare(a.Name, b.Name) })
	view, allocations := gatewayView{gateways: len(gateways)}, convert.Allocations(lb)
	refusals := make([]refusal, len(gateways))
	for i := range gateways {
		if since := silent[gateways[i].Name]; since != "" {
			view.silent = append(view.silent, fmt.Sprintf("gateway %s: %s", gateways[i].Name, since))
			continue
		}
		refusals[i] = view.addDataplane(&gateways[i], lb)
		view.working = view.working || problemOf(&gateways[i]) == ""
	}
	chosen := selectionOf(gateways, pools, lb)
	for i := range gateways {
		if silent[gateways[i].Name] == "" {
			view.addTries(&gateways[i], lb, answersFor(&gateways[i], allocations, chosen))
		}
	}
	view.announced = view.applied
	for _, allocation := range allocations {
		if address := allocation.Address.String(); slices.ContainsFunc(gateways, func(g v1alpha1.Gateway) bool {
			return silent[g.Name] == "" && hasConflict(&g, address) && announcedBy(&g, lb)
		}) {
			view.conflicts = append(view.conflicts, address)
		}
		why, silenced, unknown := unanswered(gateways, silent, refusals, allocation, chosen.ServingAddress(allocation.Address), lb)
		if len(why) == 0 {
			continue
		}
		view.announced, view.silenced, view.unknownReason = false, view.silenced || silenced, cmp.Or(view.unknownReason, unknown)
		view.unanswered = append(view.unanswered, fmt.Sprintf("%s is not announced: %s", allocation.Address, phrase.Few(why, "; ")))
	}
	if view.applied {
		view.failure = ""
	}
	return view
}

// selectionOf returns which gateways the AddressPools select.
func selectionOf(gateways []v1alpha1.Gateway, pools []v1alpha1.AddressPool, lb *v1alpha1.LoadBalancer) *selection.Selection {
	chosen := selection.New()
	for i := range pools {
		pool, _ := convert.Pool(&pools[i]) // an invalid AddressPool has a selector, too
		chosen.SetAddressPool(pools[i].Name, pool.Ranges, pools[i].Spec.GatewaySelector)
	}
	chosen.SetAllocations(client.ObjectKeyFromObject(lb).String(), convert.Allocations(lb))
	for i := range gateways {
		chosen.SetGateway(gateways[i].Name, gateways[i].Labels)
	}
	return chosen
}

// refusal is why a gateway's dataplane has refused a LoadBalancer, or may have refused it. The zero value is no refusal. maybe: the gateway does not list
// all refused LoadBalancers, and this one may be among them.
type refusal struct {
	why   string
	maybe bool
}

func (r refusal) isDefinite() bool { return r.why != "" && !r.maybe }

// addDataplane adds what a gateway reports about its dataplane, and returns the refusal.
func (v *gatewayView) addDataplane(g *v1alpha1.Gateway, lb *v1alpha1.LoadBalancer) (refused refusal) {
	name := client.ObjectKeyFromObject(lb).String()
	switch i := slices.IndexFunc(g.Status.Failures, func(f v1alpha1.GatewayFailure) bool { return f.LoadBalancer == name }); {
	case i >= 0:
		refused.why = g.Status.Failures[i].Record + ": " + g.Status.Failures[i].Message
		v.failure = cmp.Or(v.failure, fmt.Sprintf("gateway %s: %s", g.Name, refused.why))
	case g.Status.FailuresTruncated(lb.Namespace):
		refused = refusal{fmt.Sprintf("refuses more LoadBalancers of namespace %s than its status lists, and this one may be among them", lb.Namespace), true}
		v.maybeRefused = append(v.maybeRefused, fmt.Sprintf("gateway %s: %s", g.Name, refused.why))
	}
	if problem := problemOf(g); problem != "" {
		v.problems = append(v.problems, fmt.Sprintf("gateway %s: %s", g.Name, problem))
	}
	switch {
	case refused.why != "":
	case applied(g, lb):
		v.applied = true
	default:
		v.undecided = true
	}
	return refused
}

// answersFor reports whether the gateway answers for one of the addresses, by its own status. It does not compare versions: writing the resulting condition
// makes a new version of the LoadBalancer.
func answersFor(g *v1alpha1.Gateway, allocations []ipam.Allocation, chosen *selection.Selection) bool {
	return slices.ContainsFunc(allocations, func(allocation ipam.Allocation) bool {
		answers := convert.Election(g).AnswererOf(allocation.Address, chosen.ServingAddress(allocation.Address)) == g.Name
		return answers && (g.Status.Elects || g.Status.AnnouncedAddresses > 0)
	})
}

// addTries adds the results of a gateway's tries of the LoadBalancer's ports. answers: the gateway answers for one of its addresses.
func (v *gatewayView) addTries(g *v1alpha1.Gateway, lb *v1alpha1.LoadBalancer, answers bool) {
	fails := func(reason, format string, arguments ...any) {
		v.brokenReason = cmp.Or(v.brokenReason, reason)
		v.broken = append(v.broken, fmt.Sprintf("gateway %s: "+format, append([]any{g.Name}, arguments...)...))
	}
	if c := servedCondition(g); c != nil && answers {
		fails(c.Reason, "%s", c.Message)
		return
	}
	if g.Status.Tries == nil {
		return
	}
	name := client.ObjectKeyFromObject(lb).String()
	if i := slices.IndexFunc(g.Status.Tries.Failures, func(f v1alpha1.GatewayFailure) bool { return f.LoadBalancer == name }); i >= 0 {
		f := g.Status.Tries.Failures[i]
		fails(v1alpha1.ReasonConnectionsFail, "%s: %s", f.Record, f.Message)
		return
	}
	if answers && g.Status.Tries.FailuresTruncated(lb.Namespace) {
		fails(v1alpha1.ReasonConnectionsFail, "connections fail to more LoadBalancers of namespace %s than its status lists, and this one may be among them", lb.Namespace)
	}
}

// unserved returns why connections to the LoadBalancer fail, empty if no failure is known.
func (v gatewayView) unserved() (reason, message string) {
	return v.brokenReason, phrase.Few(v.broken, "; ")
}

// servedCondition returns why the gateway serves none of its addresses, nil if no such reason is known.
func servedCondition(g *v1alpha1.Gateway) *metav1.Condition {
	return plain.NotTrue(g.Status.Conditions, v1alpha1.ConditionServed)
}

func servesNothing(g *v1alpha1.Gateway) bool { return servedCondition(g) != nil }

// unanswered returns why no gateway announces an address: a reason for each gateway that could, none if a gateway announces it. silenced: no gateway will
// announce it without a change. unknown is the reason of the condition if a gateway may announce the address, but its status does not say so, and no other
// gateway is about to.
func unanswered(gateways []v1alpha1.Gateway, silent map[string]string, refusals []refusal, allocation ipam.Allocation, serves selection.Serving, lb *v1alpha1.LoadBalancer) (why []string, silenced bool, unknown string) {
	if len(gateways) == 0 {
		return []string{"there is no gateway"}, true, ""
	}
	silenced, chosen, about := true, false, false
	for i := range gateways {
		g := &gateways[i]
		if !serves.By(g.Name) {
			continue
		}
		chosen = true
		if since := silent[g.Name]; since != "" {
			unknown = reasonGatewaySilent
			why = append(why, fmt.Sprintf("gateway %s: %s", g.Name, since))
			continue
		}
		says := convert.SilentReason(g, ipam.FamilyOf(allocation.Address))
		answerer := convert.Election(g).AnswererOf(allocation.Address, serves)
		if answerer != "" && answerer != g.Name {
			continue
		}
		if answerer == "" && says == "" {
			silenced = false // the gateway may become a candidate soon
			continue
		}
		silenced = silenced && (says != "" || refusals[i].isDefinite())
		switch {
		case says != "":
		case refusals[i].maybe:
			unknown = cmp.Or(unknown, reasonMaybeRefused)
		case refusals[i].why == "":
			if announcedBy(g, lb) {
				return nil, false, ""
			}
			about = about || problemOf(g) == ""
			says = cmp.Or(problemOf(g), "is about to announce the address, or waits until another gateway withdraws it")
		}
		why = append(why, fmt.Sprintf("gateway %s: %s", g.Name, cmp.Or(refusals[i].why, says)))
	}
	switch {
	case !chosen:
		return []string{fmt.Sprintf("no gateway has the labels of spec.gatewaySelector of AddressPool %s", allocation.Pool)}, true, ""
	case len(why) == 0:
		return []string{"no gateway is a candidate for this address yet"}, false, ""
	case about:
		return why, silenced, ""
	}
	return why, silenced, unknown
}

// announcedBy reports whether the gateway has announced the addresses that it answers for, of the present version of the LoadBalancer.
func announcedBy(g *v1alpha1.Gateway, lb *v1alpha1.LoadBalancer) bool {
	return applied(g, lb) && atLeast(g.Status.AnnouncedResourceVersion, lb.ResourceVersion)
}

// applied reports whether the gateway's dataplane holds the present version of the LoadBalancer, unless it has refused it.
func applied(g *v1alpha1.Gateway, lb *v1alpha1.LoadBalancer) bool {
	return atLeast(appliedIn(g, lb.Namespace), lb.ResourceVersion)
}

// appliedIn returns the version up to which the gateway's dataplane holds LoadBalancers of the namespace.
func appliedIn(g *v1alpha1.Gateway, namespace string) string {
	for _, b := range g.Status.Behind {
		if b.Namespace == namespace {
			return b.ResourceVersion
		}
	}
	return g.Status.AppliedResourceVersion
}

// hasConflict reports whether the gateway has seen another host with the address.
func hasConflict(g *v1alpha1.Gateway, address string) bool {
	return slices.ContainsFunc(g.Status.Conflicts, func(c v1alpha1.AddressConflict) bool { return c.Address == address })
}

// isUnknown reports whether it is unknown what dataplanes hold: some gateways are silent, and no other gateway applies changes.
func (v gatewayView) isUnknown() bool { return len(v.silent) > 0 && !v.working }

func (v gatewayView) waitReason() string {
	if v.gateways == 0 {
		return reasonNoGateway
	}
	return reasonWaitingForGateway
}

func (v gatewayView) waitMessage() string {
	if v.gateways == 0 {
		return "there is no gateway: start a kubelb-manager with the gateway role and a backend"
	}
	if len(v.problems) > 0 {
		return fmt.Sprintf("none of %d gateways has applied it yet: %s", v.gateways, phrase.Few(v.problems, "; "))
	}
	return fmt.Sprintf("none of %d gateways has applied it yet; see kubectl describe gateways.kubelb.k8c.io", v.gateways)
}

// announcement returns the reason and message of a condition Announced that is True.
func (v gatewayView) announcement() (reason, message string) {
	if len(v.conflicts) > 0 {
		return v1alpha1.ReasonAddressConflict, fmt.Sprintf("another host on the gateways' segment also answers for %s, and clients may reach that host: the operator of the management cluster has to remove the address from that host", phrase.Few(v.conflicts, ", "))
	}
	return reasonAnnounced, "a gateway answers for its addresses"
}

func (v gatewayView) unansweredMessage() string {
	return cmp.Or(phrase.Few(v.unanswered, "; "), "no gateway answers for its addresses yet")
}

// problemOf returns why the gateway applies no changes at present, empty if it does.
func problemOf(g *v1alpha1.Gateway) string {
	if ready := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ConditionReady); ready != nil && ready.Status == metav1.ConditionFalse {
		return ready.Message
	}
	return ""
}

// atLeast compares resource versions, which are ordered (KEP-5504).
func atLeast(have, want string) bool {
	h, errHave := strconv.ParseUint(have, 10, 64)
	w, errWant := strconv.ParseUint(want, 10, 64)
	return errHave == nil && errWant == nil && h >= w
}
