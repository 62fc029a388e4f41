package inspect

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/phrase"
	"kubelb.k8c.io/manager/convert"
)

// countedAfter is the time after which the numbers of tried ports in the status of gateways include a newly announced LoadBalancer. Gateways list their ports every
// five seconds, and report the numbers every five seconds.
const countedAfter = 20 * time.Second

// judgeEnded judges a connection that was accepted, and ended before a byte of data. Endpoints may end connections like this, and so does a proxy that reaches no
// endpoint. This host cannot distinguish these cases. Gateways can, because they try their ports.
func (h *Snapshot) judgeEnded(p port, outcome string) (CheckResult, string) {
	if convert.LoadBalancer(p.of).Forwarding == model.Direct.String() {
		return Fails, outcome // gateways do not try ports of mode direct
	}
	const notKnown = "; it is not known whether the endpoints ended it: "
	failing, unsure := h.doubts(p)
	switch {
	case len(failing) > 0:
		return Fails, outcome + notKnown + phrase.Few(slices.Concat(failing, unsure), "; ")
	case len(unsure) > 0:
		return Untried, outcome + notKnown + phrase.Few(unsure, "; ")
	}
	return Answers, outcome + ", by the endpoints: the gateways that try the port know of no failure"
}

// doubts returns the reasons why tries of gateways do not show that the endpoints of a port end connections themselves. In failing: no gateway tries the port, or a
// gateway knows of a failure. In unsure: gateways may not have tried this port yet, or a router may have sent the connection to another gateway.
func (h *Snapshot) doubts(p port) (failing, unsure []string) {
	address, err := p.address()
	if err != nil {
		return []string{err.Error()}, nil
	}
	var trace Trace
	chosen := h.selection(address, &trace)
	h.setGateways(address, chosen, &trace)
	if len(trace.Gateways) == 0 {
		failing = append(failing, "no working gateway answers for the address")
	}
	serves := chosen.ServingAddress(address)
	for i := range h.Gateways {
		g := &h.Gateways[i]
		state, message := h.stateOf(g)
		works := state == ready || state == draining
		switch {
		case slices.Contains(trace.Gateways, g.Name) && works:
			fails, doubts := triedIn(g, p.of)
			failing, unsure = append(failing, fails...), append(unsure, doubts...)
		case slices.Contains(trace.Gateways, g.Name):
			failing = append(failing, notCounted(g, state, message))
		case !works && !g.Status.Elects && serves.By(g.Name):
			unsure = append(unsure, notCounted(g, state, message)) // a router may still send connections to it
		}
	}
	return failing, append(unsure, h.ownDoubts(p.of)...)
}

// triedIn returns the doubts about the tries of a working gateway that answers for the LoadBalancer.
func triedIn(g *v1alpha1.Gateway, lb *v1alpha1.LoadBalancer) (failing, unsure []string) {
	if why := cmp.Or(notTrying(g), knownFailure(g, lb)); why != "" {
		return []string{why}, nil
	}
	if n := g.Status.Tries.Untried; n > 0 {
		return nil, []string{fmt.Sprintf("gateway %s may not have tried the port: it has not tried %d of its ports yet", g.Name, n)}
	}
	return nil, nil
}

func (p port) address() (netip.Addr, error) {
	host, _, err := net.SplitHostPort(p.at)
	if err != nil {
		return netip.Addr{}, err
	}
	return netip.ParseAddr(host)
}

// ownDoubts returns doubts for reasons in the LoadBalancer or in its tenant.
func (h *Snapshot) ownDoubts(lb *v1alpha1.LoadBalancer) (unsure []string) {
	if t := h.tenantOf(lb); t != nil {
		if limits := convert.Tenant(t); limits.ConnectionsPerPort > 0 || limits.NewConnectionsPerSecondPerPort > 0 {
			unsure = append(unsure, fmt.Sprintf("Tenant %s has a limit of connections, which may be the cause", t.Name))
		}
	}
	c := meta.FindStatusCondition(lb.Status.Conditions, v1alpha1.ConditionAnnounced)
	switch {
	case c == nil || c.Status != metav1.ConditionTrue:
		unsure = append(unsure, "it is not known whether the LoadBalancer is announced")
	case c.ObservedGeneration < lb.Generation:
		unsure = append(unsure, "gateways may not have taken the last change of the LoadBalancer yet")
	case h.Now.Sub(c.LastTransitionTime.Time) < countedAfter:
		unsure = append(unsure, fmt.Sprintf("the LoadBalancer has been announced for less than %s, so gateways may not have tried it yet", countedAfter))
	}
	return unsure
}

// notCounted returns the reason why the status of a gateway does not count.
func notCounted(g *v1alpha1.Gateway, state, message string) string {
	if state == gone {
		return "gateway " + g.Name + " is gone"
	}
	return "gateway " + g.Name + " " + message
}

// notTrying returns the reason why a gateway does not try its ports. It returns an empty string if the gateway does.
func notTrying(g *v1alpha1.Gateway) string {
	switch t := g.Status.Tries; {
	case t == nil:
		return fmt.Sprintf("gateway %s does not try its ports", g.Name)
	case t.Problem != "":
		return fmt.Sprintf("gateway %s cannot try its ports: %s", g.Name, oneLine(t.Problem))
	}
	return ""
}

// knownFailure returns a failure of the LoadBalancer in the gateway's status, or an empty string. The controllers copy failures into the LoadBalancer's condition a
// moment later, or never if no controllers run.
func knownFailure(g *v1alpha1.Gateway, lb *v1alpha1.LoadBalancer) string {
	t := g.Status.Tries
	if t == nil {
		return ""
	}
	for _, f := range t.Failures {
		if f.LoadBalancer == lb.Namespace+"/"+lb.Name {
			return fmt.Sprintf("gateway %s: %s: %s", g.Name, f.Record, f.Message)
		}
	}
	if t.FailuresTruncated(lb.Namespace) {
		return fmt.Sprintf("gateway %s knows of more failures in namespace %s than its status names", g.Name, lb.Namespace)
	}
	return ""
}

// serving returns the gateways that the AddressPools of the LoadBalancer's addresses choose.
func (h *Snapshot) serving(lb *v1alpha1.LoadBalancer) (out []*v1alpha1.Gateway) {
	chosen := h.selection(netip.Addr{}, &Trace{})
	for i := range h.Gateways {
		g := &h.Gateways[i]
		if slices.ContainsFunc(convert.VIPs(lb), func(address netip.Addr) bool {
			serves := chosen.ServingAddress(address)
			return serves.By(g.Name)
		}) {
			out = append(out, g)
		}
	}
	return out
}

// triedBy describes the tries of each gateway that serves the LoadBalancer. known is false if the status of no gateway counts.
func (h *Snapshot) triedBy(lb *v1alpha1.LoadBalancer) (messages []string, known bool) {
	var goneGateways []string
	for _, g := range h.serving(lb) {
		state, why := h.stateOf(g)
		switch {
		case state == gone:
			goneGateways = append(goneGateways, notCounted(g, state, why))
		case state == unknown:
			messages = append(messages, notCounted(g, state, why))
		case notTrying(g) != "":
			messages, known = append(messages, notTrying(g)), true
		default:
			t := g.Status.Tries
			messages, known = append(messages, fmt.Sprintf("gateway %s has tried its ports: %d answered, %d failing, %d not known yet", g.Name, t.Answered, t.Failing, t.Untried)), true
		}
	}
	if !known {
		messages = append(messages, goneGateways...)
	}
	return messages, known
}
