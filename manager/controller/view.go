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

// gatewayView is what all gateways together say about one LoadBalancer.
type gatewayView struct {
	applied bool
	// announced: each of its addresses is announced by a gateway. unanswered names the other addresses, with the reason.
	announced  bool
	unanswered []string
	// silenced: for one of the unanswered addresses every gateway is silent, and no gateway is about to change that.
	silenced bool
	// failure is the refusal of the first gateway that refuses it, empty if another gateway has applied it. undecided: some gateways have neither
	// applied nor refused it.
	failure   string
	undecided bool
	// maybeRefused says of each gateway that may have refused it why: the gateway names only some refused LoadBalancers of its namespace, and not this one.
	maybeRefused []string
	gateways     int
	// unheard names the gateways that have not renewed their Leases, with since when. heard: another gateway renews its Lease and takes changes.
	unheard []string
	heard   bool
	// unknownReason is set if one of the unanswered addresses may be announced by a gateway in unheard or maybeRefused.
	unknownReason string
	// problems are the reasons why gateways take no changes at present.
	problems []string
	// broken names the gateways at which connections to it fail, with what happens. brokenReason is the condition's reason, from the first of them.
	broken       []string
	brokenReason string
	// conflicts are its addresses that another host, which is no gateway, answers for as well.
	conflicts []string
}

// viewOf compares versions: a gateway that has applied an equal or later version has this LoadBalancer as it stands. It sorts gateways by name, so
// that messages do not depend on their order: each status that is written makes gateways answer anew. silent says of the gateways that have not
// renewed their Leases since when, by name.
func viewOf(gateways []v1alpha1.Gateway, silent map[string]string, pools []v1alpha1.AddressPool, lb *v1alpha1.LoadBalancer) gatewayView {
	gateways = slices.SortedFunc(slices.Values(gateways), func(a, b v1alpha1.Gateway) int { return strings.Compare(a.Name, b.Name) })
	view, grants := gatewayView{gateways: len(gateways)}, convert.Grants(lb)
	refusals := make([]refusal, len(gateways))
	for i := range gateways {
		if since := silent[gateways[i].Name]; since != "" {
			view.unheard = append(view.unheard, fmt.Sprintf("gateway %s: %s", gateways[i].Name, since))
			continue
		}
		refusals[i] = view.take(&gateways[i], lb)
		view.heard = view.heard || problemOf(&gateways[i]) == ""
	}
	chosen := selectionOf(gateways, pools, lb)
	for i := range gateways {
		if silent[gateways[i].Name] == "" {
			view.hear(&gateways[i], lb, answersFor(&gateways[i], grants, chosen))
		}
	}
	view.announced = view.applied
	for _, grant := range grants {
		if address := grant.Address.String(); slices.ContainsFunc(gateways, func(g v1alpha1.Gateway) bool {
			return silent[g.Name] == "" && claimed(&g, address) && announcedBy(&g, lb)
		}) {
			view.conflicts = append(view.conflicts, address)
		}
		why, silenced, unknown := unanswered(gateways, silent, refusals, grant, chosen.ServingAddress(grant.Address), lb)
		if len(why) == 0 {
			continue
		}
		view.announced, view.silenced, view.unknownReason = false, view.silenced || silenced, cmp.Or(view.unknownReason, unknown)
		view.unanswered = append(view.unanswered, fmt.Sprintf("%s is not announced: %s", grant.Address, phrase.Few(why, "; ")))
	}
	if view.applied {
		view.failure = ""
	}
	return view
}

// selectionOf is which gateways the pools choose.
func selectionOf(gateways []v1alpha1.Gateway, pools []v1alpha1.AddressPool, lb *v1alpha1.LoadBalancer) *selection.Selection {
	chosen := selection.New()
	for i := range pools {
		pool, _ := convert.Pool(&pools[i]) // one that cannot be read has its selector still
		chosen.SetPool(pools[i].Name, pool.Ranges, pools[i].Spec.GatewaySelector)
	}
	chosen.SetHolder(client.ObjectKeyFromObject(lb).String(), convert.Grants(lb))
	for i := range gateways {
		chosen.SetGateway(gateways[i].Name, gateways[i].Labels)
	}
	return chosen
}

