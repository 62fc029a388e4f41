package inspect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/phrase"
	"kubelb.k8c.io/manager/connect"
	"kubelb.k8c.io/manager/convert"
)

// Check is the result of a connection to a port of a LoadBalancer from this host.
type Check struct {
	LoadBalancer string `json:"loadBalancer"`
	Port         string `json:"port"`
	// Result is answered, fails, expected (the connection fails, and the settings of the LoadBalancer or of its tenant explain that), or untried.
	Result CheckResult `json:"result"`
	// Message says what happened.
	Message string `json:"message"`
}

// CheckResult is the result of a check.
type CheckResult string

// The results. Only Fails is an error.
const (
	Answers  CheckResult = "answered"
	Fails    CheckResult = "fails"
	Expected CheckResult = "expected"
	Untried  CheckResult = "untried"
)

// Time limits of a check. connectWithin is the limit for the handshake. watchFor is how long the connection is watched after the handshake: a proxy accepts a connection
// before it has a connection to an endpoint, and resets it if it gets none.
const (
	connectWithin = 5 * time.Second
	watchFor      = 4 * time.Second
)

// maxConcurrent is the number of connections at a time.
const maxConcurrent = 64

// Check connects to each TCP port of each address of the LoadBalancers.
func (h *Snapshot) Check(ctx context.Context, lbs []*v1alpha1.LoadBalancer) []Check {
	var all []port
	for _, lb := range lbs {
		all = append(all, portsOf(lb)...)
	}
	checks := make([]Check, len(all))
	var runs errgroup.Group
	runs.SetLimit(maxConcurrent)
	for i, p := range all {
		runs.Go(func() error {
			checks[i] = h.check(ctx, p)
			return nil
		})
	}
	_ = runs.Wait() // none returns an error
	return checks
}

// port is a port of a LoadBalancer at one of its addresses. at is empty if the LoadBalancer has no address.
type port struct {
	of       *v1alpha1.LoadBalancer
	protocol corev1.Protocol
	at       string
}

func portsOf(lb *v1alpha1.LoadBalancer) (all []port) {
	if len(lb.Status.Addresses) == 0 {
		return []port{{of: lb}}
	}
	for _, a := range lb.Status.Addresses {
		for _, p := range lb.Spec.Ports {
			all = append(all, port{lb, cmp.Or(p.Protocol, corev1.ProtocolTCP), net.JoinHostPort(a.Address, strconv.Itoa(int(p.Port)))})
		}
	}
	return all
}

func (h *Snapshot) check(ctx context.Context, p port) Check {
	c := Check{LoadBalancer: nameOf(p.of)}
	if p.at == "" {
		c.Result, c.Message = Fails, "it has no address: see kubelb explain"
		return c
	}
	c.Port = fmt.Sprintf("%s %s", p.protocol, p.at)
	c.Result, c.Message = h.checkPort(ctx, p)
	return c
}

// checkPort connects to a port, and judges the result.
func (h *Snapshot) checkPort(ctx context.Context, p port) (CheckResult, string) {
	if p.protocol != corev1.ProtocolTCP {
		return Untried, fmt.Sprintf("what counts as an answer by %s depends on the application", p.protocol)
	}
	outcome, accepted := connectTo(ctx, p.at)
	unserved := plain.NotTrue(p.of.Status.Conditions, v1alpha1.ConditionServed)
	switch {
	case accepted && unserved != nil:
		// The kernel accepts connections even if a proxy hangs.
		return Fails, "the connection was accepted, but " + unserved.Message
	case outcome == "":
		return Answers, ""
	case outcome == noRoute:
		return Untried, noRoute
	}
	if reason := h.expected(p.of); reason != "" {
		return Expected, outcome + ", as expected: " + reason
	}
	if accepted {
		return h.judgeEnded(p, outcome)
	}
	return Fails, outcome
}

// connectTo makes a connection. wrong says what failed, and is empty if nothing failed. accepted reports whether the handshake was completed.
func connectTo(ctx context.Context, to string) (wrong string, accepted bool) {
	accepted, err := connect.Try(ctx, to, connectWithin, watchFor)
	switch {
	case errors.Is(err, syscall.ECONNRESET):
		return "the connection was accepted, and then reset", true
	case errors.Is(err, syscall.ENETUNREACH) && !accepted:
		return noRoute, false
	case !accepted:
		return connect.Cause(err), false
	case errors.Is(err, io.EOF):
		return "the connection was accepted, and ended before a byte of data", true
	}
	return "", true
}

// noRoute is an outcome that is a fault of this host, and not of the LoadBalancer.
const noRoute = "this host has no route to the address"

// expected says why connections may fail although the load balancer works. It is empty if there is no such reason.
func (h *Snapshot) expected(lb *v1alpha1.LoadBalancer) string {
	if reason, served := h.tenantServed(lb); !served {
		return reason
	}
	if reason, known := h.nodesKnown(lb); !known {
		return reason
	}
	if reason := noLocalPods(lb); reason != "" {
		return reason
	}
	if ranges := convert.LoadBalancer(lb).SourceRanges; len(ranges) > 0 {
		return "its source ranges allow only " + phrase.Few(ranges, ", ") + ", and may exclude this host"
	}
	return ""
}

// Failing reports whether one of the checks fails.
func Failing(checks []Check) bool {
	return slices.ContainsFunc(checks, func(c Check) bool { return c.Result == Fails })
}

// WriteChecks writes one line for each check.
func WriteChecks(w io.Writer, checks []Check) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "RESULT\tPORT\tLOADBALANCER\tWHAT HAPPENED")
	for _, c := range checks {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", c.Result, cmp.Or(c.Port, "-"), c.LoadBalancer, plain.Line(c.Message))
	}
	return table.Flush()
}
