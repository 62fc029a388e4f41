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

// unnamedFailures are failing ports that status.tries of a Gateway counts and does not name. Each port that may be one of them counts as failing
// until it is tried, with a message that says so.
type unnamedFailures struct {
	// loadBalancers have more failing ports than the one that is named.
	loadBalancers map[string]bool
	// namespaces have other failing LoadBalancers. v1alpha1.AllNamespaces stands for all.
	namespaces []string
}

func (u unnamedFailures) isEmpty() bool { return len(u.loadBalancers) == 0 && len(u.namespaces) == 0 }

// mayInclude reports whether ports of the LoadBalancer may be among the unnamed failures.
func (u unnamedFailures) mayInclude(loadBalancer string) bool {
	namespace, _, _ := strings.Cut(loadBalancer, "/")
	return u.loadBalancers[loadBalancer] || slices.Contains(u.namespaces, namespace) || slices.Contains(u.namespaces, v1alpha1.AllNamespaces)
}

// The messages of ports that may be among unnamed failures. The next process reads their beginning.
const (
	unconfirmedPrefix = "it may be one of the ports that failed "
	unconfirmedAtPeer = unconfirmedPrefix + "at gateway %s and were not named; it was not tried here yet"
	unconfirmedBefore = unconfirmedPrefix + "before this gateway's process began and were not named; it was not tried since"
)

// isUnconfirmed reports whether the message is of a port that only may fail.
func isUnconfirmed(message string) bool { return strings.HasPrefix(message, unconfirmedPrefix) }

// lookupInterval is how often the model is searched for ports that may be among unnamed failures.
const lookupInterval = 5 * time.Second

// FindUnconfirmed searches the model for ports that may be among unnamed failures, from time to time. read says whether the model has been read.
func (t *Tries) FindUnconfirmed(modelNow func() model.Snapshot, from []netip.Addr, read bool, now time.Time) {
	if t.enabled && t.hasUnnamed() && now.Sub(t.lastLookup) >= lookupInterval {
		t.findUnconfirmed(modelNow(), from, read, now)
	}
}

func (t *Tries) hasUnnamed() bool { return !t.former.unnamed.isEmpty() || len(t.unnamed) > 0 }

func (t *Tries) findUnconfirmed(s model.Snapshot, from []netip.Addr, read bool, now time.Time) {
	if t.lastLookup = now; !t.hasUnnamed() {
		return
	}
	ports := map[model.FrontendKey]string{}
	triability := newTriability(s, from)
	for _, f := range s.Frontends {
		if lb, known := t.owner(f.FrontendKey); known && triability.allows(f) {
			ports[f.FrontendKey] = lb.String()
		}
	}
	t.addFormer(ports, read, now)
	for gateway, unnamed := range t.unnamed {
		t.addOfPeer(gateway, unnamed, ports)
	}
	for port, f := range t.ofPeers {
		if isUnconfirmed(f.message) && ports[port.FrontendKey] != f.loadBalancer {
			delete(t.ofPeers, port)
		}
	}
}

// addFormer adds the ports that may have failed before this process started.
func (t *Tries) addFormer(ports map[model.FrontendKey]string, read bool, now time.Time) {
	for key, lb := range ports {
		if existing, exists := t.former.failures[key]; t.former.unnamed.mayInclude(lb) && !(exists && existing.loadBalancer == lb) {
			t.former.failures[key] = formerFailure{loadBalancer: lb, message: unconfirmedBefore, moved: true, since: now}
		}
	}
	if read {
		t.former.unnamed = unnamedFailures{}
	}
}

// addOfPeer adds the ports that may fail at another gateway, which answers for their addresses.
func (t *Tries) addOfPeer(gateway string, unnamed unnamedFailures, ports map[model.FrontendKey]string) {
	for key, lb := range ports {
		port := peerPort{gateway, key}
		if t.ofPeers[port] == nil && unnamed.mayInclude(lb) && t.answerers.AnswererOf(key.VIP, gateway) == gateway {
			t.ofPeers[port] = &peerFailure{formerFailure: formerFailure{loadBalancer: lb, message: fmt.Sprintf(unconfirmedAtPeer, gateway)}, atPeer: true}
		}
	}
}
