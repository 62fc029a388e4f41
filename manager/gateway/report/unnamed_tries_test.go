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

// many has tenant a ask for so many LoadBalancers lb000, lb001 and so on, with a port each.
func (h *tester) many(count int) {
	h.hub.DeleteLoadBalancer(model.ObjectName{Namespace: "tenant-a", Name: "lb"})
	for n := range count {
		h.hub.SetLoadBalancer(translate.LoadBalancer{ObjectName: model.ObjectName{Namespace: "tenant-a", Name: fmt.Sprintf("lb%03d", n)}, Type: "LoadBalancer", VIPs: []netip.Addr{vipOf(n)},
			Addresses: []translate.Address{{IP: "198.51.100.1"}}, Ports: []translate.Port{{Number: 1}}, EndpointPorts: []translate.Port{{Number: 30000}}})
	}
	h.hub.Flush()
}

func vipOf(n int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, byte(n)}) }

// moreFailing are tries of a gateway that names as many LoadBalancers of tenant a as it may, and says that there are more.
func moreFailing() *v1alpha1.GatewayTries {
	s := &v1alpha1.GatewayTries{Unlisted: []string{"tenant-a"}}
	for n := range maxFailuresOfTenant {
		s.Failures = append(s.Failures, v1alpha1.GatewayFailure{LoadBalancer: fmt.Sprintf("tenant-a/lb%03d", n), Record: fmt.Sprintf("frontend TCP %s:1", vipOf(n)), Message: unanswered})
	}
	return s
}

// maySay tells whether the status says of a LoadBalancer of tenant a that connections to it fail, or may fail.
func maySay(s *v1alpha1.GatewayTries, name string) bool {
	for _, f := range s.Failures {
		if f.LoadBalancer == "tenant-a/"+name {
			return true
		}
	}
	return s.FailuresTruncated("tenant-a")
}

// judged are the watchdog's failures of the last list once it has tried some of its ports, which are well.
func (h *tester) judged(list []watchdog.Frontend, well func(watchdog.Frontend) bool) {
	var failures []watchdog.Failure
	for _, f := range list {
		if f.Former != "" && !well(f) {
			failures = append(failures, watchdog.Failure{AddrPort: f.AddrPort, Message: f.Former, Unconfirmed: f.Unconfirmed})
		}
	}
	h.tried(failures...)
}

func TestWhatMayHaveFailedUnnamedMayFailUntilANewGatewayOrProcessHasTriedIt(t *testing.T) {
	for name, begin := range map[string]func(*tester){
		"a new process": func(h *tester) {
			h.Learn("g", moreFailing(), time.Now())
			require.True(h.t, maySay(h.Status(h.Failing(time.Now())), "lb020"), "before anybody has looked at the model")
		},
		"the address moves here": func(h *tester) {
			h.Learn("g", nil, time.Now())
			h.winner("other")
			h.Learn("other", moreFailing(), time.Now())
			require.Empty(h.t, h.status().Unlisted, "the other one says so itself")
			h.winner("g")
		},
		"it moves here, and its gateway said before that nothing fails there now": func(h *tester) {
			h.Learn("g", nil, time.Now())
			h.winner("other")
			h.Learn("other", moreFailing(), time.Now())
			h.status()
			h.Learn("other", nil, time.Now())
			h.winner("g")
		},
	} {
		t.Run(name, func(t *testing.T) {
			const ports = 30
			h := newTester(t)
			h.many(ports)
			h.serves = true
			begin(h)
			s := h.status()
			require.True(t, maySay(s, "lb020"))
			require.Equal(t, []string{"tenant-a"}, s.Unlisted)
			require.EqualValues(t, maxFailuresOfTenant, s.Failing, "of the others nobody knows that they fail")
			list := h.list()
			require.Len(t, list, ports)
			require.False(t, list[0].Unconfirmed, "it is known to fail")
			require.True(t, list[20].Unconfirmed)
			require.True(t, list[20].Moved, "nobody has seen that tries of it arrive here")

			named := func(f watchdog.Frontend) bool { return f.Addr().Compare(vipOf(20)) < 0 }
			h.judged(list, func(watchdog.Frontend) bool { return false })
			require.True(t, maySay(h.status(), "lb020"), "the watchdog has taken over what is known")
			require.Empty(t, h.list()[20].Former)
			h.judged(list, named)
			require.True(t, maySay(h.status(), "lb020"), "its port was not tried yet")
			require.False(t, maySay(h.status(), "lb000"))
			h.judged(list, func(f watchdog.Frontend) bool { return named(f) || f.Addr() == vipOf(20) })
			require.False(t, maySay(h.status(), "lb020"), "it was tried, and others were not")
			require.True(t, maySay(h.status(), "lb021"))
			h.tried()
			require.Empty(t, h.status().Failures)
			require.Empty(t, h.status().Unlisted)
			require.Empty(t, h.list()[20].Former, "that is over")
		})
	}
}

