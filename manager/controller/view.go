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

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/election"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/phrase"
	"kubelb.k8c.io/manager/convert"
	"kubelb.k8c.io/manager/selection"
)

// gatewayView is what all gateways together say about one LoadBalancer.
type gatewayView struct {
	applied bool
	// announced: of each of its addresses a gateway says so. Where none does, unanswered names the address and the reason.
	announced  bool
	unanswered []string
	// silenced: for an address of those there is no gateway from which anybody would hear of it, until something is changed.
	silenced bool
	// failure is why the first of those refuses it that do, if none has applied it; undecided: some have not said anything yet.
	failure   string
	undecided bool
	gateways  int
	// unheard are why nobody knows what gateways do of which nothing is heard; heard: of one something is heard, and it takes changes.
	unheard []string
	heard   bool
	// unknown: an address of those may be announced by a gateway of which nothing is heard.
	unknown bool
	// problems are why gateways take nothing at present.
	problems []string
	// broken are gateways at which connections to it fail, with what happens, by the reason of the first.
	broken       []string
	brokenReason string
	// conflicts are those of its addresses that a host which is no gateway answers for as well.
	conflicts []string
}

// viewOf compares versions: a gateway that has applied an equal or later one has this LoadBalancer as it stands. They are looked at
// by name: what is said of them must not change with the order in which they come, since whatever is written has gateways answer anew.
// silent are those of which nothing is heard, with since when.
func viewOf(gateways []v1alpha1.Gateway, silent map[string]string, pools []v1alpha1.AddressPool, lb *v1alpha1.LoadBalancer) gatewayView {
	gateways = slices.SortedFunc(slices.Values(gateways), func(a, b v1alpha1.Gateway) int { return strings.Compare(a.Name, b.Name) })
	view, grants := gatewayView{gateways: len(gateways)}, convert.Grants(lb)
	refusals := make([]string, len(gateways))
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
		view.announced, view.silenced, view.unknown = false, view.silenced || silenced, view.unknown || unknown
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

// take takes what a gateway's dataplane has made of the LoadBalancer, and returns why it refuses it, empty if it does not.
func (v *gatewayView) take(g *v1alpha1.Gateway, lb *v1alpha1.LoadBalancer) (refusal string) {
	// Of some that the gateway does not name it cannot be told whether they are served.
	if slices.Contains(g.Status.Unlisted, lb.Namespace) {
		refusal = fmt.Sprintf("so many LoadBalancers of namespace %s are refused that this one may be among them; see those that are", lb.Namespace)
		v.problems = append(v.problems, fmt.Sprintf("gateway %s: %s", g.Name, refusal))
	}
	name := client.ObjectKeyFromObject(lb).String()
	if i := slices.IndexFunc(g.Status.Failures, func(f v1alpha1.GatewayFailure) bool { return f.LoadBalancer == name }); i >= 0 {
		refusal = g.Status.Failures[i].Record + ": " + g.Status.Failures[i].Message
		v.failure = cmp.Or(v.failure, fmt.Sprintf("gateway %s: %s", g.Name, refusal))
	}
	if problem := problemOf(g); problem != "" {
		v.problems = append(v.problems, fmt.Sprintf("gateway %s: %s", g.Name, problem))
	}
	switch {
	case refusal != "":
	case applied(g, lb):
		v.applied = true
	default:
		v.undecided = true
	}
	return refusal
}

// answersFor tells whether clients of one of the addresses reach the gateway, as it sees that itself. Versions do not matter: what is said of this is
// written to the LoadBalancer, which is another version then.
func answersFor(g *v1alpha1.Gateway, grants []ipam.Grant, chosen *selection.Selection) bool {
	return slices.ContainsFunc(grants, func(grant ipam.Grant) bool {
		serves := chosen.ServingAddress(grant.Address)
		if g.Status.Elects {
			return election.Winner(grant.Address, g.Status.Candidates, serves) == g.Name
		}
		return serves == nil || serves(g.Name)
	})
}

// hear takes what a gateway heard when it tried the LoadBalancer's ports, which it does if it answers for them.
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
	if answers && slices.Contains(g.Status.Tries.Unlisted, lb.Namespace) {
		fails(v1alpha1.ReasonConnectionsFail, "connections to so many LoadBalancers of namespace %s fail that this one may be among them; see those that are named", lb.Namespace)
	}
}

