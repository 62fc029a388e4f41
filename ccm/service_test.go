package ccm

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/ccm/foreign"
)

func TestAServiceHasItsFinalizerBeforeAnythingIsOnTheHub(t *testing.T) {
	c := newClusters(t, web())
	c.settle()
	require.Equal(t, []string{"tenant: patch Service web", "hub: create LoadBalancer uid-of-web", "tenant: patch status of Service web"}, c.writes)
	require.Equal(t, []string{cleanupFinalizer}, c.service().Finalizers)
	lb := c.onHub()
	require.Equal(t, map[string]string{v1alpha1.LabelOriginNamespace: "shop", v1alpha1.LabelOriginName: "web", v1alpha1.LabelTenant: "tenant-a"}, lb.Labels)
	require.Empty(t, lb.Annotations)
	require.Equal(t, v1alpha1.LoadBalancerSpec{
		Type:                  corev1.ServiceTypeLoadBalancer,
		ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyCluster,
		Ports:                 []v1alpha1.LoadBalancerPort{{Name: "80-tcp", Port: 80, Protocol: corev1.ProtocolTCP}},
		Endpoints: []v1alpha1.LoadBalancerEndpoints{{
			AddressesReference: &v1alpha1.AddressesReference{Name: v1alpha1.DefaultAddressesName},
			Ports:              []v1alpha1.EndpointPort{{Name: "80-tcp", Port: 30080, Protocol: corev1.ProtocolTCP}},
		}},
	}, lb.Spec, "KubeLB's manager needs the type, each protocol, and a port of the endpoints for each port")
	require.Equal(t, "Normal EnsuringLoadBalancer Ensuring load balancer", all(c.recorder))
	require.Equal(t, says(metav1.ConditionFalse, "Pending", "waiting for the management cluster to answer"), c.condition())
	require.Empty(t, c.service().Status.LoadBalancer.Ingress)
	c.requireNothing()
}

func TestAServiceWithoutTheFinalizerHasNoLoadBalancer(t *testing.T) {
	c := newClusters(t, web())
	c.refuse = func(request string) error {
		if request == "tenant: patch Service web" {
			return errors.New("a webhook refuses it")
		}
		return nil
	}
	_, err := c.reconcile()
	require.ErrorContains(t, err, "a webhook refuses it", "the error causes a retry")
	require.Nil(t, c.onHub())
	require.Empty(t, c.writes)
}

