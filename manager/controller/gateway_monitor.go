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

// gatewayMonitor finds silent gateways: they do not renew their Leases, so the status of their Gateway objects is out of date. It writes that into the
// conditions of these objects, since the gateways cannot.
type gatewayMonitor struct {
	client client.Client
	// reader reads from the API server, without the cache: Leases change too often to be watched for this.
	reader    client.Reader
	namespace string
	// changed gets an event when other gateways are silent than before.
	changed chan<- event.GenericEvent
	log     logr.Logger

	checking sync.Mutex // held during a check
	mu       sync.Mutex // guards the fields below
	// renewals are the last renewals of the gateways' Leases, by name.
	renewals map[string]renewal
	// reasons has the reason for each silent gateway, by its name; nil before the first check.
	reasons map[string]string
}

// renewal is a version of a Lease, and when it was first seen by the clock of this process. wasSilent: the gateway was silent before this process started,
// and is silent until its next renewal.
type renewal struct {
	version   string
	seen      time.Time
	wasSilent bool
}

const (
	// gatewayCheckInterval is the interval at which the Leases are read.
	gatewayCheckInterval = 5 * time.Second
	// gatewayGracePeriod is the time in which a gateway must renew its Lease after the API was unavailable, also for the controllers.
	gatewayGracePeriod = 5 * time.Second
)

// Start checks periodically until ctx ends.
func (p *gatewayMonitor) Start(ctx context.Context) error {
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		if err := p.check(ctx, time.Now()); err != nil && ctx.Err() == nil {
			p.log.Error(err, "cannot check the Leases of gateways")
		}
	}, gatewayCheckInterval)
	return nil
}

// silent returns the silent gateways as of the last check, with the reasons, by name.
func (p *gatewayMonitor) silent(ctx context.Context) (map[string]string, error) {
	if p == nil {
		return nil, nil
	}
	p.mu.Lock()
	reasons := p.reasons
	p.mu.Unlock()
	if reasons != nil {
		return reasons, nil
	}
	if err := p.check(ctx, time.Now()); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reasons, nil
}

// check reads the Leases, and writes conditions of silent gateways.
func (p *gatewayMonitor) check(ctx context.Context, now time.Time) error {
	p.checking.Lock()
	defer p.checking.Unlock()
	var leases coordinationv1.LeaseList
	if err := p.reader.List(ctx, &leases, client.InNamespace(p.namespace), client.HasLabels{membership.Label}); err != nil {
		return fmt.Errorf("read the gateways' Leases: %w", err)
	}
	var gateways v1alpha1.GatewayList
	if err := p.client.List(ctx, &gateways); err != nil {
		return fmt.Errorf("read the Gateways: %w", err)
	}
	of := map[string]*coordinationv1.Lease{}
	for i := range leases.Items {
		of[leases.Items[i].Name] = &leases.Items[i]
	}
	reasons, renewals := map[string]string{}, map[string]renewal{}
	var errs []error
	for i := range gateways.Items {
		g := &gateways.Items[i]
		lease := of[g.Name]
		if lease == nil {
			lease = &coordinationv1.Lease{}
		}
		is := p.observe(g, lease, now)
		renewals[g.Name] = is
		switch why := membership.WriteError(lease); {
		case is.wasSilent, now.Sub(is.seen) > membership.MaxRenewalAge(lease, membership.SilentAfter):
			reasons[g.Name] = silentSince(lease)
		case why != "":
			reasons[g.Name] = "the gateway cannot write its Gateway object, whose status is out of date: " + why
		default:
			continue
		}
		if err := p.markSilent(ctx, g, reasons[g.Name]); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("write the condition of the silent gateway %s: %w", g.Name, err))
		}
	}
	p.publish(renewals, reasons)
	return errors.Join(errs...)
}

// observe returns the present renewal of a gateway's Lease. A Lease that this process sees for the first time may have expired long ago.
func (p *gatewayMonitor) observe(g *v1alpha1.Gateway, lease *coordinationv1.Lease, now time.Time) renewal {
	version := string(lease.UID) + "/" + lease.ResourceVersion
	before, known := p.renewals[g.Name]
	if known && before.version == version {
		return before
	}
	is := renewal{version: version, seen: now}
	if known {
		return is
	}
	silence := membership.MaxRenewalAge(lease, membership.SilentAfter)
	if ago, _, renewed := membership.LastRenewal(lease, now); renewed && ago > silence {
		is.seen = now.Add(gatewayGracePeriod - silence)
	}
	ready := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ConditionReady)
	is.wasSilent = ready != nil && ready.Reason == v1alpha1.ReasonNotHeard
	return is
}

// publish replaces the result, and sends an event if it has changed.
func (p *gatewayMonitor) publish(renewals map[string]renewal, reasons map[string]string) {
	p.mu.Lock()
	before := p.reasons
	p.renewals, p.reasons = renewals, reasons
	p.mu.Unlock()
	if before == nil || maps.Equal(before, reasons) {
		return
	}
	p.log.Info("silent gateways, which do not renew their Leases", "gateways", slices.Sorted(maps.Keys(reasons)))
	select {
	case p.changed <- event.GenericEvent{Object: &v1alpha1.Gateway{}}:
	default: // an event is waiting already
	}
}

// silentSince is the reason for a gateway that does not renew its Lease.
func silentSince(lease *coordinationv1.Lease) string {
	if lease.Spec.RenewTime == nil {
		return "the gateway has no Lease, so it is not known whether it runs"
	}
	return "the gateway has not renewed its Lease since " + lease.Spec.RenewTime.UTC().Format(time.RFC3339)
}

// markSilent sets the conditions of a silent gateway to Unknown. The gateway sets them again when it is back.
func (p *gatewayMonitor) markSilent(ctx context.Context, g *v1alpha1.Gateway, reason string) error {
	updated := g.DeepCopy()
	message := reason + ". See whether its host is up, and whether its manager runs and reaches the API; its log says more. Delete this object if the gateway is not to come back. The rest of this status is out of date"
	changed := false
	for _, kind := range []string{v1alpha1.ConditionReady, v1alpha1.ConditionBGPEstablished} {
		before := meta.FindStatusCondition(updated.Status.Conditions, kind)
		if before == nil && kind != v1alpha1.ConditionReady || before != nil && before.Reason == v1alpha1.ReasonNotHeard {
			continue
		}
		plain.SetCondition(&updated.Status.Conditions, metav1.Condition{Type: kind, Status: metav1.ConditionUnknown, Reason: v1alpha1.ReasonNotHeard, Message: message})
		changed = true
	}
	if !changed {
		return nil
	}
	return p.client.Status().Update(ctx, updated)
}