// unserved is why connections fail at gateways that answer for it, with nothing where none does.
func (v gatewayView) unserved() (reason, message string) {
	return v.brokenReason, phrase.Few(v.broken, "; ")
}

// servedCondition says why the gateway serves nothing at all, nil if it does.
func servedCondition(g *v1alpha1.Gateway) *metav1.Condition {
	c := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ConditionServed)
	if c == nil || c.Status == metav1.ConditionTrue {
		return nil
	}
	return c
}

func servesNothing(g *v1alpha1.Gateway) bool { return servedCondition(g) != nil }

// unanswered is why no gateway announces an address, of each gateway that might; it is empty if one does. silenced: it stays so until something is
// changed, whatever gateways are about to do. unknown: one of which nothing is heard may announce it, and no other one is about to.
func unanswered(gateways []v1alpha1.Gateway, silent map[string]string, refusals []string, grant ipam.Grant, serves func(string) bool, lb *v1alpha1.LoadBalancer) (why []string, silenced, unknown bool) {
	if len(gateways) == 0 {
		return []string{"there is no gateway"}, true, false
	}
	silenced, chosen, about := true, false, false
	for i := range gateways {
		g := &gateways[i]
		if serves != nil && !serves(g.Name) {
			continue
		}
		chosen = true
		if since := silent[g.Name]; since != "" {
			unknown = true
			why = append(why, fmt.Sprintf("gateway %s: %s", g.Name, since))
			continue
		}
		says := silenceOf(g, ipam.FamilyOf(grant.Address))
		if g.Status.Elects {
			winner := election.Winner(grant.Address, g.Status.Candidates, serves)
			if winner != "" && winner != g.Name {
				continue
			}
			if winner == "" && says == "" {
				silenced = false // it may stand in a moment
				continue
			}
		}
		silenced = silenced && says != ""
		if refusals[i] == "" && says == "" {
			if announcedBy(g, lb) {
				return nil, false, false
			}
			about = about || problemOf(g) == ""
			says = cmp.Or(problemOf(g), "it is about to, or waits for another one to let go of it")
		}
		why = append(why, fmt.Sprintf("gateway %s: %s", g.Name, cmp.Or(refusals[i], says)))
	}
	switch {
	case !chosen:
		return []string{fmt.Sprintf("no gateway has the labels that spec.gatewaySelector of AddressPool %s asks for", grant.Pool)}, true, false
	case len(why) == 0:
		return []string{"no gateway stands for it yet"}, false, false
	}
	return why, silenced, unknown && !about
}

// silenceOf is why nobody hears of addresses of a family from a gateway.
func silenceOf(g *v1alpha1.Gateway, f ipam.Family) string {
	for _, s := range g.Status.Silent {
		if string(s.Family) == f.String() {
			return s.Message
		}
	}
	return ""
}

// announcedBy tells whether the gateway has announced what is its own of the LoadBalancer as it stands.
func announcedBy(g *v1alpha1.Gateway, lb *v1alpha1.LoadBalancer) bool {
	return applied(g, lb) && atLeast(g.Status.AnnouncedResourceVersion, lb.ResourceVersion)
}

// applied tells whether the gateway's dataplane holds the LoadBalancer as it stands, unless it failed.
func applied(g *v1alpha1.Gateway, lb *v1alpha1.LoadBalancer) bool {
	return atLeast(appliedIn(g, lb.Namespace), lb.ResourceVersion)
}

// appliedIn is up to which version the gateway's dataplane holds LoadBalancers of the namespace.
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

// lost tells whether nobody knows any more what was held: what held it is not heard of, and what is heard of takes nothing.
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

// announcement is what there is to say of addresses that a gateway answers for.
func (v gatewayView) announcement() (reason, message string) {
	if len(v.conflicts) > 0 {
		return v1alpha1.ReasonAddressConflict, fmt.Sprintf("another host on the gateways' segment answers for %s, too, and clients may reach that one: the management cluster's operator has to see to it", phrase.Few(v.conflicts, ", "))
	}
	return reasonAnnounced, "a gateway answers for its addresses"
}

func (v gatewayView) silence() string {
	return cmp.Or(phrase.Few(v.unanswered, "; "), "no gateway answers for its addresses yet")
}

// problemOf is why the gateway takes nothing at present.
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
