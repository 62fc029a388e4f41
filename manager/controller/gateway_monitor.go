package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/manager/membership"
)

// presence tells of which gateways nothing is heard: they do not renew their Leases. What their objects say is of then, and nobody else may rely on it.
// It has their objects say so, since they cannot.
type presence struct {
	client client.Client
	// reader asks the API server itself: Leases change too often to be watched for this.
	reader    client.Reader
	namespace string
	// changed is told when nothing is heard of others than before.
	changed chan<- event.GenericEvent
	log     logr.Logger

	looking sync.Mutex // held during a look
	mu      sync.Mutex // guards those below
	// renewals are the gateways' Leases as they were seen last, by name.
	renewals map[string]renewal
	// unheard says since when nothing is heard of a gateway, by its name; nil before the first look.
	unheard map[string]string
}

// renewal is a version of a Lease, and when it was first seen by the own clock. distrusted: its gateway counted as silent before, and does until there
// is another version.
type renewal struct {
	version    string
	seen       time.Time
	distrusted bool
}

const (
	// presenceInterval is how often the Leases are read.
	presenceInterval = 5 * time.Second
	// backWithin is how long a gateway may take to renew its Lease after the API was away, for the controllers as well.
	backWithin = 5 * time.Second
)

// Start looks again and again until the context ends.
func (p *presence) Start(ctx context.Context) error {
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		if err := p.look(ctx, time.Now()); err != nil && ctx.Err() == nil {
			p.log.Error(err, "look which gateways are there")
		}
	}, presenceInterval)
	return nil
}

// silent says since when nothing is heard of gateways, by their names, as of the last look.
func (p *presence) silent(ctx context.Context) (map[string]string, error) {
	if p == nil {
		return nil, nil
	}
	p.mu.Lock()
	unheard := p.unheard
	p.mu.Unlock()
	if unheard != nil {
		return unheard, nil
	}
	if err := p.look(ctx, time.Now()); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unheard, nil
}

// look reads the Leases, and has the objects of gateways say that nothing is heard of them.
func (p *presence) look(ctx context.Context, now time.Time) error {
	p.looking.Lock()
	defer p.looking.Unlock()
	var leases coordinationv1.LeaseList
	if err := p.reader.List(ctx, &leases, client.InNamespace(p.namespace), client.HasLabels{membership.Label}); err != nil {
		return fmt.Errorf("read the gateways' Leases: %w", err)
	}
	var gateways v1alpha1.GatewayList
	if err := p.client.List(ctx, &gateways); err != nil {
		return fmt.Errorf("read the gateways: %w", err)
	}
	of := map[string]*coordinationv1.Lease{}
	for i := range leases.Items {
		of[leases.Items[i].Name] = &leases.Items[i]
	}
	unheard, renewals := map[string]string{}, map[string]renewal{}
	var errs []error
	for i := range gateways.Items {
		g := &gateways.Items[i]
		lease := of[g.Name]
		if lease == nil {
			lease = &coordinationv1.Lease{}
		}
		is := p.renewed(g, lease, now)
		renewals[g.Name] = is
		switch why := membership.Unwritten(lease); {
		case is.distrusted, now.Sub(is.seen) > membership.Silence(lease, membership.SilentAfter):
			unheard[g.Name] = sinceWhen(lease)
		case why != "":
			unheard[g.Name] = "it cannot write its Gateway object, which is of before: " + why
		default:
			continue
		}
		if err := p.say(ctx, g, unheard[g.Name]); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("say of gateway %s that nothing is heard of it: %w", g.Name, err))
		}
	}
	p.take(renewals, unheard)
	return errors.Join(errs...)
}

// renewed is the Lease of a gateway as it is now. One that was not seen before may be long over.
func (p *presence) renewed(g *v1alpha1.Gateway, lease *coordinationv1.Lease, now time.Time) renewal {
	version := string(lease.UID) + "/" + lease.ResourceVersion
	before, known := p.renewals[g.Name]
	if known && before.version == version {
		return before
	}
	is := renewal{version: version, seen: now}
	if known {
		return is
	}
	silence := membership.Silence(lease, membership.SilentAfter)
	if ago, _, renewed := membership.LastHeard(lease, now); renewed && ago > silence {
		is.seen = now.Add(backWithin - silence)
	}
	ready := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ConditionReady)
	is.distrusted = ready != nil && ready.Reason == v1alpha1.ReasonNotHeard
	return is
}

// take takes over what was found, and tells those who rely on it.
func (p *presence) take(renewals map[string]renewal, unheard map[string]string) {
	p.mu.Lock()
	before := p.unheard
	p.renewals, p.unheard = renewals, unheard
	p.mu.Unlock()
	if before == nil || maps.Equal(before, unheard) {
		return
	}
	p.log.Info("gateways of which nothing is heard", "gateways", slices.Sorted(maps.Keys(unheard)))
	select {
	case p.changed <- event.GenericEvent{Object: &v1alpha1.Gateway{}}:
	default: // told already, and not yet heard
	}
}

// sinceWhen says in words since when nothing is heard of a gateway.
func sinceWhen(lease *coordinationv1.Lease) string {
	if lease.Spec.RenewTime == nil {
		return "it has no Lease, so that nobody knows whether it is there"
	}
	return "nothing has been heard of it since " + lease.Spec.RenewTime.UTC().Format(time.RFC3339)
}

// say has the object of a gateway say that nothing is heard of it. The gateway says again how it is when it is back.
func (p *presence) say(ctx context.Context, g *v1alpha1.Gateway, since string) error {
	now := g.DeepCopy()
	message := since + ". See whether its host is up, and whether its manager runs and reaches the API; its log says more. Delete this object if the gateway is not to come back. All else in this status is of before"
	changed := false
	for _, kind := range []string{v1alpha1.ConditionReady, v1alpha1.ConditionBGPEstablished} {
		before := meta.FindStatusCondition(now.Status.Conditions, kind)
		if before == nil && kind != v1alpha1.ConditionReady || before != nil && before.Reason == v1alpha1.ReasonNotHeard {
			continue
		}
		plain.SetCondition(&now.Status.Conditions, metav1.Condition{Type: kind, Status: metav1.ConditionUnknown, Reason: v1alpha1.ReasonNotHeard, Message: message})
		changed = true
	}
	if !changed {
		return nil
	}
	return p.client.Status().Update(ctx, now)
}