// refusal is why a gateway's dataplane has refused a LoadBalancer, or may have refused it. Its zero value says that it has not. maybe: the gateway does
// not name all refused LoadBalancers, so that this one may be among them.
type refusal struct {
	why   string
	maybe bool
}

func (r refusal) known() bool { return r.why != "" && !r.maybe }

// take adds what a gateway's dataplane has made of the LoadBalancer, and returns whether it was refused.
func (v *gatewayView) take(g *v1alpha1.Gateway, lb *v1alpha1.LoadBalancer) (refused refusal) {
	name := client.ObjectKeyFromObject(lb).String()
	switch i := slices.IndexFunc(g.Status.Failures, func(f v1alpha1.GatewayFailure) bool { return f.LoadBalancer == name }); {
	case i >= 0:
		refused.why = g.Status.Failures[i].Record + ": " + g.Status.Failures[i].Message
		v.failure = cmp.Or(v.failure, fmt.Sprintf("gateway %s: %s", g.Name, refused.why))
	case g.Status.FailuresTruncated(lb.Namespace):
		refused = refusal{fmt.Sprintf("more LoadBalancers of namespace %s are refused than it names, and this one may be among them", lb.Namespace), true}
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

// answersFor tells whether the gateway answers for one of the addresses, by its own status. It does not compare versions: the condition that
// follows is written to the LoadBalancer, and makes a new version.
func answersFor(g *v1alpha1.Gateway, grants []ipam.Grant, chosen *selection.Selection) bool {
	return slices.ContainsFunc(grants, func(grant ipam.Grant) bool {
		answers := convert.Election(g).AnswererOf(grant.Address, chosen.ServingAddress(grant.Address)) == g.Name
		return answers && (g.Status.Elects || g.Status.AnnouncedAddresses > 0)
	})
}

// hear adds the results of a gateway's tries of the LoadBalancer's ports. answers: the gateway answers for one of its addresses.
func (v *gatewayView) hear(g *v1alpha1.Gateway, lb *v1alpha1.LoadBalancer, answers bool) {
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
		fails(v1alpha1.ReasonConnectionsFail, "connections to more LoadBalancers of namespace %s fail than it names, and this one may be among them", lb.Namespace)
	}
}

// unserved is why connections to it fail, empty if no failure is known.
func (v gatewayView) unserved() (reason, message string) {
	return v.brokenReason, phrase.Few(v.broken, "; ")
}

// servedCondition says why the gateway serves none of its addresses, nil if nothing of the kind is known.
func servedCondition(g *v1alpha1.Gateway) *metav1.Condition {
	return plain.NotTrue(g.Status.Conditions, v1alpha1.ConditionServed)
}

func servesNothing(g *v1alpha1.Gateway) bool { return servedCondition(g) != nil }

// unanswered says why no gateway announces an address: a reason for each gateway that could, none if a gateway announces it. silenced: this stays so
// until somebody changes something. unknown is set if a gateway may announce it, but its
// status does not tell, and no other gateway is about to: it is the reason of the condition.
func unanswered(gateways []v1alpha1.Gateway, silent map[string]string, refusals []refusal, grant ipam.Grant, serves selection.Serving, lb *v1alpha1.LoadBalancer) (why []string, silenced bool, unknown string) {
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
		says := convert.Silence(g, ipam.FamilyOf(grant.Address))
		answerer := convert.Election(g).AnswererOf(grant.Address, serves)
		if answerer != "" && answerer != g.Name {
			continue
		}
		if answerer == "" && says == "" {
			silenced = false // it may become a candidate in a moment
			continue
		}
		silenced = silenced && (says != "" || refusals[i].known())
		switch {
		case says != "":
		case refusals[i].maybe:
			unknown = cmp.Or(unknown, reasonMaybeRefused)
		case refusals[i].why == "":
			if announcedBy(g, lb) {
				return nil, false, ""
			}
			about = about || problemOf(g) == ""
			says = cmp.Or(problemOf(g), "it is about to announce it, or waits until another gateway withdraws it")
		}
		why = append(why, fmt.Sprintf("gateway %s: %s", g.Name, cmp.Or(refusals[i].why, says)))
	}
	switch {
	case !chosen:
		return []string{fmt.Sprintf("no gateway has the labels that spec.gatewaySelector of AddressPool %s asks for", grant.Pool)}, true, ""
	case len(why) == 0:
		return []string{"no gateway is a candidate for it yet"}, false, ""
	case about:
		return why, silenced, ""
	}
	return why, silenced, unknown
}

