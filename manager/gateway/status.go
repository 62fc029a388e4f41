package gateway

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/gateway/driver"
	"kubelb.k8c.io/manager/heartbeat"
	"kubelb.k8c.io/manager/watchdog"
)

// maxBehind is how many namespaces the Gateway object names as behind.
const maxBehind = 1000

// applied is up to which version the dataplane holds LoadBalancers, and the namespaces that are behind. With more of those than can be named
// nothing is said: what was said before still holds.
func (g *Gateway) applied() (version string, behind []v1alpha1.GatewayBehind) {
	of, known := g.driver.Behind()
	if len(of) > maxBehind || !known {
		return "", nil
	}
	for _, tenant := range slices.Sorted(maps.Keys(of)) {
		behind = append(behind, v1alpha1.GatewayBehind{Namespace: translate.Tenant{Name: tenant}.Namespace(), ResourceVersion: strconv.FormatUint(of[tenant], 10)})
	}
	return strconv.FormatUint(g.driver.Version(), 10), behind
}

// publish hands the present state to the writer; only the newest counts.
func (g *Gateway) publish() {
	failing := g.failing()
	backend := g.driver.Description()
	s := report{told: g.served, GatewayStatus: v1alpha1.GatewayStatus{
		Backend:            v1alpha1.GatewayBackend{Name: backend.Name, Version: backend.Version, Notes: backend.Notes},
		Generation:         g.driver.Generation().String(),
		Frontends:          int32(g.driver.Held()),
		AnnouncedAddresses: g.answering.answered(),
		Elects:             g.answering.elects,
		Candidates:         g.answering.view.Candidates,
		WithoutIPv4:        g.answering.view.WithoutIPv4,
		WithoutIPv6:        g.answering.view.WithoutIPv6,
		Tenants:            g.usedNow(time.Now()),
		HostAddresses:      g.hosts.published(),
		Silent:             g.silent(time.Now()),
		Tries:              g.tries(failing),
	}}
	for _, f := range backend.Features {
		s.Backend.Features = append(s.Backend.Features, string(f))
	}
	s.Failures, s.Unlisted = listed(g.driver.Failures())
	unpurged := g.driver.Unpurged()
	for _, name := range slices.Sorted(maps.Keys(unpurged)) {
		s.Failures = append(s.Failures, v1alpha1.GatewayFailure{Record: leftRecord + name, Message: plain.Message(unpurged[name], 1024)})
	}
	ready := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "InSync", Message: "the dataplane holds the model"}
	switch {
	case g.driver.Problem() != nil:
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, "BackendFailed", plain.Message(g.driver.Problem().Error(), 1024)
	case !g.driver.Running() || g.driver.Resyncing():
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, "BackendRestarting", "the backend's process is being started again"
	case len(g.driver.Failures()) > 0:
		ready.Reason, ready.Message = "SomeRecordsFailed", fmt.Sprintf("%d records could not be taken, see failures", len(g.driver.Failures()))
	case len(unpurged) > 0:
		ready.Reason, ready.Message = "FormerBackendLeft", "a former backend could not be purged, see failures"
	}
	// While it is called, or away, the dataplane holds what it held, which stands in the object. Once it is known what it lacks, that is true of
	// those who lack nothing, however long it takes until it has all.
	if g.driver.Knows() {
		s.AppliedResourceVersion, s.Behind = g.applied()
		if g.announces() {
			s.AnnouncedResourceVersion = s.AppliedResourceVersion
		}
	}
	s.Conditions = append([]metav1.Condition{ready}, hostConditions(g.lacking())...)
	if slow, is := slowCondition(g.driver.Calling(), time.Now()); is {
		s.Conditions = append(s.Conditions, slow)
	}
	if nothing, is := g.servesNothing(); is {
		s.Conditions = append(s.Conditions, nothing)
	}
	if g.drain.Draining() {
		s.Conditions = append(s.Conditions, g.drainedCondition())
	}
	if s.Conflicts = g.conflicts(); len(s.Conflicts) > 0 {
		s.Conditions = append(s.Conditions, conflictCondition(s.Conflicts))
	}
	if g.options.Heart != nil {
		if refused := g.options.Heart.Refused(); len(refused) > 0 {
			s.Conditions = append(s.Conditions, refusedCondition(refused))
		}
	}
	if g.routers != nil {
		s.BGPSessions = g.routers.sessions()
		s.Conditions = append(s.Conditions, sessionsCondition(s.BGPSessions, g.routers.hasLooked()))
	}
	g.metrics.show(&s.GatewayStatus, g.beside(failing))
	select {
	case <-g.status:
	default:
	}
	g.status <- s
}

