package churn

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
)

const (
	// services is the number of Services in each cycle, changes how often each of them is changed.
	services, changes = 30, 3
	namespace         = "default"
	churning          = "churning"
	// timeout is the timeout of each step.
	timeout = 60 * time.Second
)

// cycle creates, changes and deletes Services, and returns the sizes after that.
func (r *run) cycle(ctx context.Context) (Sizes, error) {
	for i := range services {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("s-%d", i), Namespace: namespace, Labels: map[string]string{churning: "true"}}}
		r.vary(s)
		if err := r.tenant.Create(ctx, s); err != nil {
			return nil, err
		}
		r.result.Services++
	}
	if err := r.until(ctx, "every Service has its addresses", r.allServed); err != nil {
		return nil, err
	}
	for range changes {
		if err := r.change(ctx); err != nil {
			return nil, err
		}
	}
	if err := r.tenant.DeleteAllOf(ctx, &corev1.Service{}, client.InNamespace(namespace), client.MatchingLabels{churning: "true"}); err != nil {
		return nil, err
	}
	if err := r.until(ctx, "one LoadBalancer is left", r.oneLeft); err != nil {
		return nil, err
	}
	return r.sizes(ctx)
}

// change changes every Service, and excludes a node from load balancing meanwhile.
func (r *run) change(ctx context.Context) error {
	if err := r.exclude(ctx, "true"); err != nil {
		return err
	}
	var list corev1.ServiceList
	if err := r.tenant.List(ctx, &list, client.InNamespace(namespace), client.MatchingLabels{churning: "true"}); err != nil {
		return err
	}
	for i := range list.Items {
		before := list.Items[i].DeepCopy()
		r.vary(&list.Items[i])
		if err := r.tenant.Patch(ctx, &list.Items[i], client.MergeFrom(before)); err != nil {
			return err
		}
		r.result.Changes++
	}
	if err := r.exclude(ctx, "false"); err != nil {
		return err
	}
	return r.until(ctx, "every Service has its addresses", r.allServed)
}

// exclude excludes a node from load balancing if value is "true".
func (r *run) exclude(ctx context.Context, value string) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: r.lab.Nodes[1].Name}}
	return r.tenant.Patch(ctx, node, client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"metadata":{"labels":{%q:%q}}}`, corev1.LabelNodeExcludeBalancers, value)))
}

// vary sets random properties of the Service.
func (r *run) vary(s *corev1.Service) {
	chance := func(n int) bool { return r.random.IntN(n) == 0 }
	dual := corev1.IPFamilyPolicyPreferDualStack
	s.Spec.Type, s.Spec.Selector, s.Spec.IPFamilyPolicy = corev1.ServiceTypeLoadBalancer, map[string]string{"app": "stays"}, &dual
	s.Spec.Ports = nil
	for port := range 1 + r.random.IntN(3) {
		protocol := corev1.ProtocolTCP
		if chance(3) {
			protocol = corev1.ProtocolUDP
		}
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprintf("p%d", port), Protocol: protocol, Port: int32(80 + port), TargetPort: intstr.FromInt32(8080)})
	}
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	if chance(3) {
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	}
	s.Spec.SessionAffinity, s.Spec.SessionAffinityConfig = corev1.ServiceAffinityNone, nil
	if chance(4) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	}
	s.Spec.LoadBalancerSourceRanges = nil
	if chance(4) {
		s.Spec.LoadBalancerSourceRanges = []string{fmt.Sprintf("192.0.2.%d/32", r.random.IntN(256)), "2001:db8:c::/64"}
	}
}

// awaitAnswers waits until consecutive requests are answered, because kube-proxies learn of a Service a second after it has its address.
func (r *run) awaitAnswers(ctx context.Context, address string) error {
	a := newRequester(r.lab.Client, address, false)
	return r.until(ctx, "answers at "+address, func(ctx context.Context) error {
		for range 50 {
			if err := a.request(ctx); err != nil {
				return err
			}
		}
		return nil
	})
}

func (r *run) allServed(ctx context.Context) error {
	var list corev1.ServiceList
	if err := r.tenant.List(ctx, &list, client.InNamespace(namespace), client.MatchingLabels{churning: "true"}); err != nil {
		return err
	}
	for _, s := range list.Items {
		if len(s.Status.LoadBalancer.Ingress) != 2 {
			return fmt.Errorf("Service %s has the addresses %v: %v", s.Name, s.Status.LoadBalancer.Ingress, s.Status.Conditions)
		}
	}
	return nil
}

// oneLeft returns an error unless both clusters and the gateway have only the Service that stays.
func (r *run) oneLeft(ctx context.Context) error {
	return r.left(ctx, 1)
}

func (r *run) left(ctx context.Context, n int) error {
	var own corev1.ServiceList
	var lbs v1alpha1.LoadBalancerList
	var gateways v1alpha1.GatewayList
	if err := errors.Join(r.tenant.List(ctx, &own, client.InNamespace(namespace), client.MatchingLabels{churning: "true"}), r.hub.List(ctx, &lbs), r.hub.List(ctx, &gateways)); err != nil {
		return err
	}
	if len(own.Items) != 0 || len(lbs.Items) != n || len(gateways.Items) != 1 || gateways.Items[0].Status.Frontends != int32(2*n) {
		return fmt.Errorf("%d Services, %d LoadBalancers; gateways: %v", len(own.Items), len(lbs.Items), gateways.Items)
	}
	return nil
}

// awaitAddress waits for a Service's addresses and returns the first one.
func (r *run) awaitAddress(ctx context.Context, name string) (address string, err error) {
	err = r.until(ctx, "addresses for Service "+name, func(ctx context.Context) error {
		var s corev1.Service
		if err := r.tenant.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &s); err != nil {
			return err
		}
		if len(s.Status.LoadBalancer.Ingress) != 2 {
			return fmt.Errorf("it has the addresses %v", s.Status.LoadBalancer.Ingress)
		}
		address = s.Status.LoadBalancer.Ingress[0].IP
		return nil
	})
	return address, err
}

func (r *run) until(ctx context.Context, what string, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not within %s: %w", what, timeout, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