// announcedBy tells whether the gateway has announced those addresses of the LoadBalancer, as it stands, that it answers for.
func announcedBy(g *v1alpha1.Gateway, lb *v1alpha1.LoadBalancer) bool {
	return applied(g, lb) && atLeast(g.Status.AnnouncedResourceVersion, lb.ResourceVersion)
}

// applied tells whether the gateway's dataplane holds the LoadBalancer as it stands, unless it failed.
func applied(g *v1alpha1.Gateway, lb *v1alpha1.LoadBalancer) bool {
	return atLeast(appliedIn(g, lb.Namespace), lb.ResourceVersion)
}

// appliedIn is the version up to which the gateway's dataplane holds LoadBalancers of the namespace.
func appliedIn(g *v1alpha1.Gateway, namespace string) string {
	for _, b := range g.Status.Behind {
		if b.Namespace == namespace {
			return b.ResourceVersion
		}
	}
	return g.Status.AppliedResourceVersion
}

// claimed tells whether the gateway says that another host has the address.
func claimed(g *v1alpha1.Gateway, address string) bool {
	return slices.ContainsFunc(g.Status.Conflicts, func(c v1alpha1.AddressConflict) bool { return c.Address == address })
}

// lost tells whether it is unknown what dataplanes hold: some gateways have not renewed their Leases, and no other gateway takes changes.
func (v gatewayView) lost() bool { return len(v.unheard) > 0 && !v.heard }

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
		return fmt.Sprintf("none of %d gateways has taken it yet: %s", v.gateways, phrase.Few(v.problems, "; "))
	}
	return fmt.Sprintf("none of %d gateways has taken it yet; see kubectl describe gateways.kubelb.k8c.io", v.gateways)
}

// announcement is the reason and message of a condition Announced that is True.
func (v gatewayView) announcement() (reason, message string) {
	if len(v.conflicts) > 0 {
		return v1alpha1.ReasonAddressConflict, fmt.Sprintf("another host on the gateways' segment answers for %s, too, and clients may reach that host: the management cluster's operator has to remove the address there", phrase.Few(v.conflicts, ", "))
	}
	return reasonAnnounced, "a gateway answers for its addresses"
}

func (v gatewayView) silence() string {
	return cmp.Or(phrase.Few(v.unanswered, "; "), "no gateway answers for its addresses yet")
}

// problemOf says why the gateway takes no changes at present, empty if it does.
func problemOf(g *v1alpha1.Gateway) string {
	if ready := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ConditionReady); ready != nil && ready.Status == metav1.ConditionFalse {
		return ready.Message
	}
	return ""
}

// atLeast compares resource versions, which order an API server's changes (KEP-5504).
func atLeast(have, want string) bool {
	h, errHave := strconv.ParseUint(have, 10, 64)
	w, errWant := strconv.ParseUint(want, 10, 64)
	return errHave == nil && errWant == nil && h >= w
}
