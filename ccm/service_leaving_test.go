package ccm

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
)

func TestADisownedServiceKeepsItsFinalizerUntilTheHubHasReleasedItsAddresses(t *testing.T) {
	other := "example.com/lb"
	for name, change := range map[string]func(*clusters){
		"its type changes":    func(c *clusters) { c.edit(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP }) },
		"its class changes":   func(c *clusters) { c.edit(func(s *corev1.Service) { s.Spec.LoadBalancerClass = &other }) },
		"a class is required": func(c *clusters) { c.r.config.ClassRequired = true },
	} {
		t.Run(name, func(t *testing.T) {
			c := newClusters(t, web())
			c.serve()
			c.editOnHub(func(lb *v1alpha1.LoadBalancer) { lb.Finalizers = []string{v1alpha1.CleanupFinalizer} })
			change(c)
			c.settle()
			require.Equal(t, []string{"hub: delete LoadBalancer uid-of-web"}, c.writes)
			require.Equal(t, "Normal DeletingLoadBalancer Deleting load balancer", all(c.recorder))
			require.Equal(t, []string{cleanupFinalizer}, c.service().Finalizers)
			require.Equal(t, ingress("203.0.113.1"), c.service().Status.LoadBalancer, "gateways still serve it")
			c.requireNothing()

			c.editOnHub(func(lb *v1alpha1.LoadBalancer) { lb.Finalizers = nil })
			c.settle()
			require.Equal(t, "Normal DeletedLoadBalancer Deleted load balancer", all(c.recorder))
			require.Equal(t, web().Status, c.service().Status)
			require.Empty(t, c.service().Finalizers)
			c.requireNothing()
		})
	}
}

func TestAServiceIsServedAgainWhenItIsOwnedAgain(t *testing.T) {
	c := newClusters(t, web())
	c.serve()
	c.edit(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP })
	c.settle()
	c.settle()
	require.Nil(t, c.onHub())
	c.edit(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeLoadBalancer })
	c.serve()
	require.Equal(t, []string{cleanupFinalizer}, c.service().Finalizers)
}

// S09: the CCM, or the hub, may be down while a Service is deleted.
func TestADeletedServiceStaysUntilItsLoadBalancerIsGone(t *testing.T) {
	c := newClusters(t, web())
	c.serve()
	require.NoError(t, c.tenant.Delete(t.Context(), c.service()))
	c.restart()
	c.refuse = func(request string) error {
		if request == "hub: delete LoadBalancer uid-of-web" {
			return errors.New("connection refused")
		}
		return nil
	}
	for range 3 {
		_, err := c.reconcile()
		require.ErrorContains(t, err, "delete LoadBalancer uid-of-web on the hub: connection refused", "the error causes a retry")
		require.Contains(t, all(c.recorder), "Warning DeleteLoadBalancerFailed delete LoadBalancer uid-of-web on the hub: connection refused")
		require.Equal(t, []string{cleanupFinalizer}, c.service().Finalizers)
		require.Equal(t, ingress("203.0.113.1"), c.service().Status.LoadBalancer)
	}
	c.refuse = func(string) error { return nil }
	c.settle()
	require.Nil(t, c.onHub())
	c.settle()
	require.Nil(t, c.service())
	require.Equal(t, 1, strings.Count(all(c.recorder), "DeletedLoadBalancer"))
	c.requireNothing()
}

func TestADeletedServiceStaysWhileTheHubDoesNotAnswer(t *testing.T) {
	c := newClusters(t, web())
	c.serve()
	require.NoError(t, c.tenant.Delete(t.Context(), c.service()))
	c.refuse = func(request string) error {
		if request == "hub: read LoadBalancer" {
			return errors.New("connection refused")
		}
		return nil
	}
	_, err := c.reconcile()
	require.ErrorContains(t, err, "connection refused")
	require.Equal(t, []string{cleanupFinalizer}, c.service().Finalizers)
	require.Empty(t, c.writes)
}

func TestFinalizersOfOtherProgramsStay(t *testing.T) {
	c := newClusters(t, web(func(s *corev1.Service) { s.Finalizers = []string{"example.com/other"} }))
	c.serve()
	require.NoError(t, c.tenant.Delete(t.Context(), c.service()))
	c.settle()
	c.settle()
	require.Equal(t, []string{"example.com/other"}, c.service().Finalizers)
	require.Empty(t, c.service().Status.LoadBalancer.Ingress)
	c.requireNothing()
}

// The process ends after the finalizer is gone and before the status is cleared: the condition says to the next one that the Service was ours.
func TestTheNextProcessFinishesACleanupThatACrashInterrupted(t *testing.T) {
	c := newClusters(t, web())
	c.serve()
	c.edit(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP })
	c.settle()
	c.refuse = func(request string) error {
		if request == "tenant: patch status of Service web" {
			return errors.New("killed")
		}
		return nil
	}
	_, err := c.reconcile()
	require.ErrorContains(t, err, "killed")
	require.Empty(t, c.service().Finalizers)
	require.NotEmpty(t, c.service().Status.LoadBalancer.Ingress)
	c.restart()
	c.refuse = func(string) error { return nil }
	c.settle()
	require.Equal(t, web().Status, c.service().Status)
}

func TestAFaultOfADisownedServiceIsRemoved(t *testing.T) {
	c := newClusters(t, web())
	c.settle()
	c.answer(metav1.ConditionFalse, "PoolExhausted", "no address is free")
	c.settle()
	require.Contains(t, all(c.recorder), "Warning SyncLoadBalancerFailed no address is free")
	c.edit(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP })
	c.settle()
	c.settle()
	c.edit(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeLoadBalancer })
	c.settle()
	all(c.recorder)
	c.answer(metav1.ConditionTrue, "Ready", "served")
	c.settle()
	require.Empty(t, all(c.recorder), "the new one never had a fault from which it could recover")
}
