// Command demo starts a management cluster, a tenant cluster with two nodes, a gateway and a client on this machine. It gives a
// Service of the tenant an external address, and connects to it from the client.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"kubelb.k8c.io/conformance/netlab"
	"kubelb.k8c.io/tools/cluster"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

const shop = `apiVersion: apps/v1
kind: Deployment
metadata:
  name: shop
spec:
  replicas: 2
  selector: {matchLabels: {app: shop}}
  template:
    metadata: {labels: {app: shop}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: shop}}}]
      containers:
      - {name: shop, image: "localhost/agnhost:1", imagePullPolicy: Never, args: [netexec, --http-port=8080, --udp-port=8053]}
---
apiVersion: v1
kind: Service
metadata:
  name: shop
spec:
  type: LoadBalancer
  ipFamilyPolicy: PreferDualStack
  selector: {app: shop}
  ports: [{name: http, port: 80, targetPort: 8080}]
`

func run(ctx context.Context, args []string, env func(string) string, stdout io.Writer) (err error) {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	once := flags.Bool("once", false, "stop after the walk-through, instead of waiting for Ctrl-C")
	backend := flags.String("backend", "nftables", "the gateway's dataplane")
	if err := flags.Parse(args); err != nil {
		return err
	}
	kubernetes, products := env("KUBELB_KUBERNETES"), env("KUBELB_BIN")
	if kubernetes == "" || products == "" {
		return errors.New("run it with make demo")
	}
	if missing := cluster.Missing(); len(missing) > 0 {
		return fmt.Errorf("missing programs: %s; run it with make demo, which installs them", strings.Join(missing, ", "))
	}
	if err := cluster.Isolate(); err != nil {
		return err
	}
	began := time.Now()
	lab, err := cluster.New(ctx, cluster.Options{Kubernetes: kubernetes, Products: products, Backend: *backend, Progress: stdout})
	if err != nil {
		return err
	}
	defer func() {
		fmt.Fprintln(stdout, "\nremoving everything ...")
		err = errors.Join(err, lab.Close())
	}()
	d := demo{lab: lab, out: stdout, began: began, kubectl: filepath.Join(kubernetes, "kubectl"), kubelb: filepath.Join(products, "kubelb")}
	if err := d.walkThrough(ctx); err != nil || *once {
		return err
	}
	// kubelb check needs a host that reaches the management cluster's API, and the external addresses like a client.
	if d.operator, err = lab.AddGateway("operator", operatorNumber); err != nil {
		return err
	}
	d.usage()
	<-ctx.Done()
	return nil
}

// operatorNumber is the last byte of the addresses of the operator's host.
const operatorNumber = 101

type demo struct {
	lab   *cluster.Lab
	out   io.Writer
	began time.Time
	// kubectl and kubelb are the paths of these programs.
	kubectl, kubelb string
	operator        *netlab.Namespace
}

