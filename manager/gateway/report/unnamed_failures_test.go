package report

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/watchdog"
)

// requestMany makes tenant a request so many LoadBalancers lb000, lb001 and so on, with one port each.
func (h *triesTest) requestMany(count int) {
	h.hub.DeleteLoadBalancer(model.ObjectName{Namespace: "tenant-a", Name: "lb"})
	for n := range count {
		h.hub.SetLoadBalancer(translate.LoadBalancer{ObjectName: model.ObjectName{Namespace: "tenant-a", Name: fmt.Sprintf("lb%03d", n)}, Type: "LoadBalancer", VIPs: []netip.Addr{vipOf(n)},
			Addresses: []translate.Address{{IP: "198.51.100.1"}}, Ports: []translate.Port{{Number: 1}}, EndpointPorts: []translate.Port{{Number: 30000}}})
	}
	h.hub.Flush()
}

func vipOf(n int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, byte(n)}) }

// truncatedFailures returns the tries of a gateway that names as many LoadBalancers of tenant a as it may, and says that there are more.
func truncatedFailures() *v1alpha1.GatewayTries {
	s := &v1alpha1.GatewayTries{Unlisted: []string{"tenant-a"}}
	for n := range maxFailuresOfTenant {
		s.Failures = append(s.Failures, v1alpha1.GatewayFailure{LoadBalancer: fmt.Sprintf("tenant-a/lb%03d", n), Record: fmt.Sprintf("frontend TCP %s:1", vipOf(n)), Message: unanswered})
	}
	return s
}

// mayFail reports whether connections to a LoadBalancer of tenant a fail, or may fail, by the status.
func mayFail(s *v1alpha1.GatewayTries, name string) bool {
	for _, f := range s.Failures {
		if f.LoadBalancer == "tenant-a/"+name {
			return true
		}
	}
	return s.FailuresTruncated("tenant-a")
}

// reportAfterTries makes the watchdog report on the last list, after it has tried the ports for which well returns true, successfully.
func (h *triesTest) reportAfterTries(list []watchdog.Frontend, well func(watchdog.Frontend) bool) {
	var failures []watchdog.Failure
	for _, f := range list {
		if f.Former != "" && !well(f) {
			failures = append(failures, watchdog.Failure{AddrPort: f.AddrPort, Message: f.Former, Unconfirmed: f.Unconfirmed})
		}
	}
	h.reportTried(failures...)
}

func TestAPortThatMayHaveFailedUnnamedMayFailUntilItIsTried(t *testing.T) {
	for name, begin := range map[string]func(*triesTest){
		"a new process": func(h *triesTest) {
			h.ReadStatus("g", truncatedFailures(), time.Now())
			require.True(h.t, mayFail(h.Status(h.Failing(time.Now())), "lb020"), "before the model was searched")
		},
		"the address moves here": func(h *triesTest) {
			h.ReadStatus("g", nil, time.Now())
			h.setAnswerer("other")
			h.ReadStatus("other", truncatedFailures(), time.Now())
			require.Empty(h.t, h.status().Unlisted, "the peer reports it itself")
			h.setAnswerer("g")
		},
		"it moves here after its gateway reported that nothing fails any more": func(h *triesTest) {
			h.ReadStatus("g", nil, time.Now())
			h.setAnswerer("other")
			h.ReadStatus("other", truncatedFailures(), time.Now())
			h.status()
			h.ReadStatus("other", nil, time.Now())
			h.setAnswerer("g")
		},
	} {
		t.Run(name, func(t *testing.T) {
			const ports = 30
			h := newTriesTest(t)
			h.requestMany(ports)
			h.serves = true
			begin(h)
			s := h.status()
			require.True(t, mayFail(s, "lb020"))
			require.Equal(t, []string{"tenant-a"}, s.Unlisted)
			require.EqualValues(t, maxFailuresOfTenant, s.Failing, "the other ports only may fail")
			list := h.list()
			require.Len(t, list, ports)
			require.False(t, list[0].Unconfirmed, "it is known to fail")
			require.True(t, list[20].Unconfirmed)
			require.True(t, list[20].Moved, "no try of it has shown that tries arrive here")

			named := func(f watchdog.Frontend) bool { return f.Addr().Compare(vipOf(20)) < 0 }
			h.reportAfterTries(list, func(watchdog.Frontend) bool { return false })
			require.True(t, mayFail(h.status(), "lb020"), "the watchdog has taken the failures over")
			require.Empty(t, h.list()[20].Former)
			h.reportAfterTries(list, named)
			require.True(t, mayFail(h.status(), "lb020"), "the port was not tried yet")
			require.False(t, mayFail(h.status(), "lb000"))
			h.reportAfterTries(list, func(f watchdog.Frontend) bool { return named(f) || f.Addr() == vipOf(20) })
			require.False(t, mayFail(h.status(), "lb020"), "the port was tried, and others were not")
			require.True(t, mayFail(h.status(), "lb021"))
			h.reportTried()
			require.Empty(t, h.status().Failures)
			require.Empty(t, h.status().Unlisted)
			require.Empty(t, h.list()[20].Former, "the former failure is gone")
		})
	}
}

