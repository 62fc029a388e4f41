package gateway

import (
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
)

// lacking is what this host lacks, for the dataplane and for the gateway. What is new is logged.
func (g *Gateway) lacking() []dataplane.Check {
	lacking := dataplane.Lacking(slices.Concat(g.driver.Checks(), g.hostChecks, g.transitChecks, g.driver.InstalledChecks()))
	known := g.lacked
	g.lacked = map[string]bool{}
	for _, c := range lacking {
		line := c.String()
		if g.lacked[line] = true; !known[line] {
			g.log.Warn("this host lacks something", "group", c.Group, "required", c.Required(), "lacks", line)
		}
	}
	return lacking
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
