// Command scale loads thousands of LoadBalancers through a real API server, and measures the cost of one more change: the time, and
// the number of elements that are sent to the kernel.
package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/tools/cluster"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, env func(string) string, stdout io.Writer) (err error) {
	flags := flag.NewFlagSet("scale", flag.ContinueOnError)
	small := flags.Int("small", 100, "number of LoadBalancers at the first measurement")
	large := flags.Int("large", 10000, "number of LoadBalancers at the second measurement")
	nodes := flags.Int("nodes", 100, "number of the tenant's nodes")
	samples := flags.Int("samples", 9, "number of samples of each change; the median is reported")
	if err := flags.Parse(args); err != nil {
		return err
	}
	kubernetes, products := env("KUBELB_KUBERNETES"), env("KUBELB_BIN")
	if kubernetes == "" || products == "" {
		return errors.New("run it with make bench-scale")
	}
	if err := cluster.Isolate(); err != nil {
		return err
	}
	lab, err := cluster.New(ctx, cluster.Options{Kubernetes: kubernetes, Products: products, Progress: stdout, HubOnly: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	b := &bench{lab: lab, out: stdout, nodes: *nodes, samples: *samples, began: time.Now()}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	var results []result
	for _, size := range []int{*small, *large} {
		r, err := b.measure(ctx, size)
		if err != nil {
			return err
		}
		results = append(results, r)
	}
	b.report(results)
	return nil
}

// bench is one run.
type bench struct {
	lab     *cluster.Lab
	out     io.Writer
	hub     client.Client
	nodes   int
	samples int
	loaded  int
	began   time.Time
	log     *follower
}

const namespace = "tenant-scale"

func (b *bench) step(format string, args ...any) {
	fmt.Fprintf(b.out, "[%6.1f s] %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

// node returns the address of the i-th node.
func node(i int) string { return fmt.Sprintf("10.9.%d.%d", i/200, 10+i%200) }

func (b *bench) prepare(ctx context.Context) error {
	var addresses []string
	for i := range b.nodes + 2*b.samples {
		addresses = append(addresses, node(i)+"/32")
	}
	farm, err := b.lab.AddHost("farm", append(addresses, "198.51.100.9/24")...)
	if err != nil {
		return err
	}
	if err := b.lab.Gateway.Route("10.9.0.0/16", "198.51.100.9"); err != nil {
		return err
	}
	if err := farm.Do(serveHealth); err != nil {
		return err
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return err
	}
	if b.hub, err = b.lab.Hub.Client(scheme); err != nil {
		return err
	}
	many := int32(1 << 20)
	objects := []client.Object{
		&v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: "public"}, Spec: v1alpha1.AddressPoolSpec{Addresses: []string{"10.200.0.0/16"}}},
		&v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: "scale"}, Spec: v1alpha1.TenantSpec{BackendCIDRs: []string{"10.9.0.0/16"}, Objects: v1alpha1.TenantObjects{LoadBalancers: &many}}},
	}
	for _, o := range objects {
		if err := b.hub.Create(ctx, o); err != nil {
			return err
		}
	}
	if err := b.lab.StartManager(); err != nil {
		return err
	}
	b.log = &follower{path: b.lab.Manager.Log}
	return b.until(ctx, "namespace", func() bool {
		return b.hub.Create(ctx, b.addresses(b.nodes)) == nil
	})
}

// serveHealth answers health checks like kube-proxy on healthy nodes. It runs in the nodes' namespace.
func serveHealth() error {
	listener, err := net.Listen("tcp", ":10256")
	if err != nil {
		return err
	}
	go func() {
		_ = http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }))
	}()
	return nil
}

func (b *bench) addresses(n int) *v1alpha1.Addresses {
	a := &v1alpha1.Addresses{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: v1alpha1.DefaultAddressesName}}
	for i := range n {
		a.Spec.Addresses = append(a.Spec.Addresses, v1alpha1.EndpointAddress{IP: node(i)})
	}
	return a
}

// loadBalancer returns the i-th LoadBalancer. Every other one has externalTrafficPolicy Local with three nodes.
func (b *bench) loadBalancer(i int) *v1alpha1.LoadBalancer {
	lb := &v1alpha1.LoadBalancer{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("lb-%05d", i)},
		Spec: v1alpha1.LoadBalancerSpec{
			Type:  corev1.ServiceTypeLoadBalancer,
			Ports: []v1alpha1.LoadBalancerPort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}},
			Endpoints: []v1alpha1.LoadBalancerEndpoints{{
				AddressesReference: &v1alpha1.AddressesReference{Name: v1alpha1.DefaultAddressesName},
				Ports:              []v1alpha1.EndpointPort{{Name: "http", Port: int32(30000 + i%2000), Protocol: corev1.ProtocolTCP}},
			}},
		},
	}
	if i%2 == 1 {
		lb.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		// Three different nodes, selected so that the sets rarely repeat.
		first, second := i%b.nodes, (i/b.nodes+1)%(b.nodes-1)+1
		local := []v1alpha1.EndpointAddress{{IP: node(first)}, {IP: node((first + second) % b.nodes)}, {IP: node((first + second + 1) % b.nodes)}}
		lb.Spec.Endpoints[0].LocalAddresses = &local
	}
	return lb
}

