package report

import (
	"cmp"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/manager/watchdog"
)

// Served decides the condition Served: whether hosts on the segment, and the dataplane, answer this gateway.
type Served struct {
	// interfaces are those on which hosts have to answer. checked: this is being checked.
	interfaces []string
	checked    bool
	segment    watchdog.Segment
	former     formerServed
}

// NewServed returns a Served of a gateway with clients on the interfaces. checked says whether it is checked that hosts answer there.
func NewServed(interfaces []string, checked bool) *Served {
	return &Served{interfaces: interfaces, checked: checked}
}

// formerServed is the reason for which the former process of this gateway served nothing. It counts until this process knows better: a new process
// cannot see that a segment or a dataplane has become silent if it has never heard it.
type formerServed struct {
	read bool
	// segment and dataplane are the messages without their prefixes, empty for none.
	segment, dataplane string
}

// The prefixes of the messages. The next process reads them.
const (
	segmentSilent   = "clients do not reach this gateway: "
	dataplaneSilent = "the dataplane does not answer: "
)

// ReadFormer reads the object as the former process has left it, at the first call. What the object says later comes from this process.
func (s *Served) ReadFormer(conditions []metav1.Condition) {
	former := plain.NotTrue(conditions, v1alpha1.ConditionServed)
	switch {
	case s.former.read || former == nil:
	case former.Reason == v1alpha1.ReasonSegmentSilent:
		s.former.segment = strings.TrimPrefix(former.Message, segmentSilent)
	case former.Reason == v1alpha1.ReasonDataplaneSilent:
		s.former.dataplane = strings.TrimPrefix(former.Message, dataplaneSilent)
	}
	s.former.read = true
}

// SetSegment sets whether hosts on the segment answer.
func (s *Served) SetSegment(segment watchdog.Segment) { s.segment = segment }

// SetDataplaneAnswered notes that the dataplane has returned its counters.
func (s *Served) SetDataplaneAnswered() { s.former.dataplane = "" }

// segmentProblem says at which interfaces no host answers. It is empty if this is not known, for example while tries are turned off.
func (s *Served) segmentProblem() string {
	if !s.checked || !watchdog.MayPersist(s.former.segment, s.interfaces, s.segment) {
		return s.segment.Problem
	}
	return cmp.Or(s.segment.Problem, s.former.segment)
}

// Condition returns the condition Served, and false if there is none. unanswered is the reason why the dataplane does not answer, empty if it does.
// shouldAnswer says whether the gateway is to answer for addresses.
func (s *Served) Condition(unanswered string, shouldAnswer bool) (metav1.Condition, bool) {
	condition := metav1.Condition{Type: v1alpha1.ConditionServed, Status: metav1.ConditionFalse}
	dataplane := cmp.Or(unanswered, s.former.dataplane)
	switch segment := s.segmentProblem(); {
	case segment != "" && shouldAnswer:
		condition.Reason, condition.Message = v1alpha1.ReasonSegmentSilent, segmentSilent+segment
	case dataplane != "":
		condition.Reason, condition.Message = v1alpha1.ReasonDataplaneSilent, dataplaneSilent+dataplane
	default:
		return condition, false
	}
	condition.Message = plain.Message(condition.Message, 1024)
	return condition, true
}
