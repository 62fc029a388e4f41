package controller

import (
	"cmp"
	"fmt"
	"net/netip"
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
	applied, announced bool
	// failure is why the first of those refuses it that do, if none has applied it; undecided: some have not said anything yet.
	failure   string
	undecided bool
	gateways  int
	// problems are why gateways take nothing at present, silent why they announce nothing.
	problems, silent []string
	// conflicts are those of its addresses that a host which is no gateway answers for as well.
	conflicts []string
}

// viewOf compares versions: a gateway that has applied an equal or later one has this LoadBalancer as it stands. They are looked at
// by name: what is said of them must not change with the order in which they come, since whatever is written has gateways answer anew.
func viewOf(gateways []v1alpha1.Gateway, pools []v1alpha1.AddressPool, lb *v1alpha1.LoadBalancer) gatewayView {
	gateways = slices.SortedFunc(slices.Values(gateways), func(a, b v1alpha1.Gateway) int { return strings.Compare(a.Name, b.Name) })
	view := gatewayView{gateways: len(gateways)}
	name, answered := client.ObjectKeyFromObject(lb).String(), map[netip.Addr]bool{}
	chosen := selection.New()
	for i := range pools {
		pool, _ := convert.Pool(&pools[i]) // one that cannot be read has its selector still
		chosen.SetPool(pools[i].Name, pool.Ranges, pools[i].Spec.GatewaySelector)
	}
	grants := convert.Grants(lb)
	chosen.SetHolder(name, grants)
	for i := range gateways {
		chosen.SetGateway(gateways[i].Name, gateways[i].Labels)
	}
	for _, g := range gateways {
		// Of some that the gateway does not name it cannot be told whether they are served.
		untold := slices.Contains(g.Status.Unlisted, lb.Namespace)
		if untold {
			view.problems = append(view.problems, fmt.Sprintf("gateway %s: so many LoadBalancers of namespace %s are refused that this one may be among them; see those that are", g.Name, lb.Namespace))
		}
		failed := untold
		for _, f := range g.Status.Failures {
			if f.LoadBalancer == name {
				view.failure = cmp.Or(view.failure, fmt.Sprintf("gateway %s: %s: %s", g.Name, f.Record, f.Message))
				failed = true
			}
		}
		if problem := problemOf(&g); problem != "" {
			view.problems = append(view.problems, fmt.Sprintf("gateway %s: %s", g.Name, problem))
		}
		if bgp := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ConditionBGPEstablished); bgp != nil && bgp.Status == metav1.ConditionFalse {
			view.silent = append(view.silent, fmt.Sprintf("gateway %s: %s", g.Name, bgp.Message))
		}
		switch {
		case failed:
		case applied(&g, lb):
			view.applied = true
		default:
			view.undecided = true
		}
		if failed || !applied(&g, lb) || !atLeast(g.Status.AnnouncedResourceVersion, lb.ResourceVersion) {
			continue
		}
		for _, a := range grants {
			if address := a.Address.String(); claimed(&g, address) && !slices.Contains(view.conflicts, address) {
				view.conflicts = append(view.conflicts, address)
			}
			answered[a.Address] = answered[a.Address] || answersFor(&g, a.Address, chosen.ServingAddress(a.Address))
		}
	}
	view.announced = view.applied && !slices.ContainsFunc(grants, func(a ipam.Grant) bool { return !answered[a.Address] })
	if view.applied {
		view.failure = ""
	}
	return view
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

// answersFor tells whether the address is the gateway's, as it sees its peers.
func answersFor(g *v1alpha1.Gateway, address netip.Addr, serves func(string) bool) bool {
	if !g.Status.Elects {
		return serves == nil || serves(g.Name)
	}
	return election.Winner(address, g.Status.Candidates, serves) == g.Name
}

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
	return phrase.Few(append([]string{"no gateway answers for its addresses yet"}, v.silent...), "; ")
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