func TestOtherPortsOfALoadBalancerMayFailUntilTheyAreTried(t *testing.T) {
	fails := &v1alpha1.GatewayTries{Failures: []v1alpha1.GatewayFailure{
		{LoadBalancer: "tenant-a/lb", Record: "frontend TCP 203.0.113.1:2", Message: strings.Repeat("no answer ", 20) + "; 1 of its other ports fail, too"}}}
	for name, begin := range map[string]func(*triesTest){
		"a new process": func(h *triesTest) { h.ReadStatus("g", fails, time.Now()) },
		"the address moves here": func(h *triesTest) {
			h.ReadStatus("g", nil, time.Now())
			h.setAnswerer("other")
			h.ReadStatus("other", fails, time.Now())
			require.Empty(h.t, h.failures())
			h.setAnswerer("g")
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newTriesTest(t)
			h.request("a", 3)
			begin(h)
			says := h.failures()
			require.Len(t, says, 1)
			require.Equal(t, "frontend TCP 203.0.113.1:2", says[0].Record, "it is known to fail")
			require.True(t, strings.HasSuffix(says[0].Message, "; 2 of its other ports may fail, too"), says[0].Message)
			require.LessOrEqual(t, len(says[0].Message), maxMessage)
			list := h.list()
			require.Len(t, list, 3)
			require.True(t, list[0].Unconfirmed && !list[1].Unconfirmed && list[2].Unconfirmed)

			h.reportAfterTries(list, func(f watchdog.Frontend) bool { return f.Port() < 3 })
			says = h.failures()
			require.Len(t, says, 1)
			require.Equal(t, "frontend TCP 203.0.113.1:3", says[0].Record)
			require.Contains(t, says[0].Message, "it may be one of the ports that failed")

			next := newTriesTest(t)
			next.request("a", 3)
			next.ReadStatus("g", h.status(), time.Now())
			require.Equal(t, says, next.failures(), "the next process knows no more")
			require.True(t, next.list()[2].Unconfirmed)
			h.reportTried()
			require.Empty(t, h.failures())
		})
	}
}

func TestTheNextProcessKnowsThatAFailureMovedFromAnotherGateway(t *testing.T) {
	h := withFailingPeer(t, "other")
	h.setAnswerer("g")
	next := newTriesTest(t)
	next.ReadStatus("g", h.status(), time.Now())
	require.Equal(t, h.failures(), next.failures())
	require.True(t, next.list()[0].Moved, "no try of it has shown that tries arrive here")
}

func TestAPortThatCannotBeTriedHereDoesNotFailForEver(t *testing.T) {
	six := netip.MustParseAddr("2001:db8::1")
	h := newTriesTest(t)
	h.hub.SetTenant(translate.Tenant{Name: "a", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("2001:db8:1::/64")}})
	h.hub.SetLoadBalancer(translate.LoadBalancer{ObjectName: model.ObjectName{Namespace: "tenant-a", Name: "lb"}, Type: "LoadBalancer", VIPs: []netip.Addr{six},
		Addresses: []translate.Address{{IP: "2001:db8:1::1"}}, Ports: []translate.Port{{Number: 1}}, EndpointPorts: []translate.Port{{Number: 30000}}})
	h.ReadStatus("g", &v1alpha1.GatewayTries{Unlisted: []string{"tenant-a"},
		Failures: []v1alpha1.GatewayFailure{{LoadBalancer: "tenant-a/lb", Record: "frontend TCP [2001:db8::1]:1", Message: unanswered}}}, time.Now())
	require.Len(t, h.failures(), 1)
	require.Empty(t, h.list(), "--try-from has no IPv6 address")
	require.Empty(t, h.failures())
	require.Empty(t, h.status().Unlisted)
}

