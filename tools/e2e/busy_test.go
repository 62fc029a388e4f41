package e2e

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
)

// busyPorts and busyRanges are the most that a LoadBalancer may have.
const busyPorts, busyRanges, busyObjects = 256, 128, 4

// T33: a tenant changes LoadBalancers with the most ports and source ranges without a pause. The test measures the latencies of another tenant alone, during
// these changes, and during as many changes of objects of type ClusterIP. The last shows which part of the latency is the API server's.
func TestABusyTenantDoesNotDelayOthers(t *testing.T) {
	apply(t, web("quick", 1)+service("quick", "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "deployment/quick", "service/quick")
	tenantWait(t, "deployment/quick", "--for=condition=Available")
	quick := externalIPs(t, "quick", 2)[0]
	reachesPods(t, quick, 80, 1)
	c := busyTenant(t)

	n := rounds(t)
	alone := measureLatencies(t, "alone", quick, n)
	busy := startWriter(t, c, corev1.ServiceTypeLoadBalancer, 0)
	duringChanges := measureLatencies(t, "beside", quick, n)
	changes, interval := busy.stopWriting(t)
	require.Positive(t, changes, "the tenant changes objects")
	idle := startWriter(t, c, corev1.ServiceTypeClusterIP, interval)
	duringWrites := measureLatencies(t, "writes", quick, n)
	writes, _ := idle.stopWriting(t)
	t.Logf("alone: %s", alone)
	t.Logf("during %d changes of %d ports and %d source ranges: %s", changes, busyPorts, busyRanges, duringChanges)
	t.Logf("during %d such changes of objects of type ClusterIP: %s", writes, duringWrites)
}

// busyTenant creates the tenant and its objects, and returns a client with the tenant's credentials.
func busyTenant(t *testing.T) client.Client {
	applyToHub(t, "apiVersion: kubelb.k8c.io/v1alpha1\nkind: Tenant\nmetadata: {name: busy}\nspec: {backendCIDRs: [198.51.100.0/24], backendNetwork: busy}")
	cleanUpHub(t, "tenant/busy")
	hubKubectl(t, "wait", "tenant/busy", "--for=condition=Ready", "--timeout=30s")
	hub := *lab.Hub
	hub.Kubeconfig = filepath.Join(lab.Dir, "busy.kubeconfig")
	require.NoError(t, lab.TenantKubeconfig(t.Context(), "busy", hub.Kubeconfig))
	scheme := runtime.NewScheme()
	require.NoError(t, v1alpha1.AddToScheme(scheme))
	c, err := hub.Client(scheme)
	require.NoError(t, err)
	require.NoError(t, c.Create(t.Context(), &v1alpha1.Addresses{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-busy", Name: "default"},
		Spec: v1alpha1.AddressesSpec{Addresses: []v1alpha1.EndpointAddress{{IP: "198.51.100.77"}}}}))
	for _, kind := range []corev1.ServiceType{corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeClusterIP} {
		for i := range busyObjects {
			lb := &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-busy", Name: busyName(kind, i)}}
			lb.Spec = largestSpec(kind, i, 0)
			require.NoError(t, c.Create(t.Context(), lb))
		}
	}
	hubIP(t, "tenant-busy", busyName(corev1.ServiceTypeLoadBalancer, busyObjects-1))
	return c
}

func busyName(kind corev1.ServiceType, i int) string {
	return fmt.Sprint(strings.ToLower(string(kind)), "-", i)
}

// largestSpec returns a spec with the most ports and source ranges, which differ in each round.
func largestSpec(kind corev1.ServiceType, which, round int) v1alpha1.LoadBalancerSpec {
	spec := v1alpha1.LoadBalancerSpec{Type: kind}
	endpoints := v1alpha1.LoadBalancerEndpoints{AddressesReference: &v1alpha1.AddressesReference{Name: "default"}}
	for i := range busyPorts {
		name := fmt.Sprint("p", i)
		spec.Ports = append(spec.Ports, v1alpha1.LoadBalancerPort{Name: name, Port: int32(1000 + i), Protocol: corev1.ProtocolTCP})
		endpoints.Ports = append(endpoints.Ports, v1alpha1.EndpointPort{Name: name, Port: int32(30000 + (i+round)%2000), Protocol: corev1.ProtocolTCP})
	}
	for i := range busyRanges {
		spec.LoadBalancerSourceRanges = append(spec.LoadBalancerSourceRanges, fmt.Sprintf("10.%d.%d.0/25", 50*which+round%50, i))
	}
	spec.Endpoints = []v1alpha1.LoadBalancerEndpoints{endpoints}
	return spec
}

// writer changes objects of the busy tenant until it is stopped.
type writer struct {
	stop    context.CancelFunc
	ended   chan struct{}
	start   time.Time
	changes int
	err     error
}

// startWriter changes the objects of a type in turn, at most once an interval.
func startWriter(t *testing.T, c client.Client, kind corev1.ServiceType, interval time.Duration) *writer {
	ctx, stop := context.WithCancel(t.Context())
	w := &writer{stop: stop, ended: make(chan struct{}), start: time.Now()}
	t.Cleanup(func() { stop(); <-w.ended })
	go func() {
		defer close(w.ended)
		for round := 1; ctx.Err() == nil; round++ {
			lb := &v1alpha1.LoadBalancer{}
			err := c.Get(ctx, client.ObjectKey{Namespace: "tenant-busy", Name: busyName(kind, round%busyObjects)}, lb)
			if err == nil {
				lb.Spec = largestSpec(kind, round%busyObjects, round)
				err = c.Update(ctx, lb)
			}
			switch {
			case err == nil:
				w.changes++
			case !apierrors.IsConflict(err) && ctx.Err() == nil:
				w.err = err
				return
			}
			select {
			case <-time.After(time.Until(w.start.Add(time.Duration(round) * interval))):
			case <-ctx.Done():
			}
		}
	}()
	return w
}

// stopWriting stops the writer, and returns the number of changes and the mean time of a change.
func (w *writer) stopWriting(t *testing.T) (changes int, each time.Duration) {
	w.stop()
	<-w.ended
	require.NoError(t, w.err)
	return w.changes, time.Since(w.start) / time.Duration(max(1, w.changes))
}

// latencies are of another tenant: of new Services until their first response, and of new connections until they are open. Own connections are of the client to
// itself, without a gateway: they show the load of the host.
type latencies struct{ services, connections, own []time.Duration }

func measureLatencies(t *testing.T, when, quick string, n int) (out latencies) {
	ctx, cancel := context.WithCancel(t.Context())
	own := listenOnClient(t)
	var failed error
	connecting := sync.WaitGroup{}
	connecting.Go(func() {
		for ctx.Err() == nil && failed == nil {
			var toService, toSelf time.Duration
			toService, failed = connectTime(t, net.JoinHostPort(quick, "80"))
			if failed == nil {
				toSelf, failed = connectTime(t, own)
			}
			out.connections, out.own = append(out.connections, toService), append(out.own, toSelf)
			time.Sleep(10 * time.Millisecond)
		}
	})
	for i := range n {
		out.services = append(out.services, serviceTime(t, fmt.Sprint(when, i)))
	}
	cancel()
	connecting.Wait()
	require.NoError(t, failed)
	slices.Sort(out.services)
	slices.Sort(out.connections)
	slices.Sort(out.own)
	return out
}

// listenOnClient accepts connections on the client's host, and returns the address.
func listenOnClient(t *testing.T) string {
	var listener net.Listener
	require.NoError(t, lab.Client.Do(func() (err error) {
		listener, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	}))
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	return listener.Addr().String()
}

// connectTime measures how long the client takes to open a connection.
func connectTime(t *testing.T, to string) (time.Duration, error) {
	start := time.Now()
	conn, err := lab.Client.Dial(t.Context(), net.Dialer{Timeout: 10 * time.Second}, "tcp", to)
	if err != nil {
		return 0, err
	}
	return time.Since(start), conn.Close()
}

// serviceTime measures how long a Service takes from its creation to its first response.
func serviceTime(t *testing.T, name string) time.Duration {
	start := time.Now()
	apply(t, strings.Replace(service(name, "ports: [{port: 80, targetPort: 8080}]"), "app: "+name, "app: quick", 1))
	cleanUp(t, "service/"+name)
	ip := externalIPs(t, name, 2)[0]
	eventually(t, 30*time.Second, func() error {
		_, err := curl(t, ip, 80, "/hostname")
		return err
	})
	took := time.Since(start)
	kubectl(t, "delete", "service", name, "--timeout=60s")
	return took
}

func (n latencies) String() string {
	at := func(all []time.Duration, percent int) time.Duration {
		return all[(len(all)-1)*percent/100].Round(time.Microsecond)
	}
	return fmt.Sprintf("%d Services served after %v (median), %v (99th percentile); %d connections open after %v, %v; as many connections of the client to itself after %v, %v",
		len(n.services), at(n.services, 50), at(n.services, 99), len(n.connections), at(n.connections, 50), at(n.connections, 99), at(n.own, 50), at(n.own, 99))
}
