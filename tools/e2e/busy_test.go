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

// busyPorts and busyRanges are as many as a LoadBalancer may have.
const busyPorts, busyRanges, busyObjects = 256, 128, 4

// T33: a tenant changes LoadBalancers with as many ports and source ranges as there may be, one after the other without a pause. What others notice is
// told beside what they notice when it writes as much, as often, into objects of type ClusterIP: that much is the API server's doing.
func TestATenantWithManyPortsAndRangesKeepsNobodyWaiting(t *testing.T) {
	apply(t, web("quick", 1)+service("quick", "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "deployment/quick", "service/quick")
	tenantWait(t, "deployment/quick", "--for=condition=Available")
	quick := externalIPs(t, "quick", 2)[0]
	reachesPods(t, quick, 80, 1)
	c := busyTenant(t)

	n := rounds(t)
	alone := notice(t, "alone", quick, n)
	busy := startWriting(t, c, corev1.ServiceTypeLoadBalancer, 0)
	beside := notice(t, "beside", quick, n)
	changes, pace := busy.end(t)
	require.Positive(t, changes, "the tenant is busy")
	idle := startWriting(t, c, corev1.ServiceTypeClusterIP, pace)
	besideWrites := notice(t, "writes", quick, n)
	writes, _ := idle.end(t)
	t.Logf("alone: %s", alone)
	t.Logf("beside %d changes of %d ports and %d source ranges: %s", changes, busyPorts, busyRanges, beside)
	t.Logf("beside %d such changes of what is not exposed: %s", writes, besideWrites)
}

// busyTenant makes the tenant and its objects, and returns a client with its account.
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
			lb.Spec = crowded(kind, i, 0)
			require.NoError(t, c.Create(t.Context(), lb))
		}
	}
	hubIP(t, "tenant-busy", busyName(corev1.ServiceTypeLoadBalancer, busyObjects-1))
	return c
}

func busyName(kind corev1.ServiceType, i int) string {
	return fmt.Sprint(strings.ToLower(string(kind)), "-", i)
}

// crowded has as many ports and source ranges as there may be, others in each round.
func crowded(kind corev1.ServiceType, which, round int) v1alpha1.LoadBalancerSpec {
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

// writing is a tenant that changes its objects until it is told to end.
type writing struct {
	stop    context.CancelFunc
	ended   chan struct{}
	began   time.Time
	changes int
	err     error
}

// startWriting changes the objects of a kind in turn, no more often than the pace.
func startWriting(t *testing.T, c client.Client, kind corev1.ServiceType, pace time.Duration) *writing {
	ctx, stop := context.WithCancel(t.Context())
	w := &writing{stop: stop, ended: make(chan struct{}), began: time.Now()}
	t.Cleanup(func() { stop(); <-w.ended })
	go func() {
		defer close(w.ended)
		for round := 1; ctx.Err() == nil; round++ {
			lb := &v1alpha1.LoadBalancer{}
			err := c.Get(ctx, client.ObjectKey{Namespace: "tenant-busy", Name: busyName(kind, round%busyObjects)}, lb)
			if err == nil {
				lb.Spec = crowded(kind, round%busyObjects, round)
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
			case <-time.After(time.Until(w.began.Add(time.Duration(round) * pace))):
			case <-ctx.Done():
			}
		}
	}()
	return w
}

// end returns how many changes there were, and how long each took.
func (w *writing) end(t *testing.T) (changes int, each time.Duration) {
	w.stop()
	<-w.ended
	require.NoError(t, w.err)
	return w.changes, time.Since(w.began) / time.Duration(max(1, w.changes))
}

// noticed is what another tenant notices: how long a new Service of it takes to its first answer, and a new connection until it is open. A connection
// of the client to itself passes no gateway: it shows how busy the machine is.
type noticed struct{ services, connections, own []time.Duration }

func notice(t *testing.T, when, quick string, n int) (out noticed) {
	ctx, stop := context.WithCancel(t.Context())
	own := listenOnClient(t)
	var failed error
	connecting := sync.WaitGroup{}
	connecting.Go(func() {
		for ctx.Err() == nil && failed == nil {
			var through, self time.Duration
			through, failed = opened(t, net.JoinHostPort(quick, "80"))
			if failed == nil {
				self, failed = opened(t, own)
			}
			out.connections, out.own = append(out.connections, through), append(out.own, self)
			time.Sleep(10 * time.Millisecond)
		}
	})
	for i := range n {
		out.services = append(out.services, served(t, fmt.Sprint(when, i)))
	}
	stop()
	connecting.Wait()
	require.NoError(t, failed)
	slices.Sort(out.services)
	slices.Sort(out.connections)
	slices.Sort(out.own)
	return out
}

// listenOnClient accepts connections on the client's own host, and returns its address.
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

// opened is how long the client takes to open a connection.
func opened(t *testing.T, to string) (time.Duration, error) {
	began := time.Now()
	conn, err := lab.Client.Dial(t.Context(), net.Dialer{Timeout: 10 * time.Second}, "tcp", to)
	if err != nil {
		return 0, err
	}
	return time.Since(began), conn.Close()
}

// served is how long a Service takes from its creation to its first answer.
func served(t *testing.T, name string) time.Duration {
	began := time.Now()
	apply(t, strings.Replace(service(name, "ports: [{port: 80, targetPort: 8080}]"), "app: "+name, "app: quick", 1))
	cleanUp(t, "service/"+name)
	ip := externalIPs(t, name, 2)[0]
	eventually(t, 30*time.Second, func() error {
		_, err := curl(t, ip, 80, "/hostname")
		return err
	})
	took := time.Since(began)
	kubectl(t, "delete", "service", name, "--timeout=60s")
	return took
}

func (n noticed) String() string {
	at := func(all []time.Duration, percent int) time.Duration {
		return all[(len(all)-1)*percent/100].Round(time.Microsecond)
	}
	return fmt.Sprintf("%d Services served after %v (median), %v (99th percentile); %d connections open after %v, %v; as many of the client to itself after %v, %v",
		len(n.services), at(n.services, 50), at(n.services, 99), len(n.connections), at(n.connections, 50), at(n.connections, 99), at(n.own, 50), at(n.own, 99))
}