func TestAFailureOfAFormerLoadBalancerDoesNotHideOneThatMoves(t *testing.T) {
	h := newTriesTest(t)
	h.ReadStatus("g", &v1alpha1.GatewayTries{Failures: []v1alpha1.GatewayFailure{{LoadBalancer: "tenant-gone/lb", Record: "frontend TCP 203.0.113.1:1", Message: unanswered}}}, time.Now())
	h.setAnswerer("other")
	h.ReadStatus("other", failingAtPeer(), time.Now())
	require.Empty(t, h.failures())
	h.setAnswerer("g")
	require.Len(t, h.failures(), 1, "no try has shown that it works")
	require.Equal(t, "tenant-a/lb", h.failures()[0].LoadBalancer)

	h = newTriesTest(t)
	h.ReadStatus("g", failingAtPeer(), time.Now())
	h.setAnswerer("other")
	h.ReadStatus("other", &v1alpha1.GatewayTries{Failures: []v1alpha1.GatewayFailure{{LoadBalancer: "tenant-gone/lb", Record: "frontend TCP 203.0.113.1:1", Message: unanswered}}}, time.Now())
	require.Empty(t, h.failures())
	h.setAnswerer("g")
	require.Len(t, h.failures(), 1, "the failure of a former LoadBalancer must not replace it")
}

func TestAFailureMovesAsOftenAsItsAddress(t *testing.T) {
	h := withFailingPeer(t, "other")
	for range 2 {
		h.setAnswerer("g")
		require.Len(t, h.failures(), 1)
		h.list()
		h.reportTried()
		require.Empty(t, h.failures())
		h.setAnswerer("other")
		require.Empty(t, h.failures())
		h.list()
	}
}

// The watchdog reports what it knows only after up to a second.
func TestAPortThatWorkedBeforeTheFirstReportDoesNotFailAnyMore(t *testing.T) {
	h := restarted(t)
	h.failures()
	h.serves = true
	require.NotEmpty(t, h.list()[0].Former)
	h.SetReport(watchdog.Report{Listed: h.number - 1})
	require.Len(t, h.failures(), 1, "the report is older than the list")
	h.reportTried()
	require.Empty(t, h.failures())
	require.Empty(t, h.list()[0].Former)

	h = restarted(t)
	h.failures()
	h.list()
	h.setAnswerer("other")
	h.list()
	h.reportTried()
	h.setAnswerer("g")
	require.Len(t, h.failures(), 1, "the last list did not have it")
}

func TestAPortThatIsNoLongerNamedMayStillFailWhileNotAllAreNamed(t *testing.T) {
	h := newTriesTest(t)
	h.requestMany(30)
	h.ReadStatus("g", nil, time.Now())
	h.setAnswerer("other")
	h.ReadStatus("other", truncatedFailures(), time.Now())
	h.status()
	fewer := truncatedFailures()
	fewer.Failures = fewer.Failures[1:]
	h.ReadStatus("other", fewer, time.Now().Add(-time.Hour))
	h.setAnswerer("g")
	h.status()
	require.True(t, h.list()[0].Unconfirmed, "it may have been left out for lack of room")
}

func TestPortsThatMayFailAreDroppedWithTheirLoadBalancers(t *testing.T) {
	h := newTriesTest(t)
	h.requestMany(30)
	h.ReadStatus("g", nil, time.Now())
	h.setAnswerer("other")
	h.ReadStatus("other", truncatedFailures(), time.Now())
	h.status()
	require.Len(t, h.ofPeers, 30)
	for n := 20; n < 30; n++ {
		h.hub.DeleteLoadBalancer(model.ObjectName{Namespace: "tenant-a", Name: fmt.Sprintf("lb%03d", n)})
	}
	h.hub.Flush()
	h.list()
	require.Len(t, h.ofPeers, 20)
	h.ReadStatus("other", nil, time.Now().Add(-time.Hour))
	h.status()
	require.Empty(t, h.ofPeers)
	require.Empty(t, h.unnamed)
}