func TestOtherPortsOfALoadBalancerMayFailUntilTheyAreTried(t *testing.T) {
	fails := &v1alpha1.GatewayTries{Failures: []v1alpha1.GatewayFailure{
		{LoadBalancer: "tenant-a/lb", Record: "frontend TCP 203.0.113.1:2", Message: strings.Repeat("no answer ", 20) + "; 1 of its other ports fail, too"}}}
	for name, begin := range map[string]func(*tester){
		"a new process": func(h *tester) { h.Learn("g", fails, time.Now()) },
		"the address moves here": func(h *tester) {
			h.Learn("g", nil, time.Now())
			h.winner("other")
			h.Learn("other", fails, time.Now())
			require.Empty(h.t, h.says())
			h.winner("g")
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newTester(t)
			h.asks("a", 3)
			begin(h)
			says := h.says()
			require.Len(t, says, 1)
			require.Equal(t, "frontend TCP 203.0.113.1:2", says[0].Record, "it is known to fail")
			require.True(t, strings.HasSuffix(says[0].Message, "; 2 of its other ports may fail, too"), says[0].Message)
			require.LessOrEqual(t, len(says[0].Message), maxMessage)
			list := h.list()
			require.Len(t, list, 3)
			require.True(t, list[0].Unconfirmed && !list[1].Unconfirmed && list[2].Unconfirmed)

			h.judged(list, func(f watchdog.Frontend) bool { return f.Port() < 3 })
			says = h.says()
			require.Len(t, says, 1)
			require.Equal(t, "frontend TCP 203.0.113.1:3", says[0].Record)
			require.Contains(t, says[0].Message, "it may be one of the ports that failed")

			next := newTester(t)
			next.asks("a", 3)
			next.Learn("g", h.status(), time.Now())
			require.Equal(t, says, next.says(), "a later process knows no better")
			require.True(t, next.list()[2].Unconfirmed)
			h.tried()
			require.Empty(t, h.says())
		})
	}
}

func TestAFailureThatMovedIsOfAnotherGatewayForALaterProcessToo(t *testing.T) {
	h := besideFailing(t, "other")
	h.winner("g")
	next := newTester(t)
	next.Learn("g", h.status(), time.Now())
	require.Equal(t, h.says(), next.says())
	require.True(t, next.list()[0].Moved, "nobody has seen that tries of it arrive here")
}

func TestWhatCannotBeTriedHereIsNotSaidToFailForEver(t *testing.T) {
	six := netip.MustParseAddr("2001:db8::1")
	h := newTester(t)
	h.hub.SetTenant(translate.Tenant{Name: "a", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("2001:db8:1::/64")}})
	h.hub.SetLoadBalancer(translate.LoadBalancer{ObjectName: model.ObjectName{Namespace: "tenant-a", Name: "lb"}, Type: "LoadBalancer", VIPs: []netip.Addr{six},
		Addresses: []translate.Address{{IP: "2001:db8:1::1"}}, Ports: []translate.Port{{Number: 1}}, EndpointPorts: []translate.Port{{Number: 30000}}})
	h.Learn("g", &v1alpha1.GatewayTries{Unlisted: []string{"tenant-a"},
		Failures: []v1alpha1.GatewayFailure{{LoadBalancer: "tenant-a/lb", Record: "frontend TCP [2001:db8::1]:1", Message: unanswered}}}, time.Now())
	require.Len(t, h.says(), 1)
	require.Empty(t, h.list(), "--try-from has no IPv6 address")
	require.Empty(t, h.says())
	require.Empty(t, h.status().Unlisted)
}