// Each setting of docs/services.md is set on the hub, and removed again.
func TestEachChangeOfAServiceReachesItsLoadBalancer(t *testing.T) {
	annotated := func(key, value string) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Annotations = map[string]string{key: value} }
	}
	policy, timeout := corev1.IPFamilyPolicyRequireDualStack, int32(600)
	ports := func(lb *v1alpha1.LoadBalancer) any { return []any{lb.Spec.Ports, lb.Spec.Endpoints[0].Ports} }
	one := func(name string, port, nodePort int32) any {
		return []any{[]v1alpha1.LoadBalancerPort{{Name: name, Port: port, Protocol: corev1.ProtocolTCP}}, []v1alpha1.EndpointPort{{Name: name, Port: nodePort, Protocol: corev1.ProtocolTCP}}}
	}
	for name, c := range map[string]struct {
		change func(*corev1.Service)
		field  func(*v1alpha1.LoadBalancer) any
		is     any
	}{
		"a port more": {func(s *corev1.Service) {
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "dns", Port: 53, NodePort: 30053, Protocol: corev1.ProtocolUDP})
		}, ports, []any{
			[]v1alpha1.LoadBalancerPort{{Name: "80-tcp", Port: 80, Protocol: corev1.ProtocolTCP}, {Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}},
			[]v1alpha1.EndpointPort{{Name: "80-tcp", Port: 30080, Protocol: corev1.ProtocolTCP}, {Name: "dns", Port: 30053, Protocol: corev1.ProtocolUDP}}}},
		"another port":      {func(s *corev1.Service) { s.Spec.Ports[0].Port = 8080 }, ports, one("8080-tcp", 8080, 30080)},
		"another NodePort":  {func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 30081 }, ports, one("80-tcp", 80, 30081)},
		"a name for a port": {func(s *corev1.Service) { s.Spec.Ports[0].Name = "http" }, ports, one("http", 80, 30080)},
		"the policy Local": {func(s *corev1.Service) {
			s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, 32000
		}, func(lb *v1alpha1.LoadBalancer) any {
			return []any{lb.Spec.ExternalTrafficPolicy, lb.Spec.HealthCheckNodePort, *lb.Spec.Endpoints[0].LocalAddresses}
		}, []any{corev1.ServiceExternalTrafficPolicyLocal, int32(32000), []v1alpha1.EndpointAddress{}}},
		"two families": {func(s *corev1.Service) {
			s.Spec.IPFamilies, s.Spec.IPFamilyPolicy = []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}, &policy
		}, func(lb *v1alpha1.LoadBalancer) any { return []any{lb.Spec.IPFamilies, lb.Spec.IPFamilyPolicy} },
			[]any{[]corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}, corev1.IPFamilyPolicyRequireDualStack}},
		"affinity with a timeout": {func(s *corev1.Service) {
			s.Spec.SessionAffinity, s.Spec.SessionAffinityConfig = corev1.ServiceAffinityClientIP, &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}}
		}, func(lb *v1alpha1.LoadBalancer) any { return lb.Spec.Persistence }, &v1alpha1.Persistence{Type: v1alpha1.PersistenceSourceIP, TimeoutSeconds: &timeout}},
		"source ranges": {func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = []string{"192.0.2.0/24", "2001:db8::/32"} },
			func(lb *v1alpha1.LoadBalancer) any { return lb.Spec.LoadBalancerSourceRanges }, []string{"192.0.2.0/24", "2001:db8::/32"}},
		"source ranges by annotation": {annotated(corev1.AnnotationLoadBalancerSourceRangesKey, "192.0.2.0/24, 198.18.0.0/15"),
			func(lb *v1alpha1.LoadBalancer) any { return lb.Spec.LoadBalancerSourceRanges }, []string{"192.0.2.0/24", "198.18.0.0/15"}},
		"spec.loadBalancerIP": {func(s *corev1.Service) { s.Spec.LoadBalancerIP = "203.0.113.7" },
			func(lb *v1alpha1.LoadBalancer) any { return lb.Spec.RequestedAddresses }, []string{"203.0.113.7"}},
		"an address of each family": {annotated(v1alpha1.AnnotationRequestedAddresses, "203.0.113.7, 2001:db8:f::7"),
			func(lb *v1alpha1.LoadBalancer) any { return lb.Spec.RequestedAddresses }, []string{"203.0.113.7", "2001:db8:f::7"}},
		"a pool":          {annotated(v1alpha1.AnnotationAddressPool, " partners "), func(lb *v1alpha1.LoadBalancer) any { return lb.Spec.AddressPool }, "partners"},
		"a sharing key":   {annotated(v1alpha1.AnnotationSharingKey, "public"), func(lb *v1alpha1.LoadBalancer) any { return lb.Spec.SharingKey }, "public"},
		"a mode":          {annotated(v1alpha1.AnnotationForwarding, "direct"), func(lb *v1alpha1.LoadBalancer) any { return lb.Spec.Forwarding }, "direct"},
		"a PROXY header":  {annotated(v1alpha1.AnnotationProxyProtocol, "v2"), func(lb *v1alpha1.LoadBalancer) any { return lb.Spec.ProxyProtocol }, "v2"},
		"the class by us": {func(s *corev1.Service) { class := "kubelb"; s.Spec.LoadBalancerClass = &class }, func(*v1alpha1.LoadBalancer) any { return nil }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			k := newClusters(t, web())
			k.serve()
			k.editOnHub(func(lb *v1alpha1.LoadBalancer) {
				lb.Finalizers = []string{v1alpha1.CleanupFinalizer}
				lb.Labels["example.com/team"], lb.Annotations = "net", map[string]string{"example.com/note": "of an operator"}
			})
			before := k.onHub()
			k.edit(c.change)
			k.settle()
			require.Equal(t, c.is, c.field(k.onHub()))
			if c.is != nil {
				require.Equal(t, []string{"hub: update LoadBalancer uid-of-web"}, k.writes, "its address and condition stay")
				require.Equal(t, "Normal UpdatedLoadBalancer Updated load balancer", all(k.recorder))
			}
			k.requireNothing()
			lb := k.onHub()
			require.Equal(t, before.Finalizers, lb.Finalizers)
			require.Equal(t, before.Labels, lb.Labels)
			require.Equal(t, "of an operator", lb.Annotations["example.com/note"])
			require.Equal(t, before.Status, lb.Status)

			k.edit(func(s *corev1.Service) { s.Spec, s.Annotations = web().Spec, nil })
			k.settle()
			require.True(t, equality.Semantic.DeepEqual(before.Spec, k.onHub().Spec), "%v", k.onHub().Spec)
			require.Equal(t, before.Annotations, k.onHub().Annotations)
			k.requireNothing()
		})
	}
}

