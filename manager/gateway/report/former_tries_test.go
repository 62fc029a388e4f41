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

const unanswered = "connections get no answer; its nodes answer the gateway itself, so the reason is the gateway's dataplane, or a firewall of the gateway's host"

var (
	vip  = netip.MustParseAddr("203.0.113.1")
	from = []netip.Addr{netip.MustParseAddr("192.0.0.6")}
)

// formerlyFailing returns the tries of a former process that found ports of two LoadBalancers failing.
func formerlyFailing() *v1alpha1.GatewayTries {
	return &v1alpha1.GatewayTries{Failing: 2, Failures: []v1alpha1.GatewayFailure{
		{LoadBalancer: "tenant-a/lb", Record: "frontend TCP 203.0.113.1:1", Message: unanswered},
		{LoadBalancer: "tenant-a/gone", Record: "frontend TCP 203.0.113.7:1", Message: unanswered}}}
}

// triesTest is the Tries of the gateway g, with its model, and the gateway that answers for all addresses.
type triesTest struct {
	*Tries
	t        *testing.T
	hub      *translate.Translator
	answerer string
	// read: the model has been read. serves: clients reach the frontends here.
	read, serves bool
	// number is the number of the last list.
	number uint64
}

func (h *triesTest) AnswererOf(netip.Addr, string) string { return h.answerer }
func (h *triesTest) BelongsToPeer(netip.Addr) bool        { return h.answerer != "" && h.answerer != "g" }
func (h *triesTest) setAnswerer(name string)              { h.answerer = name }

func newTriesTest(t *testing.T) *triesTest {
	h := &triesTest{t: t, hub: translate.NewTranslator(), answerer: "g"}
	h.Tries = NewTries("g", true, h.hub.Owner, h)
	h.request("a", 2)
	return h
}

// request makes a tenant request a LoadBalancer with so many ports.
func (h *triesTest) request(tenant string, ports int32) {
	h.hub.SetTenant(translate.Tenant{Name: tenant, BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}})
	lb := translate.LoadBalancer{ObjectName: model.ObjectName{Namespace: "tenant-" + tenant, Name: "lb"}, Type: "LoadBalancer", VIPs: []netip.Addr{vip}, Addresses: []translate.Address{{IP: "198.51.100.1"}}}
	for n := range ports {
		lb.Ports, lb.EndpointPorts = append(lb.Ports, translate.Port{Number: 1 + n}), append(lb.EndpointPorts, translate.Port{Number: 30000})
	}
	h.hub.SetLoadBalancer(lb)
}

// restarted returns the test of a new process.
func restarted(t *testing.T) *triesTest {
	h := newTriesTest(t)
	h.ReadStatus("g", formerlyFailing(), time.Now())
	require.Empty(t, h.list(), "the hub has not been read")
	return h
}

// list returns the list for the watchdog.
func (h *triesTest) list() []watchdog.Frontend {
	l := h.List(h.hub.Snapshot(), from, func(model.FrontendKey) bool { return h.serves }, h.read, time.Now())
	h.number = l.Number
	return l.Frontends
}

// reportTried makes the watchdog report on the last list.
func (h *triesTest) reportTried(failures ...watchdog.Failure) {
	h.SetReport(watchdog.Report{Listed: h.number, Failures: failures})
}

// status returns status.tries after the gateway has read the hub.
func (h *triesTest) status() *v1alpha1.GatewayTries {
	h.hub.Flush()
	h.read = true
	h.FindUnconfirmed(h.hub.Snapshot, from, h.read, time.Now())
	return h.Status(h.Failing(time.Now()))
}

// failures returns the failing ports in status.tries.
func (h *triesTest) failures() []v1alpha1.GatewayFailure { return h.status().Failures }

func TestAPortThatFailedFailsUntilANewProcessHasTriedIt(t *testing.T) {
	h := restarted(t)
	at := netip.AddrPortFrom(vip, 1)
	named := []v1alpha1.GatewayFailure{{LoadBalancer: "tenant-a/lb", Record: "frontend TCP 203.0.113.1:1", Message: unanswered}}
	require.Equal(t, named, h.failures(), "the dataplane holds nothing yet, and no gateway is elected")
	list := h.list()
	require.Len(t, list, 2)
	require.True(t, list[0].Paused, "clients do not reach it here yet")
	require.Equal(t, unanswered, list[0].Former)
	require.Empty(t, list[1].Former)

	h.serves = true
	require.Equal(t, named, h.failures())
	require.False(t, h.list()[0].Paused)
	h.SetReport(watchdog.Report{Problem: "kubelb-watch cannot be made"})
	require.Equal(t, named, h.failures(), "nothing was tried")

	h.reportTried(watchdog.Failure{AddrPort: at, Message: "connections are refused"})
	require.Equal(t, "connections are refused", h.failures()[0].Message, "the watchdog has taken it over")
	h.reportTried()
	require.Empty(t, h.failures())
	h.ReadStatus("g", formerlyFailing(), time.Now())
	require.Empty(t, h.failures(), "later the object comes from this process")
}

func TestAFormerFailureIsDroppedIfThisGatewayDoesNotTryThePortAnyMore(t *testing.T) {
	for name, change := range map[string]func(*triesTest){
		"another LoadBalancer has the address": func(h *triesTest) {
			h.hub.DeleteLoadBalancer(model.ObjectName{Namespace: "tenant-a", Name: "lb"})
			h.request("b", 1)
		},
		"the LoadBalancer is deleted":    func(h *triesTest) { h.hub.DeleteLoadBalancer(model.ObjectName{Namespace: "tenant-a", Name: "lb"}) },
		"its port is deleted":            func(h *triesTest) { h.request("a", 0) },
		"another gateway answers for it": func(h *triesTest) { h.setAnswerer("other") },
	} {
		t.Run(name, func(t *testing.T) {
			h := restarted(t)
			require.NotEmpty(t, h.failures())
			change(h)
			require.Empty(t, h.failures())
		})
	}
}

func TestAPortThatAnotherGatewayHadForAMomentStillFails(t *testing.T) {
	h := restarted(t)
	h.setAnswerer("other")
	require.Empty(t, h.failures(), "the other gateway tries it")
	require.Empty(t, h.list())
	h.setAnswerer("g")
	require.Len(t, h.failures(), 1)
	require.Equal(t, unanswered, h.list()[0].Former)

	h.setAnswerer("other")
	for key, f := range h.former.failures {
		f.since = time.Now().Add(-2 * formerLifetime)
		h.former.failures[key] = f
	}
	h.list()
	h.setAnswerer("g")
	require.Empty(t, h.failures(), "the failure is too old")
}