func TestAFailureOfAFormerLoadBalancerHidesNoneThatMoves(t *testing.T) {
	h := newTester(t)
	h.Learn("g", &v1alpha1.GatewayTries{Failures: []v1alpha1.GatewayFailure{{LoadBalancer: "tenant-gone/lb", Record: "frontend TCP 203.0.113.1:1", Message: unanswered}}}, time.Now())
	h.winner("other")
	h.Learn("other", failingElsewhere(), time.Now())
	require.Empty(t, h.says())
	h.winner("g")
	require.Len(t, h.says(), 1, "nobody has seen that it is well")
	require.Equal(t, "tenant-a/lb", h.says()[0].LoadBalancer)

	h = newTester(t)
	h.Learn("g", failingElsewhere(), time.Now())
	h.winner("other")
	h.Learn("other", &v1alpha1.GatewayTries{Failures: []v1alpha1.GatewayFailure{{LoadBalancer: "tenant-gone/lb", Record: "frontend TCP 203.0.113.1:1", Message: unanswered}}}, time.Now())
	require.Empty(t, h.says())
	h.winner("g")
	require.Len(t, h.says(), 1, "what moves may be of a former LoadBalancer as well")
}

func TestAFailureMovesAsOftenAsItsAddress(t *testing.T) {
	h := besideFailing(t, "other")
	for range 2 {
		h.winner("g")
		require.Len(t, h.says(), 1)
		h.list()
		h.tried()
		require.Empty(t, h.says())
		h.winner("other")
		require.Empty(t, h.says())
		h.list()
	}
}

// It takes the watchdog up to a second to tell what it knows.
func TestWhatTheWatchdogFoundWellBeforeItsFirstReportFailsNoMore(t *testing.T) {
	h := again(t)
	h.says()
	h.serves = true
	require.NotEmpty(t, h.list()[0].Former)
	h.Take(watchdog.Report{Listed: h.number - 1})
	require.Len(t, h.says(), 1, "that was told before it had the list")
	h.tried()
	require.Empty(t, h.says())
	require.Empty(t, h.list()[0].Former)

	h = again(t)
	h.says()
	h.list()
	h.winner("other")
	h.list()
	h.tried()
	h.winner("g")
	require.Len(t, h.says(), 1, "the last list did not have it")
}

func TestAPortThatIsNamedNoLongerMayStillFailWhileNotAllAreNamed(t *testing.T) {
	h := newTester(t)
	h.many(30)
	h.Learn("g", nil, time.Now())
	h.winner("other")
	h.Learn("other", moreFailing(), time.Now())
	h.status()
	fewer := moreFailing()
	fewer.Failures = fewer.Failures[1:]
	h.Learn("other", fewer, time.Now().Add(-time.Hour))
	h.winner("g")
	h.status()
	require.True(t, h.list()[0].Unconfirmed, "there was room for others alone")
}

func TestPortsThatMayFailAreForgottenWithThem(t *testing.T) {
	h := newTester(t)
	h.many(30)
	h.Learn("g", nil, time.Now())
	h.winner("other")
	h.Learn("other", moreFailing(), time.Now())
	h.status()
	require.Len(t, h.others, 30)
	for n := 20; n < 30; n++ {
		h.hub.DeleteLoadBalancer(model.ObjectName{Namespace: "tenant-a", Name: fmt.Sprintf("lb%03d", n)})
	}
	h.hub.Flush()
	h.list()
	require.Len(t, h.others, 20)
	h.Learn("other", nil, time.Now().Add(-time.Hour))
	h.status()
	require.Empty(t, h.others)
	require.Empty(t, h.unnamed)
}