func TestOtherAnnotationsOfAServiceAreNotCopiedToTheHub(t *testing.T) {
	c := newClusters(t, web(func(s *corev1.Service) {
		s.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "{}", "example.com/secret": "x"}
	}))
	c.settle()
	require.Empty(t, c.onHub().Annotations)
}

func TestServicesOfOthersAreNeverChanged(t *testing.T) {
	other, ours, now := "example.com/lb", "kubelb", metav1.Now()
	foreign := func(s *corev1.Service) { s.Spec.LoadBalancerClass = &other }
	for name, c := range map[string]struct {
		change        func(*corev1.Service)
		classRequired bool
		touched       bool
	}{
		"another class": {change: foreign},
		"another class, with the finalizer and an address of its controller": {change: func(s *corev1.Service) {
			foreign(s)
			s.Finalizers, s.Status.LoadBalancer = []string{cleanupFinalizer}, ingress("198.18.0.1")
		}},
		"another class, and being deleted": {change: func(s *corev1.Service) {
			foreign(s)
			s.Finalizers, s.DeletionTimestamp = []string{cleanupFinalizer}, &now
		}},
		"type ClusterIP": {change: func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP }},
		"type NodePort, with another controller's finalizer": {change: func(s *corev1.Service) {
			s.Spec.Type, s.Finalizers = corev1.ServiceTypeNodePort, []string{cleanupFinalizer}
		}},
		"no class, where one is required":  {change: func(*corev1.Service) {}, classRequired: true},
		"no class":                         {change: func(*corev1.Service) {}, touched: true},
		"our class":                        {change: func(s *corev1.Service) { s.Spec.LoadBalancerClass = &ours }, touched: true},
		"our class, where one is required": {change: func(s *corev1.Service) { s.Spec.LoadBalancerClass = &ours }, classRequired: true, touched: true},
	} {
		t.Run(name, func(t *testing.T) {
			k := newClusters(t, web(c.change))
			k.r.config.ClassRequired = c.classRequired
			before := k.service()
			k.settle()
			require.Equal(t, c.touched, len(k.writes) > 0, k.writes)
			require.Equal(t, c.touched, k.onHub() != nil)
			if !c.touched {
				require.Equal(t, before, k.service())
				require.Empty(t, all(k.recorder))
			}
		})
	}
}

// An operator, or by mistake a second CCM, has changed the object on the hub.
func TestALoadBalancerThatAnotherProgramChangesIsRestored(t *testing.T) {
	c := newClusters(t, web())
	c.serve()
	before := c.onHub()
	c.editOnHub(func(lb *v1alpha1.LoadBalancer) {
		lb.Spec.Ports[0].Port, lb.Spec.Forwarding = 81, "direct"
		lb.Labels = nil
		lb.Annotations = map[string]string{v1alpha1.AnnotationProxyProtocol: "v2"}
	})
	// Without its labels, it is found only by its name.
	c.settle()
	require.Equal(t, []string{"hub: update LoadBalancer uid-of-web"}, c.writes)
	require.True(t, equality.Semantic.DeepEqual(before.Spec, c.onHub().Spec))
	require.Equal(t, before.Labels, c.onHub().Labels)
	require.Empty(t, c.onHub().Annotations, "the one annotation is the Service's")
	c.requireNothing()

	c.editOnHub(func(lb *v1alpha1.LoadBalancer) { delete(lb.Labels, v1alpha1.LabelOriginName) })
	c.settle()
	require.Equal(t, before.Labels, c.onHub().Labels, "nothing but a label was changed")
}

