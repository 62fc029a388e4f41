package report

import (
	"cmp"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/manager/watchdog"
)

// Served is whether clients, and the dataplane, answer this gateway. Make one with NewServed.
type Served struct {
	// interfaces are those on which hosts have to answer. watched: somebody looks whether they do.
	interfaces []string
	watched    bool
	segment    watchdog.Segment
	former     formerServed
}

// NewServed returns one for a gateway whose clients are on the interfaces. watched says whether somebody looks if hosts answer there.
func NewServed(interfaces []string, watched bool) *Served {
	return &Served{interfaces: interfaces, watched: watched}
}

// formerServed is why the gateway serves nothing, as its former process said last. It counts until this process knows better: a segment or a dataplane
// that stays silent says nothing to a process that has never heard it.
type formerServed struct {
	read bool
	// segment and dataplane are the messages without their beginnings, empty for none.
	segment, dataplane string
}

// The beginnings of the messages.
const (
	segmentSilent   = "clients do not reach this gateway: "
	dataplaneSilent = "the dataplane does not answer: "
)

// LearnFormer reads the object as the former process left it. What is written later is this process's own.
func (s *Served) LearnFormer(conditions []metav1.Condition) {
	is := plain.NotTrue(conditions, v1alpha1.ConditionServed)
	switch {
	case s.former.read || is == nil:
	case is.Reason == v1alpha1.ReasonSegmentSilent:
		s.former.segment = strings.TrimPrefix(is.Message, segmentSilent)
	case is.Reason == v1alpha1.ReasonDataplaneSilent:
		s.former.dataplane = strings.TrimPrefix(is.Message, dataplaneSilent)
	}
	s.former.read = true
}

// NoteSegment takes over whether hosts on the segment answer.
func (s *Served) NoteSegment(is watchdog.Segment) { s.segment = is }

// NoteDataplaneAnswers notes that the dataplane has returned its counters.
func (s *Served) NoteDataplaneAnswers() { s.former.dataplane = "" }

// silentSegment says at which interfaces no host answers, empty if that is not known. Nobody looks if tries are turned off.
func (s *Served) silentSegment() string {
	if !s.watched || !watchdog.MayLast(s.former.segment, s.interfaces, s.segment) {
		return s.segment.Problem
	}
	return cmp.Or(s.segment.Problem, s.former.segment)
}

// Condition is the Gateway's condition Served, and false while there is no such condition. unanswered is why the dataplane does not answer, empty if it
// does. toAnswer tells whether the gateway is to answer for addresses.
func (s *Served) Condition(unanswered string, toAnswer bool) (metav1.Condition, bool) {
	condition := metav1.Condition{Type: v1alpha1.ConditionServed, Status: metav1.ConditionFalse}
	dataplane := cmp.Or(unanswered, s.former.dataplane)
	switch segment := s.silentSegment(); {
	case segment != "" && toAnswer:
		condition.Reason, condition.Message = v1alpha1.ReasonSegmentSilent, segmentSilent+segment
	case dataplane != "":
		condition.Reason, condition.Message = v1alpha1.ReasonDataplaneSilent, dataplaneSilent+dataplane
	default:
		return condition, false
	}
	condition.Message = plain.Message(condition.Message, 1024)
	return condition, true
}
