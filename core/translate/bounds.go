package translate

import "fmt"

// MaxPorts and MaxSourceRanges bound one LoadBalancer, and with both what it costs a gateway. The hub's schema has the same bounds for what
// stands in fields; what stands in annotations it does not look at.
const (
	MaxPorts        = 256
	MaxSourceRanges = 128
)

func tooManyPorts(n int) (Problem, bool) {
	return Problem{Reason: ReasonTooManyPorts, Field: "spec.ports",
		Message: fmt.Sprintf("spec.ports has %d ports: use %d at most, and another Service for others", n, MaxPorts)}, n > MaxPorts
}

func tooManySourceRanges(field string, ranges []string) (Problem, bool) {
	return Problem{Reason: ReasonTooManySourceRanges, Field: field,
		Message: fmt.Sprintf("%s has %d networks: use %d at most, such as larger ones that these lie in", field, len(ranges), MaxSourceRanges)}, len(ranges) > MaxSourceRanges
}
