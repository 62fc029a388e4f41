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

// Drained returns the condition of a gateway that drains. answered is the number of addresses that it still answers for. replaced says whether peers
// answer for all of its addresses: an AddressPool may select none of them.
func Drained(answered int32, replaced bool) metav1.Condition {
	if answered > 0 {
		return metav1.Condition{Type: v1alpha1.ConditionDrained, Status: metav1.ConditionFalse, Reason: "Draining", Message: fmt.Sprintf("the gateway still answers for %d addresses", answered)}
	}
	others := "it is not known of all its addresses that another gateway answers for them"
	if replaced {
		others = "other gateways answer for all its addresses"
	}
	return metav1.Condition{Type: v1alpha1.ConditionDrained, Status: metav1.ConditionTrue, Reason: "Drained", Message: "the gateway answers for no address any more; " + others + "; existing connections go on"}
}

// reasonSlow is the reason of the condition about a call that takes long.
const reasonSlow = "CallTakesLong"

// slowAfter is the duration from which on a call of a plugin has a condition.
const slowAfter = 10 * time.Second

// slowCondition returns the condition of a call that takes long, as long as it does.
func slowCondition(c *driver.Call, now time.Time) (metav1.Condition, bool) {
	if c == nil || now.Sub(c.Began) < slowAfter {
		return metav1.Condition{}, false
	}
	return metav1.Condition{Type: v1alpha1.ConditionBackendBusy, Status: metav1.ConditionTrue, Reason: reasonSlow,
		// The time is rounded, since each new text is a write.
		Message: fmt.Sprintf("the plugin has worked on %s for more than %s; after %s it is started again. The dataplane goes on with what it holds, and later changes wait",
			c.Name, now.Sub(c.Began).Truncate(slowAfter), c.Limit)}, true
}

// maxNamedConflicts bounds the conflicts in the condition's message.
const maxNamedConflicts = 10

func conflictCondition(conflicts []v1alpha1.AddressConflict) metav1.Condition {
	var named []string
	for _, c := range conflicts[:min(len(conflicts), maxNamedConflicts)] {
		named = append(named, c.Address+" by "+c.MAC)
	}
	message := "another host on the segment uses these addresses, so that clients may reach that host instead: " + strings.Join(named, ", ")
	if more := len(conflicts) - maxNamedConflicts; more > 0 {
		message += fmt.Sprintf(" and %d more", more)
	}
	return metav1.Condition{Type: v1alpha1.ConditionAddressConflict, Status: metav1.ConditionTrue, Reason: "AnotherHostAnswers",
		Message: message + "; remove the addresses from that host, or from the AddressPool"}
}

// refusedCondition returns the condition with the gateways whose heartbeats are refused.
func refusedCondition(refused []heartbeat.Refusal) metav1.Condition {
	var lines []string
	for _, r := range refused {
		lines = append(lines, "gateway "+r.Gateway+": "+r.Reason)
	}
	return metav1.Condition{Type: v1alpha1.ConditionHeartbeatsRefused, Status: metav1.ConditionTrue, Reason: "NotBelieved",
		Message: "the heartbeats of these gateways are refused, so that the gateways count as gone while the management cluster's API is unreachable:\n" + strings.Join(lines, "\n")}
}

// hostConditions returns one condition for each group of checks in which something is missing.
func hostConditions(lacking []dataplane.Check) (conditions []metav1.Condition) {
	for _, group := range dataplane.Groups() {
		reason := v1alpha1.ReasonHostLimited
		var lines []string
		for _, c := range lacking {
			// A plugin of another version may have groups that this manager does not know.
			if c.Group != group && (group != dataplane.GroupKernel || slices.Contains(dataplane.Groups(), c.Group)) {
				continue
			}
			lines = append(lines, c.String())
			if c.Required() {
				reason = v1alpha1.ReasonHostMissing
			}
		}
		if len(lines) > 0 {
			conditions = append(conditions, metav1.Condition{Type: v1alpha1.ConditionHostPrefix + string(group), Status: metav1.ConditionFalse, Reason: reason,
				Message: strings.Join(lines, "\n")})
		}
	}
	return conditions
}