func (d demo) step(format string, args ...any) {
	fmt.Fprintf(d.out, "[%5.1f s] %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

// show runs a kubectl command, and prints the command and its output.
func (d demo) show(ctx context.Context, where *cluster.ControlPlane, args ...string) error {
	fmt.Fprintf(d.out, "\n%s$ kubectl %s\n", where.Name, strings.Join(args, " "))
	out, err := where.Kubectl(ctx, "", args...)
	fmt.Fprint(d.out, out)
	return err
}

func (d demo) walkThrough(ctx context.Context) error {
	lab := d.lab
	for what, manifest := range map[string]string{"AddressPool public": cluster.PoolManifest, "Tenant a": cluster.TenantManifest} {
		if _, err := lab.Hub.Kubectl(ctx, manifest, "apply", "-f", "-"); err != nil {
			return err
		}
		d.step("hub: %s", what)
	}
	if err := lab.StartManager(); err != nil {
		return err
	}
	d.step("gateway: kubelb-manager, both roles")
	if err := lab.StartCCM(ctx); err != nil {
		return err
	}
	d.step("tenant: kubelb-ccm, with credentials from the manager")
	if _, err := lab.Tenant.Kubectl(ctx, shop, "apply", "-f", "-"); err != nil {
		return err
	}
	d.step("tenant: Deployment and Service shop of type LoadBalancer")
	if _, err := lab.Tenant.Kubectl(ctx, "", "wait", "deployment/shop", "--for=condition=Available", "--timeout=60s"); err != nil {
		return err
	}
	if _, err := lab.Tenant.Kubectl(ctx, "", "wait", "service/shop", "--for=jsonpath={.status.loadBalancer.ingress[1].ip}", "--timeout=60s"); err != nil {
		return err
	}
	ips, err := lab.Tenant.Kubectl(ctx, "", "get", "service", "shop", "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}")
	if err != nil {
		return err
	}
	d.step("tenant: external addresses %s", ips)
	for _, ip := range strings.Fields(ips) {
		if err := d.reach(ctx, ip); err != nil {
			return err
		}
	}
	for _, c := range []struct {
		where *cluster.ControlPlane
		args  []string
	}{
		{lab.Tenant, []string{"get", "service", "shop", "-o", "wide"}},
		{lab.Hub, []string{"get", "loadbalancers,addresses", "-A"}},
		{lab.Hub, []string{"get", "tenants,addresspools,gateways"}},
	} {
		if err := d.show(ctx, c.where, c.args...); err != nil {
			return err
		}
	}
	return nil
}

// reach sends requests until both pods have answered. On each node, kube-proxy may take a second to learn of a Service.
func (d demo) reach(ctx context.Context, ip string) error {
	host := ip
	if strings.Contains(ip, ":") {
		host = "[" + ip + "]"
	}
	answers := map[string]int{}
	var last error
	for deadline := time.Now().Add(15 * time.Second); len(answers) < 2 && time.Now().Before(deadline); {
		name, err := d.lab.FromClient(ctx, "curl", "-sS", "-g", "--max-time", "3", "http://"+host+"/hostname")
		if err == nil {
			answers[strings.TrimSpace(name)]++
		} else if last = err; ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if len(answers) != 2 {
		return fmt.Errorf("%s: %d pods answered, want 2: %w", ip, len(answers), last)
	}
	d.step("client: http://%s/hostname is answered by both pods, %v", host, answers)
	return nil
}

func (d demo) usage() {
	// In other shells, this program has another process id.
	const enter = "nsenter --target $(pgrep -o -x demo) --mount"
	fmt.Fprintf(d.out, "\nThe demo runs until Ctrl-C. In another shell, as root:\n")
	fmt.Fprintf(d.out, "  a shell on the client:   %s ip netns exec %s bash\n", enter, d.lab.Client.Name)
	fmt.Fprintf(d.out, "  a shell on the gateway:  %s ip netns exec %s bash\n", enter, d.lab.Gateway.Name)
	for _, c := range []*cluster.ControlPlane{d.lab.Hub, d.lab.Tenant} {
		fmt.Fprintf(d.out, "  kubectl on the %-9s %s ip netns exec %s %s --kubeconfig %s get all -A\n", c.Name+":", enter, c.Namespace.Name, d.kubectl, c.Kubeconfig)
	}
	fmt.Fprintf(d.out, "  logs:                    %s/*.log\n", filepath.Clean(d.lab.Dir))
	fmt.Fprintf(d.out, "\nThe state of the load balancer, why a Service is served or not, and whether connections to it are answered:\n")
	for _, command := range []string{"status", "explain default/shop --tenant=" + cluster.TenantName, "check default/shop --tenant=" + cluster.TenantName} {
		fmt.Fprintf(d.out, "  %s ip netns exec %s %s %s --kubeconfig %s\n", enter, d.operator.Name, d.kubelb, command, d.lab.Hub.Kubeconfig)
	}
}
