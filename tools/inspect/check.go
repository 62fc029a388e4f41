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
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/phrase"
	"kubelb.k8c.io/manager/convert"
)

// Check is what came of connections to a port of a LoadBalancer, from the host that made them.
type Check struct {
	LoadBalancer string `json:"loadBalancer"`
	Port         string `json:"port"`
	// Result is answered, fails, expected (it fails, as the LoadBalancer or its tenant asks for), or untried.
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

// Times of a check: until a connection is there, and for how long it is watched. A proxy accepts it before it has one to an endpoint, and then resets it.
const (
	connectWithin = 5 * time.Second
	watchFor      = 4 * time.Second
)

// atOnce is how many connections a check makes at a time.
const atOnce = 64

// Check connects to each TCP port of each address of the LoadBalancers.
func (h *Hub) Check(ctx context.Context, lbs []*v1alpha1.LoadBalancer) []Check {
	var checks []Check
	var runs errgroup.Group
	runs.SetLimit(atOnce)
	of := map[string]*v1alpha1.LoadBalancer{}
	for _, lb := range lbs {
		of[nameOf(lb)] = lb
		checks = append(checks, ports(lb)...)
	}
	for i := range checks {
		c := &checks[i]
		if c.Result != "" {
			continue
		}
		runs.Go(func() error {
			c.Result, c.Message = h.try(ctx, of[c.LoadBalancer], c.Port)
			return nil
		})
	}
	_ = runs.Wait() // none returns an error
	return checks
}

// ports are the checks of a LoadBalancer that are to be made.
func ports(lb *v1alpha1.LoadBalancer) (checks []Check) {
	if len(lb.Status.Addresses) == 0 {
		return []Check{{LoadBalancer: nameOf(lb), Result: Fails, Message: "it has no address: see kubelb explain"}}
	}
	for _, a := range lb.Status.Addresses {
		for _, p := range lb.Spec.Ports {
			port := net.JoinHostPort(a.Address, strconv.Itoa(int(p.Port)))
			checks = append(checks, Check{LoadBalancer: nameOf(lb), Port: fmt.Sprintf("%s %s", cmp.Or(p.Protocol, corev1.ProtocolTCP), port)})
		}
	}
	return checks
}

// try connects to a port, whose name begins with its protocol.
func (h *Hub) try(ctx context.Context, lb *v1alpha1.LoadBalancer, port string) (CheckResult, string) {
	var protocol, at string
	_, _ = fmt.Sscan(port, &protocol, &at)
	if protocol != string(corev1.ProtocolTCP) {
		return Untried, "what counts as an answer by " + protocol + " depends on the application"
	}
	outcome, accepted := connects(ctx, at)
	unserved := meta.FindStatusCondition(lb.Status.Conditions, v1alpha1.ConditionServed)
	switch {
	case accepted && unserved != nil && unserved.Status != metav1.ConditionTrue:
		// A kernel takes connections in the name of a proxy that hangs.
		return Fails, "the connection was accepted, but " + unserved.Message
	case outcome == "":
		return Answers, ""
	case outcome == noRoute:
		return Untried, noRoute
	case accepted && h.tried(lb):
		return Answers, outcome + ", as its endpoints do by themselves: gateways that try it know of no failure"
	}
	if reason := h.expected(lb); reason != "" {
		return Expected, outcome + ", as expected: " + reason
	}
	return Fails, outcome
}

// tried tells whether gateways try the LoadBalancer, and compare what they find with what its endpoints do. Whether source ranges let tries in they alone
// know.
func (h *Hub) tried(lb *v1alpha1.LoadBalancer) bool {
	l := convert.LoadBalancer(lb)
	return l.Forwarding != model.Direct.String() && len(l.SourceRanges) == 0 && slices.ContainsFunc(h.Gateways, func(g v1alpha1.Gateway) bool { return g.Status.Tries != nil && g.Status.Tries.Problem == "" })
}

// connects is what is wrong with connections, empty if nothing, and whether they are accepted.
func connects(ctx context.Context, to string) (wrong string, accepted bool) {
	conn, err := (&net.Dialer{Timeout: connectWithin}).DialContext(ctx, "tcp", to)
	if err == nil {
		defer conn.Close()
		_ = conn.SetReadDeadline(time.Now().Add(watchFor))
		_, err = conn.Read(make([]byte, 1))
	}
	switch {
	case errors.Is(err, syscall.ECONNRESET): // which may be said of the connection's beginning already
		return "the connection was accepted, and then reset", true
	case errors.Is(err, syscall.ENETUNREACH):
		return noRoute, false
	case conn == nil:
		return plainCause(err), false
	case errors.Is(err, io.EOF):
		return "the connection was accepted, and ended before a byte of data", true
	}
	return "", true
}

// noRoute is said of the host that checks, not of the LoadBalancer.
const noRoute = "this host has no route to the address"

func plainCause(err error) string {
	if timeout, is := errors.AsType[net.Error](err); is && timeout.Timeout() {
		return "no answer"
	}
	if number, is := errors.AsType[syscall.Errno](err); is {
		return number.Error()
	}
	return err.Error()
}

// expected is why connections may fail though all works.
func (h *Hub) expected(lb *v1alpha1.LoadBalancer) string {
	if reason, served := h.tenantServed(lb); !served {
		return reason
	}
	if reason, known := h.nodesKnown(lb); !known {
		return reason
	}
	if ranges := convert.LoadBalancer(lb).SourceRanges; len(ranges) > 0 {
		return "source ranges admit only " + phrase.Few(ranges, ", ") + ", and may exclude this host"
	}
	return ""
}

// Failing tells whether one of the checks fails.
func Failing(checks []Check) bool {
	return slices.ContainsFunc(checks, func(c Check) bool { return c.Result == Fails })
}

// WriteChecks writes a check a line.
func WriteChecks(w io.Writer, checks []Check) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "RESULT\tPORT\tLOADBALANCER\tWHAT HAPPENED")
	for _, c := range checks {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", c.Result, cmp.Or(c.Port, "-"), c.LoadBalancer, plain.Line(c.Message))
	}
	return table.Flush()
}
