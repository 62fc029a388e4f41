package drill

import (
	"context"
	"fmt"
	"net/netip"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/tools/cluster"
)

// tenant is a tenant cluster with a CCM, and an echo server on both nodes.
type tenant struct {
	cluster *cluster.TenantCluster
	client  client.Client
}

// app is the label of the pods.
var app = map[string]string{"app": "echo"}

// echoPort is the port of the pods.
const echoPort = 8080

// onboard creates a tenant, its cluster and its pods.
func (f *fleet) onboard(ctx context.Context, name string, number int) (*tenant, error) {
	object := &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.TenantSpec{BackendCIDRs: []string{"198.51.100.0/24", "2001:db8:1::/64"}}}
	if err := f.hub.Create(ctx, object); err != nil {
		return nil, err
	}
	c, err := f.lab.AddTenant(ctx, name, number)
	if err != nil {
		return nil, err
	}
	if err := f.lab.StartCCMOf(ctx, c); err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	if err := appsv1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	t := &tenant{cluster: c}
	if t.client, err = c.Client(scheme); err != nil {
		return nil, err
	}
	return t, t.run(ctx)
}

// run starts a pod on each node, and waits for them.
func (t *tenant) run(ctx context.Context) error {
	set := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "echo"}, Spec: appsv1.DaemonSetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: app},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: app}, Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "echo", Image: cluster.EchoImage, ImagePullPolicy: corev1.PullNever,
				ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(echoPort)}}, PeriodSeconds: 1}}}}}}}
	if err := t.client.Create(ctx, set); err != nil {
		return err
	}
	return until(ctx, "pods on all nodes", func() error {
		if err := t.client.Get(ctx, client.ObjectKeyFromObject(set), set); err != nil {
			return err
		}
		if ready := int(set.Status.NumberReady); ready != len(t.cluster.Nodes) {
			return fmt.Errorf("%d pods are ready", ready)
		}
		return nil
	})
}

// expose creates a Service. It has externalTrafficPolicy Local, so that connections do not pass a second node, which could fail.
func (t *tenant) expose(ctx context.Context, name string, annotations map[string]string) error {
	policy := corev1.IPFamilyPolicyRequireDualStack
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: name, Annotations: annotations}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeLoadBalancer, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal, Selector: app, IPFamilies: families[:], IPFamilyPolicy: &policy,
		Ports: []corev1.ServicePort{{Port: servedPort, TargetPort: intstr.FromInt32(echoPort)}}}}
	return t.client.Create(ctx, service)
}

// addresses returns the external addresses of the tenant's Services.
func (t *tenant) addresses(ctx context.Context) (out []netip.Addr, err error) {
	var list corev1.ServiceList
	if err := t.client.List(ctx, &list); err != nil {
		return nil, err
	}
	for _, s := range list.Items {
		for _, ingress := range s.Status.LoadBalancer.Ingress {
			a, err := netip.ParseAddr(ingress.IP)
			if err != nil {
				return nil, err
			}
			out = append(out, a)
		}
	}
	return out, nil
}
