package report

import (
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/manager/gateway/driver"
	"kubelb.k8c.io/manager/heartbeat"
)

// Drained is the condition of a gateway that drains. answered is for how many addresses it still answers. Whether others do in its place is another
// matter: a pool may choose none of them.
func Drained(answered int32, replaced bool) metav1.Condition {
	if answered > 0 {
		return metav1.Condition{Type: v1alpha1.ConditionDrained, Status: metav1.ConditionFalse, Reason: "Draining", Message: fmt.Sprintf("it still answers for %d addresses", answered)}
	}
	others := "not all of its addresses are known to have another gateway that works"
	if replaced {
		others = "all of its addresses have another gateway that works"
	}
	return metav1.Condition{Type: v1alpha1.ConditionDrained, Status: metav1.ConditionTrue, Reason: "Drained", Message: "it answers for no address any more; " + others + "; connections that it has go on"}
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

// hostConditions are one for each group in which something is missing. Where nothing is there are none.
func hostConditions(lacking []dataplane.Check) (conditions []metav1.Condition) {
	for _, group := range dataplane.Groups() {
		reason := v1alpha1.ReasonHostLimits
		var lines []string
		for _, c := range lacking {
			// A backend of another version may know groups that this manager does not.
			if c.Group != group && (group != dataplane.GroupKernel || slices.Contains(dataplane.Groups(), c.Group)) {
				continue
			}
			lines = append(lines, c.String())
			if c.Required() {
				reason = v1alpha1.ReasonHostLacks
			}
		}
		if len(lines) > 0 {
			conditions = append(conditions, metav1.Condition{Type: v1alpha1.ConditionHostPrefix + string(group), Status: metav1.ConditionFalse, Reason: reason,
				Message: strings.Join(lines, "\n")})
		}
	}
	return conditions
}