// reasonSlow is that of the condition about a call that takes long.
const reasonSlow = "CallTakesLong"

// slowAfter is from when on a call of a plugin is named in a condition.
const slowAfter = 10 * time.Second

// slowCondition names a call that takes long; it is there only while that is so.
func slowCondition(c *driver.Call, now time.Time) (metav1.Condition, bool) {
	if c == nil || now.Sub(c.Began) < slowAfter {
		return metav1.Condition{}, false
	}
	return metav1.Condition{Type: v1alpha1.ConditionBackendBusy, Status: metav1.ConditionTrue, Reason: reasonSlow,
		// In tens of seconds: each other text would be another write.
		Message: fmt.Sprintf("the backend has worked on %s for more than %s; it may take %s, then it is started again. What the dataplane holds goes on; later changes wait",
			c.Name, now.Sub(c.Began).Truncate(slowAfter), c.Limit)}, true
}

func (g *Gateway) beside(failing map[model.FrontendKey]watchdog.Failure) beside {
	b := beside{failing: beyondNodes(failing), draining: g.drain.Draining(), mayAnswer: g.MayAnswer(), failed: len(g.driver.Failures()), handedOver: g.answering.redirects.Former(), targets: g.targets, unhealthy: len(g.unhealthy)}
	if lease := g.options.lease(); lease != nil {
		reaches := lease.Reaches()
		b.hub = &reaches
	}
	return b
}

// drainedCondition says whether one that drains answers still. Whether others do in its place is another matter: a pool may choose none of them.
func (g *Gateway) drainedCondition() metav1.Condition {
	if answered := g.answering.answered(); answered > 0 {
		return metav1.Condition{Type: v1alpha1.ConditionDrained, Status: metav1.ConditionFalse, Reason: "Draining", Message: fmt.Sprintf("it still answers for %d addresses", answered)}
	}
	others := "not all of its addresses are known to have another gateway that works"
	if g.isReplaced() {
		others = "all of its addresses have another gateway that works"
	}
	return metav1.Condition{Type: v1alpha1.ConditionDrained, Status: metav1.ConditionTrue, Reason: "Drained", Message: "it answers for no address any more; " + others + "; connections that it has go on"}
}

func (g *Gateway) conflicts() (out []v1alpha1.AddressConflict) {
	if g.options.Conflicts == nil {
		return nil
	}
	for _, c := range g.options.Conflicts() {
		out = append(out, v1alpha1.AddressConflict{Address: c.Address.String(), MAC: c.MAC})
	}
	return out
}

// namedConflicts are named in the condition, no more.
const namedConflicts = 10

func conflictCondition(conflicts []v1alpha1.AddressConflict) metav1.Condition {
	var named []string
	for _, c := range conflicts[:min(len(conflicts), namedConflicts)] {
		named = append(named, c.Address+" by "+c.MAC)
	}
	message := "another host on the segment says that these addresses are its own, so that clients may reach it instead: " + strings.Join(named, ", ")
	if more := len(conflicts) - namedConflicts; more > 0 {
		message += fmt.Sprintf(" and %d more", more)
	}
	return metav1.Condition{Type: v1alpha1.ConditionAddressConflict, Status: metav1.ConditionTrue, Reason: "AnotherHostAnswers",
		Message: message + "; take the addresses from that host, or out of the AddressPool"}
}

