package report

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/model"
)

// unnamedFailures are the failing ports that status.tries of a Gateway counts and does not name. Each port that may be one of them counts as failing
// where nobody has tried it: by a message that says so.
type unnamedFailures struct {
	// of are the LoadBalancers of which one failing port is named, and not the others.
	of map[string]bool
	// namespaces are those of other LoadBalancers, or v1alpha1.AllNamespaces.
	namespaces []string
}

func (u unnamedFailures) none() bool { return len(u.of) == 0 && len(u.namespaces) == 0 }

// mayInclude tells whether ports of the LoadBalancer may be among them.
func (u unnamedFailures) mayInclude(loadBalancer string) bool {
	namespace, _, _ := strings.Cut(loadBalancer, "/")
	return u.of[loadBalancer] || slices.Contains(u.namespaces, namespace) || slices.Contains(u.namespaces, v1alpha1.AllNamespaces)
}

// The messages of ports that may be among them. A later process reads how they begin.
const (
	doubtBegins = "it may be one of the ports that failed "
	doubtOf     = doubtBegins + "at gateway %s and were not named; it was not tried here yet"
	doubtBefore = doubtBegins + "before this gateway's process began and were not named; it was not tried since"
)

// isDoubt tells whether a port with the message only may fail.
func isDoubt(message string) bool { return strings.HasPrefix(message, doubtBegins) }

// lookEvery is how often the model is looked at for ports that may be among unnamed failures.
const lookEvery = 5 * time.Second

// Look finds the ports in the model that may be among unnamed failures, from time to time. read says whether the model has been read.
func (t *Tries) Look(modelNow func() model.Snapshot, from []netip.Addr, read bool, now time.Time) {
	if t.watched && t.hasUnnamed() && now.Sub(t.looked) >= lookEvery {
		t.look(modelNow(), from, read, now)
	}
}

func (t *Tries) hasUnnamed() bool { return !t.former.unnamed.none() || len(t.unnamed) > 0 }

func (t *Tries) look(s model.Snapshot, from []netip.Addr, read bool, now time.Time) {
	if t.looked = now; !t.hasUnnamed() {
		return
	}
	ports := map[model.FrontendKey]string{}
	may := triabilityOf(s, from)
	for _, f := range s.Frontends {
		if lb, known := t.owner(f.FrontendKey); known && may.is(f) {
			ports[f.FrontendKey] = lb.String()
		}
	}
	t.lookAtFormer(ports, read, now)
	for gateway, unnamed := range t.unnamed {
		t.lookAtOther(gateway, unnamed, ports)
	}
	for port, f := range t.others {
		if isDoubt(f.message) && ports[port.FrontendKey] != f.loadBalancer {
			delete(t.others, port)
		}
	}
}

// lookAtFormer has ports fail that may have failed before this process began.
func (t *Tries) lookAtFormer(ports map[model.FrontendKey]string, read bool, now time.Time) {
	for key, lb := range ports {
		if is, has := t.former.failures[key]; t.former.unnamed.mayInclude(lb) && !(has && is.loadBalancer == lb) {
			t.former.failures[key] = formerFailure{loadBalancer: lb, message: doubtBefore, moved: true, since: now}
		}
	}
	if read {
		t.former.unnamed = unnamedFailures{}
	}
}

// lookAtOther notes ports that may fail at another gateway, which answers for their addresses.
func (t *Tries) lookAtOther(gateway string, unnamed unnamedFailures, ports map[model.FrontendKey]string) {
	for key, lb := range ports {
		port := othersPort{gateway, key}
		if t.others[port] == nil && unnamed.mayInclude(lb) && t.answers.AnswererOf(key.VIP, gateway) == gateway {
			t.others[port] = &othersFailure{formerFailure: formerFailure{loadBalancer: lb, message: fmt.Sprintf(doubtOf, gateway)}, theirs: true}
		}
	}
}