func TestADeletedLoadBalancerIsMadeAgain(t *testing.T) {
	c := newClusters(t, web())
	c.serve()
	c.editOnHub(func(lb *v1alpha1.LoadBalancer) { lb.Finalizers = []string{v1alpha1.CleanupFinalizer} })
	require.NoError(t, c.hub.Delete(t.Context(), c.onHub()))
	c.requireNothing()
	require.Equal(t, ingress("203.0.113.1"), c.service().Status.LoadBalancer, "gateways serve it until they have withdrawn it")

	c.editOnHub(func(lb *v1alpha1.LoadBalancer) { lb.Finalizers = nil })
	require.Nil(t, c.onHub())
	c.settle()
	require.NotNil(t, c.onHub())
	require.Equal(t, []string{"hub: create LoadBalancer uid-of-web", "tenant: patch status of Service web"}, c.writes)
	require.Empty(t, c.service().Status.LoadBalancer.Ingress, "the address may be another tenant's now")
	require.Equal(t, says(metav1.ConditionFalse, "Pending", "waiting for the management cluster to answer"), c.condition())
	require.Equal(t, "Normal EnsuringLoadBalancer Ensuring load balancer", all(c.recorder))

	c.answer(metav1.ConditionTrue, "Ready", "served", "203.0.113.2")
	c.settle()
	require.Equal(t, ingress("203.0.113.2"), c.service().Status.LoadBalancer)
	require.Equal(t, "Normal EnsuredLoadBalancer Ensured load balancer", all(c.recorder))
}

// A Service that was deleted and made again has another UID. Its former LoadBalancer may still have the address that it asks for.
func TestTheLoadBalancerOfAnEarlierServiceOfTheSameNameIsDeletedFirst(t *testing.T) {
	c := newClusters(t, web())
	c.serve()
	c.editOnHub(func(lb *v1alpha1.LoadBalancer) { lb.Finalizers = []string{v1alpha1.CleanupFinalizer} })
	require.NoError(t, c.tenant.Delete(t.Context(), c.service()))
	c.edit(func(s *corev1.Service) { s.Finalizers = nil })
	require.Nil(t, c.service())
	require.NoError(t, c.tenant.Create(t.Context(), web(func(s *corev1.Service) { s.UID = "uid-2" })))

	c.settle()
	require.NotNil(t, c.onHub().DeletionTimestamp)
	require.Nil(t, c.loadBalancer("uid-2"))
	require.Equal(t, says(metav1.ConditionFalse, "Pending", "waiting until the management cluster has deleted the LoadBalancer of an earlier Service of this name"), c.condition())
	c.requireNothing()

	c.editOnHub(func(lb *v1alpha1.LoadBalancer) { lb.Finalizers = nil })
	c.settle()
	require.NotNil(t, c.loadBalancer("uid-2"))
}

// Another program has made an object on the hub with the labels of a served Service.
func TestASurplusLoadBalancerIsDeletedWithoutAnEffectOnTheService(t *testing.T) {
	c := newClusters(t, web())
	c.serve()
	surplus := c.onHub()
	surplus.Name, surplus.ResourceVersion, surplus.Finalizers = "surplus", "", []string{v1alpha1.CleanupFinalizer}
	require.NoError(t, c.hub.Create(t.Context(), surplus))
	c.settle()
	require.NotNil(t, c.loadBalancer("surplus").DeletionTimestamp)
	require.Equal(t, []string{"hub: delete LoadBalancer surplus"}, c.writes)
	require.Equal(t, says(metav1.ConditionTrue, "Ready", "served"), c.condition())
	require.Equal(t, ingress("203.0.113.1"), c.service().Status.LoadBalancer)
}

func TestAConflictIsRetriedWithoutAnEvent(t *testing.T) {
	conflict := apierrors.NewConflict(schema.GroupResource{Resource: "any"}, "web", errors.New("changed"))
	exists := apierrors.NewAlreadyExists(schema.GroupResource{Resource: "loadbalancers"}, "uid-of-web")
	for request, answer := range map[string]error{
		"hub: create LoadBalancer uid-of-web": exists,
		"hub: update LoadBalancer uid-of-web": conflict,
		"tenant: patch status of Service web": conflict,
		"tenant: patch Service web":           conflict,
	} {
		t.Run(request, func(t *testing.T) {
			c := newClusters(t, web())
			if request == "hub: update LoadBalancer uid-of-web" {
				c.serve()
				c.edit(func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 30081 })
			}
			before := c.service().Status
			c.refuse = func(r string) error {
				if r == request {
					return answer
				}
				return nil
			}
			result, err := c.reconcile()
			require.NoError(t, err)
			require.Equal(t, conflictRetry, result.RequeueAfter)
			require.Equal(t, before, c.service().Status)
			require.NotContains(t, all(c.recorder), "Warning")
			c.refuse = func(string) error { return nil }
			c.settle()
			c.requireNothing()
			require.NotNil(t, c.onHub())
		})
	}
}