// refusedCondition names gateways that are heard and not believed.
func refusedCondition(refused []heartbeat.Refusal) metav1.Condition {
	var lines []string
	for _, r := range refused {
		lines = append(lines, "gateway "+r.Gateway+": "+r.Reason)
	}
	return metav1.Condition{Type: v1alpha1.ConditionHeartbeatsRefused, Status: metav1.ConditionTrue, Reason: "NotBelieved",
		Message: "heartbeats that arrive are refused, so that these gateways count as gone while the management cluster is away:\n" + strings.Join(lines, "\n")}
}

// statusPause keeps the writer from asking the API server for every change of a burst.
const statusPause = 100 * time.Millisecond

// writeStatus writes the newest status, again and again, until ctx ends. An API server that is away delays nothing else.
func (g *Gateway) writeStatus(ctx context.Context) error {
	var latest *report
	retry := time.NewTimer(0)
	defer retry.Stop()
	unwritten := unwritten{}
	if lease := g.options.lease(); lease != nil {
		unwritten.lease = lease
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case s := <-g.status:
			latest = &s
		case <-retry.C:
		}
		if latest == nil {
			continue
		}
		err := g.write(ctx, *latest)
		unwritten.note(err, time.Now())
		if err != nil {
			if ctx.Err() == nil && !apierrors.IsConflict(err) {
				g.log.Warn("write Gateway status", "error", err)
			}
			retry.Reset(time.Second)
			continue
		}
		latest = nil
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(statusPause):
		}
	}
}

// unwritten says on the gateway's Lease that its object is of before, where that cannot be written although the API is reached.
type unwritten struct {
	// lease is nil where there is none.
	lease interface {
		Reaches() bool
		SayUnwritten(why string)
	}
	since time.Time
}

// unwrittenAfter is for how long it has to be tried in vain.
const unwrittenAfter = 10 * time.Second

// note takes note of what has become of a try.
func (u *unwritten) note(err error, now time.Time) {
	switch {
	case u.lease == nil:
	case err == nil:
		u.since = time.Time{}
		u.lease.SayUnwritten("")
	case !u.lease.Reaches():
		u.since = time.Time{}
	case u.since.IsZero():
		u.since = now
	case now.Sub(u.since) >= unwrittenAfter:
		u.lease.SayUnwritten(err.Error())
	}
}

func (g *Gateway) write(ctx context.Context, s report) error {
	object := &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: g.options.Name, Labels: g.options.Labels}}
	err := g.client.Get(ctx, client.ObjectKeyFromObject(object), object)
	if apierrors.IsNotFound(err) {
		err = g.client.Create(ctx, object)
	}
	if err != nil {
		return err
	}
	if err := g.label(ctx, object); err != nil {
		return err
	}
	before := object.Status.DeepCopy()
	// What was said of a role that the gateway has no more is not said any more.
	conditions := slices.DeleteFunc(slices.Clone(object.Status.Conditions), func(c metav1.Condition) bool { return meta.FindStatusCondition(s.Conditions, c.Type) == nil })
	for _, c := range s.Conditions {
		plain.SetCondition(&conditions, c)
	}
	s.carryOver(*before)
	object.Status, object.Status.Conditions = s.GatewayStatus, conditions
	if equality.Semantic.DeepEqual(before, &object.Status) {
		return nil
	}
	return g.client.Status().Update(ctx, object)
}

// label gives the Gateway object the labels that it is to have. Others, which somebody else has given it, stay. Where a policy leaves changes of
// labels to operators, the gateway goes on with those that its object has: it is chosen by these.
func (g *Gateway) label(ctx context.Context, object *v1alpha1.Gateway) error {
	labels := maps.Clone(object.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, g.options.Labels)
	if maps.Equal(labels, object.Labels) {
		return nil
	}
	has := object.Labels
	object.Labels = labels
	err := g.client.Update(ctx, object)
	if !apierrors.IsForbidden(err) {
		g.unlabelled = false
		return err
	}
	object.Labels = has
	if !g.unlabelled {
		g.log.Warn("the Gateway object does not get the labels of --gateway-label: write them with kubectl label", "labels", g.options.Labels, "error", err)
	}
	g.unlabelled = true
	return nil
}