// until polls until done returns true. Its limit is enough for loading thousands of LoadBalancers.
func (b *bench) until(ctx context.Context, what string, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()
	for !done() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w\n%s", what, ctx.Err(), b.lab.Manager.Tail())
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// change is the median cost of one kind of change.
type change struct {
	// seen is the time from the write to the API until the API shows that a gateway has the change. apply is the time of the dataplane.
	seen, apply time.Duration
	operations  int
}

type result struct {
	size                int
	load                time.Duration
	more, changed, node change
	manager, plugin     int
}

func (b *bench) measure(ctx context.Context, size int) (result, error) {
	r := result{size: size}
	began := time.Now()
	if err := b.load(ctx, size); err != nil {
		return r, err
	}
	r.load = time.Since(began)
	b.step("%d LoadBalancers served", size)
	var err error
	if r.more, err = b.sample(ctx, b.oneMore); err != nil {
		return r, fmt.Errorf("one more: %w", err)
	}
	if r.changed, err = b.sample(ctx, b.oneChanged); err != nil {
		return r, fmt.Errorf("one changed: %w", err)
	}
	if r.node, err = b.sample(ctx, b.oneNodeMore); err != nil {
		return r, fmt.Errorf("one node more: %w", err)
	}
	plugins, err := b.lab.Manager.Children()
	if err != nil || len(plugins) != 1 {
		return r, fmt.Errorf("the manager has the children %v: %w", plugins, err)
	}
	manager, err := cluster.UsageOf(b.lab.Manager.PID())
	if err != nil {
		return r, err
	}
	plugin, err := cluster.UsageOf(plugins[0].PID)
	r.manager, r.plugin = manager.ResidentKiB/1024, plugin.ResidentKiB/1024
	return r, err
}

// load creates LoadBalancers up to the size and waits until all are ready.
func (b *bench) load(ctx context.Context, size int) error {
	creates, createCtx := errgroup.WithContext(ctx)
	creates.SetLimit(16)
	for i := b.loaded; i < size; i++ {
		creates.Go(func() error { return b.hub.Create(createCtx, b.loadBalancer(i)) })
	}
	if err := creates.Wait(); err != nil {
		return err
	}
	b.loaded = size
	next := time.Now()
	return b.until(ctx, "load", func() bool {
		if time.Now().Before(next) {
			return false
		}
		next = time.Now().Add(3 * time.Second)
		var g v1alpha1.Gateway
		if err := b.hub.Get(ctx, client.ObjectKey{Name: "gateway"}, &g); err != nil || int(g.Status.Frontends) < size {
			return false
		}
		var lbs v1alpha1.LoadBalancerList
		if err := b.hub.List(ctx, &lbs); err != nil {
			return false
		}
		for i := range lbs.Items {
			if len(lbs.Items[i].Status.LoadBalancer.Ingress) == 0 {
				return false
			}
		}
		return true
	})
}

// sample repeats a change and returns medians. The pause lets effects of the former change settle.
func (b *bench) sample(ctx context.Context, once func(context.Context, int) error) (change, error) {
	var seen, apply []time.Duration
	var operations []int
	for i := range b.samples {
		time.Sleep(300 * time.Millisecond)
		if _, err := b.log.applied(); err != nil {
			return change{}, err
		}
		began := time.Now()
		if err := once(ctx, i); err != nil {
			return change{}, err
		}
		seen = append(seen, time.Since(began))
		time.Sleep(200 * time.Millisecond)
		lines, err := b.log.applied()
		if err != nil {
			return change{}, err
		}
		total := change{}
		for _, l := range lines {
			total.apply += l.apply
			total.operations += l.operations
		}
		apply, operations = append(apply, total.apply), append(operations, total.operations)
	}
	return change{median(seen), median(apply), median(operations)}, nil
}

func median[T cmp.Ordered](values []T) T {
	return slices.Sorted(slices.Values(values))[len(values)/2]
}

func (b *bench) oneMore(ctx context.Context, _ int) error {
	lb := b.loadBalancer(b.loaded)
	b.loaded++
	if err := b.hub.Create(ctx, lb); err != nil {
		return err
	}
	return b.until(ctx, lb.Name, func() bool {
		return b.hub.Get(ctx, client.ObjectKeyFromObject(lb), lb) == nil && len(lb.Status.LoadBalancer.Ingress) > 0
	})
}

func (b *bench) oneChanged(ctx context.Context, i int) error {
	var lb v1alpha1.LoadBalancer
	if err := b.hub.Get(ctx, client.ObjectKey{Namespace: namespace, Name: fmt.Sprintf("lb-%05d", i)}, &lb); err != nil {
		return err
	}
	lb.Spec.Ports[0].Port += 1000
	if err := b.hub.Update(ctx, &lb); err != nil {
		return err
	}
	return b.untilApplied(ctx, lb.ResourceVersion)
}

// untilApplied waits until the gateway has applied the resource version.
func (b *bench) untilApplied(ctx context.Context, version string) error {
	want, err := strconv.ParseUint(version, 10, 64)
	if err != nil {
		return err
	}
	return b.until(ctx, "gateway", func() bool {
		var g v1alpha1.Gateway
		if b.hub.Get(ctx, client.ObjectKey{Name: "gateway"}, &g) != nil {
			return false
		}
		have, err := strconv.ParseUint(g.Status.AppliedResourceVersion, 10, 64)
		return err == nil && have >= want && len(g.Status.Behind) == 0
	})
}

func (b *bench) oneNodeMore(ctx context.Context, _ int) error {
	var a v1alpha1.Addresses
	if err := b.hub.Get(ctx, client.ObjectKey{Namespace: namespace, Name: v1alpha1.DefaultAddressesName}, &a); err != nil {
		return err
	}
	var g v1alpha1.Gateway
	if err := b.hub.Get(ctx, client.ObjectKey{Name: "gateway"}, &g); err != nil {
		return err
	}
	a.Spec.Addresses = append(a.Spec.Addresses, v1alpha1.EndpointAddress{IP: node(len(a.Spec.Addresses))})
	if err := b.hub.Update(ctx, &a); err != nil {
		return err
	}
	before := g.Status.Generation
	return b.until(ctx, "gateway", func() bool {
		return b.hub.Get(ctx, client.ObjectKey{Name: "gateway"}, &g) == nil && g.Status.Generation != before
	})
}

// follower reads the manager's log lines of each Apply.
type follower struct {
	path   string
	offset int64
}

var appliedLine = regexp.MustCompile(`msg=applied .*operations=(\d+) microseconds=(\d+)`)

// applied returns the changes that were applied since the last call.
func (f *follower) applied() ([]change, error) {
	file, err := os.Open(filepath.Clean(f.path))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if _, err := file.Seek(f.offset, io.SeekStart); err != nil {
		return nil, err
	}
	var out []change
	reader := bufio.NewReader(file)
	for {
		line, err := reader.ReadString('\n')
		if err != nil {
			return out, nil // an unfinished line is read the next time
		}
		f.offset += int64(len(line))
		if m := appliedLine.FindStringSubmatch(line); m != nil {
			operations, _ := strconv.Atoi(m[1])
			microseconds, _ := strconv.Atoi(m[2])
			out = append(out, change{apply: time.Duration(microseconds) * time.Microsecond, operations: operations})
		}
	}
}

func (b *bench) report(results []result) {
	fmt.Fprintf(b.out, "\n%d nodes; every other LoadBalancer has externalTrafficPolicy Local with a set of three nodes; medians of %d\n\n", b.nodes, b.samples)
	fmt.Fprintf(b.out, "| | %d LoadBalancers | %d LoadBalancers | ratio |\n| --- | --- | --- | --- |\n", results[0].size, results[1].size)
	row := func(what string, of func(result) time.Duration) {
		x, y := of(results[0]), of(results[1])
		fmt.Fprintf(b.out, "| %s | %.1f ms | %.1f ms | %.2f |\n", what, ms(x), ms(y), float64(y)/float64(x))
	}
	fmt.Fprintf(b.out, "| loaded through the API, all served | %.1f s | %.1f s | |\n", results[0].load.Seconds(), results[1].load.Seconds())
	for _, c := range []struct {
		name string
		of   func(result) change
	}{
		{"one LoadBalancer more", func(r result) change { return r.more }},
		{"one LoadBalancer changed", func(r result) change { return r.changed }},
		{"one node more", func(r result) change { return r.node }},
	} {
		row(c.name+": seen in the API", func(r result) time.Duration { return c.of(r).seen })
		row(c.name+": Apply", func(r result) time.Duration { return c.of(r).apply })
		x, y := c.of(results[0]).operations, c.of(results[1]).operations
		fmt.Fprintf(b.out, "| %s: elements sent to the kernel | %d | %d | %.2f |\n", c.name, x, y, float64(y)/float64(max(x, 1)))
	}
	fmt.Fprintf(b.out, "| resident memory of the manager | %d MiB | %d MiB | |\n| resident memory of the plugin | %d MiB | %d MiB | |\n",
		results[0].manager, results[1].manager, results[0].plugin, results[1].plugin)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
