package report

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/watchdog"
)

const unanswered = "connections get no answer; its nodes answer the gateway itself, so that its dataplane, or a firewall of its host, is the reason"

var (
	vip  = netip.MustParseAddr("203.0.113.1")
	from = []netip.Addr{netip.MustParseAddr("192.0.0.6")}
)

// leftFailing are the tries of the gateway's object as a process left it that found ports of two LoadBalancers failing.
func leftFailing() *v1alpha1.GatewayTries {
	return &v1alpha1.GatewayTries{Failing: 2, Failures: []v1alpha1.GatewayFailure{
		{LoadBalancer: "tenant-a/lb", Record: "frontend TCP 203.0.113.1:1", Message: unanswered},
		{LoadBalancer: "tenant-a/gone", Record: "frontend TCP 203.0.113.7:1", Message: unanswered}}}
}

// tester are the tries of the gateway g, with its model and the gateway that answers for all addresses.
type tester struct {
	*Tries
	t        *testing.T
	hub      *translate.Hub
	answerer string
	// read: the model has been read. serves: clients reach the frontends here.
	read, serves bool
	// number is that of the last list.
	number uint64
}

func (h *tester) AnswererOf(netip.Addr, string) string { return h.answerer }
func (h *tester) BelongsToPeer(netip.Addr) bool        { return h.answerer != "" && h.answerer != "g" }
func (h *tester) winner(name string)                   { h.answerer = name }

func newTester(t *testing.T) *tester {
	h := &tester{t: t, hub: translate.NewHub(), answerer: "g"}
	h.Tries = NewTries("g", true, h.hub.Owner, h)
	h.asks("a", 2)
	return h
}

// asks has a tenant ask for a LoadBalancer with so many ports.
func (h *tester) asks(tenant string, ports int32) {
	h.hub.SetTenant(translate.Tenant{Name: tenant, BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}})
	lb := translate.LoadBalancer{ObjectName: model.ObjectName{Namespace: "tenant-" + tenant, Name: "lb"}, Type: "LoadBalancer", VIPs: []netip.Addr{vip}, Addresses: []translate.Address{{IP: "198.51.100.1"}}}
	for n := range ports {
		lb.Ports, lb.EndpointPorts = append(lb.Ports, translate.Port{Number: 1 + n}), append(lb.EndpointPorts, translate.Port{Number: 30000})
	}
	h.hub.SetLoadBalancer(lb)
}

// again are those of a process that is new.
func again(t *testing.T) *tester {
	h := newTester(t)
	h.Learn("g", leftFailing(), time.Now())
	require.Empty(t, h.list(), "the hub has not been read")
	return h
}

// list is what the watchdog is given.
func (h *tester) list() []watchdog.Frontend {
	l := h.List(h.hub.Snapshot(), from, func(model.FrontendKey) bool { return h.serves }, h.read, time.Now())
	h.number = l.Number
	return l.Frontends
}

// tried has the watchdog report of the last list.
func (h *tester) tried(failures ...watchdog.Failure) {
	h.Take(watchdog.Report{Listed: h.number, Failures: failures})
}

// status is what the object says once the gateway has read the hub.
func (h *tester) status() *v1alpha1.GatewayTries {
	h.hub.Flush()
	h.read = true
	h.Look(h.hub.Snapshot, from, h.read, time.Now())
	return h.Status(h.Failing(time.Now()))
}

// says are the failing ports that it names.
func (h *tester) says() []v1alpha1.GatewayFailure { return h.status().Failures }

func TestAPortThatFailedFailsUntilANewProcessHasTriedIt(t *testing.T) {
	h := again(t)
	at := netip.AddrPortFrom(vip, 1)
	named := []v1alpha1.GatewayFailure{{LoadBalancer: "tenant-a/lb", Record: "frontend TCP 203.0.113.1:1", Message: unanswered}}
	require.Equal(t, named, h.says(), "the dataplane holds nothing yet, and nobody is elected")
	list := h.list()
	require.Len(t, list, 2)
	require.True(t, list[0].Paused, "clients do not reach it here yet")
	require.Equal(t, unanswered, list[0].Former)
	require.Empty(t, list[1].Former)

	h.serves = true
	require.Equal(t, named, h.says())
	require.False(t, h.list()[0].Paused)
	h.Take(watchdog.Report{Problem: "kubelb-watch cannot be made"})
	require.Equal(t, named, h.says(), "nothing was tried")

	h.tried(watchdog.Failure{AddrPort: at, Message: "connections are refused"})
	require.Equal(t, "connections are refused", h.says()[0].Message, "the watchdog knows of it now")
	h.tried()
	require.Empty(t, h.says())
	h.Learn("g", leftFailing(), time.Now())
	require.Empty(t, h.says(), "later the object is of this process")
}

func TestWhatFailedBeforeIsForgottenWhereItIsNoLongerThisGatewaysToTry(t *testing.T) {
	for name, change := range map[string]func(*tester){
		"another LoadBalancer has the address": func(h *tester) {
			h.hub.DeleteLoadBalancer(model.ObjectName{Namespace: "tenant-a", Name: "lb"})
			h.asks("b", 1)
		},
		"it is deleted":                  func(h *tester) { h.hub.DeleteLoadBalancer(model.ObjectName{Namespace: "tenant-a", Name: "lb"}) },
		"its port is":                    func(h *tester) { h.asks("a", 0) },
		"another gateway answers for it": func(h *tester) { h.winner("other") },
	} {
		t.Run(name, func(t *testing.T) {
			h := again(t)
			require.NotEmpty(t, h.says())
			change(h)
			require.Empty(t, h.says())
		})
	}
}

func TestAPortThatAnotherGatewayHadForAMomentIsNotTakenForWell(t *testing.T) {
	h := again(t)
	h.winner("other")
	require.Empty(t, h.says(), "the other one tries it")
	require.Empty(t, h.list())
	h.winner("g")
	require.Len(t, h.says(), 1)
	require.Equal(t, unanswered, h.list()[0].Former)

	h.winner("other")
	for key, f := range h.former.failures {
		f.since = time.Now().Add(-2 * formerFor)
		h.former.failures[key] = f
	}
	h.list()
	h.winner("g")
	require.Empty(t, h.says(), "that is long ago")
}