// A user has removed the finalizer and deleted the Service.
func TestTheLoadBalancerOfADeletedServiceIsDeleted(t *testing.T) {
	c := newClusters(t, web())
	c.serve()
	other := c.onHub().DeepCopy()
	other.Name, other.ResourceVersion, other.Labels[v1alpha1.LabelOriginName] = "uid-of-other", "", "other"
	require.NoError(t, c.hub.Create(t.Context(), other))
	require.NoError(t, c.tenant.Delete(t.Context(), c.service()))
	c.edit(func(s *corev1.Service) { s.Finalizers = nil })
	c.settle()
	require.Nil(t, c.onHub())
	require.NotNil(t, c.loadBalancer("uid-of-other"), "another Service's")
	c.requireNothing()

	c.refuse = func(request string) error {
		if request == "hub: read LoadBalancer" {
			return errors.New("the hub is away")
		}
		return nil
	}
	_, err := c.reconcile()
	require.ErrorContains(t, err, "the hub is away", "the lookup is retried")
}

// The Service has a finalizer of KubeLB's own CCM, which nothing removes any more.
func TestAServiceOfKubeLBsCCMIsAdopted(t *testing.T) {
	for _, finalizer := range []string{foreign.Finalizer, "kubelb.k8c.io/lb-finalizer"} {
		c := newClusters(t, web(func(s *corev1.Service) {
			s.Finalizers, s.Status.LoadBalancer = []string{"example.com/other", finalizer}, ingress("203.0.113.1")
		}))
		require.NoError(t, c.hub.Create(t.Context(), &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: "uid-of-web",
			Labels:      map[string]string{v1alpha1.LabelOriginNamespace: "shop", v1alpha1.LabelOriginName: "web"},
			Annotations: map[string]string{"example.com/copied": "by KubeLB's CCM"}}}))
		c.answer(metav1.ConditionTrue, "Ready", "served", "203.0.113.1")
		c.settle()
		require.Equal(t, []string{"example.com/other", cleanupFinalizer}, c.service().Finalizers)
		require.Equal(t, ingress("203.0.113.1"), c.service().Status.LoadBalancer, "its traffic goes on")
		require.Equal(t, corev1.ServiceTypeLoadBalancer, c.onHub().Spec.Type)
		require.Contains(t, c.writes, "hub: update LoadBalancer uid-of-web")
		require.NotContains(t, c.writes, "hub: delete LoadBalancer uid-of-web")
		c.requireNothing()
	}
}

// A newly elected replica, or an upgraded CCM, does not know which events the former process has sent.
func TestANewLeaderRepeatsNoWriteAndNoEvent(t *testing.T) {
	for name, answer := range map[string]func(*clusters){
		"served":  func(*clusters) {},
		"pending": func(c *clusters) { c.answer(metav1.ConditionFalse, "PoolExhausted", "no address is free") },
		"served in part": func(c *clusters) {
			c.edit(func(s *corev1.Service) {
				s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "sctp", Port: 5000, NodePort: 30500, Protocol: corev1.ProtocolSCTP})
			})
		},
		"with a setting that cannot be read": func(c *clusters) {
			c.edit(func(s *corev1.Service) { s.Annotations = map[string]string{v1alpha1.AnnotationForwarding: "diretc"} })
		},
		"refused by this cluster": func(c *clusters) { c.answer(metav1.ConditionTrue, "Ready", "served", "127.0.0.1") },
		"being deleted on a hub that waits for gateways": func(c *clusters) {
			c.editOnHub(func(lb *v1alpha1.LoadBalancer) { lb.Finalizers = []string{v1alpha1.CleanupFinalizer} })
			require.NoError(c, c.tenant.Delete(c.Context(), c.service()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClusters(t, web())
			c.serve()
			answer(c)
			c.settle()
			before, onHub := c.service(), c.onHub()
			c.restart()
			c.requireNothing()
			require.Equal(t, before, c.service())
			require.Equal(t, onHub, c.onHub())
		})
	}
}

func TestAnErrorOfTheTenantClusterIsReturned(t *testing.T) {
	for _, request := range []string{"tenant: read Service", "hub: read LoadBalancer"} {
		c := newClusters(t, web())
		c.serve()
		c.edit(func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 30081 })
		c.refuse = func(r string) error {
			if r == request {
				return errors.New("etcd has no leader")
			}
			return nil
		}
		_, err := c.reconcile()
		require.ErrorContains(t, err, "etcd has no leader")
		require.Empty(t, c.writes)
		require.Equal(t, says(metav1.ConditionTrue, "Ready", "served"), c.condition())
	}
}
