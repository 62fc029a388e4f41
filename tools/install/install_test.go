// Package install tests an installation by Helm, as an operator does it: the two charts in two new clusters, and one kubectl apply. After that a
// Service is served, by real pods on real nodes.
package install

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"kubelb.k8c.io/tools/cluster"
)

// Paths and options, which make install-test sets.
var (
	kubernetes, products, images = os.Getenv("KUBELB_KUBERNETES"), os.Getenv("KUBELB_BIN"), os.Getenv("KUBELB_IMAGES")
	helm, charts                 = os.Getenv("KUBELB_HELM"), os.Getenv("KUBELB_CHARTS")
	monitoring                   = os.Getenv("KUBELB_MONITORING")
	backend                      = os.Getenv("KUBELB_BACKEND")
)

// lab is the lab of the running test.
var lab *cluster.Lab

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if helm == "" {
		fmt.Println("installation tests need Helm and real clusters: run them with make install-test")
		return 0
	}
	if os.Geteuid() == 0 {
		if err := cluster.Isolate(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

func newLab(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces and runs containers")
	}
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	lab, err = cluster.New(ctx, cluster.Options{Kubernetes: kubernetes, Products: products, Images: images, Progress: os.Stderr})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, lab.Close()) })
}

const shop = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: shop}}
  template:
    metadata: {labels: {app: shop}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: shop, image: "localhost/agnhost:1", imagePullPolicy: Never, args: [netexec, --http-port=8080, --udp-port=8053]}
---
apiVersion: v1
kind: Service
metadata: {name: shop}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  selector: {app: shop}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: dns, port: 53, protocol: UDP, targetPort: 8053}]
`

func TestInstallServeUpgradeAndUninstall(t *testing.T) {
	newLab(t)
	t.Cleanup(func() { logPods(t) })
	var server *prometheus
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"after two charts and one Tenant a Service is served", install},
		{"Prometheus monitors both clusters", func(step *testing.T) { server = startMonitoring(step, t) }},
		{"an upgrade replaces the pods, and a rollback too", upgrade},
		{"a value changes the dataplane", otherDataplanes},
		{"faults raise alerts, and all panels of dashboards have values", func(t *testing.T) { faults(t, server) }},
		{"nothing is left after uninstalling", uninstall},
	} {
		if !t.Run(step.name, step.run) {
			return
		}
	}
}

func install(t *testing.T) {
	start := time.Now()
	for _, c := range []*cluster.ControlPlane{lab.Hub, lab.Tenant} {
		kubectl(t, c, "", "apply", "-f", "testdata/monitoring-crds.yaml")
		kubectl(t, c, "", "wait", "--for=condition=Established", "crd/servicemonitors.monitoring.coreos.com", "crd/prometheusrules.monitoring.coreos.com")
	}
	chart(t, lab.Hub, "kubelb-manager", "--create-namespace", "--set", "gateway.interfaces={clients}", "--set", "dataplane.backend="+backend, "--set", "gateway.stateDir="+filepath.Join(lab.Dir, "state"),
		"--set", "controller.apiServer.url="+lab.Hub.URL(), "--set", "controller.forbiddenCIDRs={10.96.0.0/16,10.77.9.0/24}")
	t.Logf("helm install kubelb-manager: %s", since(start))
	kubectl(t, lab.Hub, cluster.PoolManifest+"---\n"+cluster.TenantManifest, "apply", "-f", "-")
	kubectl(t, lab.Hub, "", "wait", "tenant/a", "--for=condition=Ready", "--timeout=60s")

	kubeconfig := filepath.Join(lab.Dir, "kubelb")
	require.NoError(t, lab.TenantKubeconfig(t.Context(), "a", kubeconfig))
	kubectl(t, lab.Tenant, "", "create", "namespace", "kubelb")
	kubectl(t, lab.Tenant, "", "-n", "kubelb", "create", "secret", "generic", "kubelb-cluster", "--from-file=kubelb="+kubeconfig)
	installed := time.Now()
	chart(t, lab.Tenant, "kubelb-ccm", "--set", "kubelb.tenantName=a")
	t.Logf("helm install kubelb-ccm: %s", since(installed))

	kubectl(t, lab.Tenant, shop, "apply", "-f", "-")
	kubectl(t, lab.Tenant, "", "rollout", "status", "deployment/shop", "--timeout=60s")
	podsReady := time.Now()
	for _, address := range addresses(t) {
		answer := eventually(t, 20*time.Second, func() (string, error) {
			return lab.FromClient(t.Context(), "curl", "-sS", "-g", "--max-time", "2", "http://"+address+"/hostname")
		})
		require.True(t, strings.HasPrefix(answer, "shop-"), answer)
	}
	t.Logf("from ready pods to answers at both addresses: %s; from the beginning of the installation: %s", since(podsReady), since(start))
	require.Equal(t, backend, runningBackend(t))
	report := kubectl(t, lab.Hub, "", "-n", "kubelb", "logs", "ds/kubelb-gateway", "-c", "preflight")
	t.Log("the init container\n" + report)
	requireNoProblems(t, report)
	runChartTests(t, lab.Hub, "kubelb-manager")
	runChartTests(t, lab.Tenant, "kubelb-ccm")
	testTokenRenewal(t, kubeconfig)
	// Requests of tenants have their own priority level in the API server.
	out, err := lab.Hub.KubectlAs(t.Context(), kubeconfig, "", "-n", "tenant-a", "get", "loadbalancers", "-v=8")
	require.NoError(t, err)
	require.Contains(t, out, kubectl(t, lab.Hub, "", "get", "flowschema", "kubelb-tenants", "-o", "jsonpath={.metadata.uid}"))
}

// requireNoProblems requires that neither the report of the init container nor the conditions of the Gateway name a problem: the pod's capabilities suffice. Only the
// fast path may be missing, on a kernel without flowtables.
func requireNoProblems(t *testing.T, report string) {
	conditions := kubectl(t, lab.Hub, "", "get", "gateways.kubelb.k8c.io", "-o", `jsonpath={.items[*].status.conditions[?(@.status=="False")].message}`)
	lacks := regexp.MustCompile(`(?m)^(MISSING|LIMITED) .*`).FindAllString(report, -1)
	if len(lacks) > 0 && strings.Contains(lacks[0], "CONFIG_NFT_FLOW_OFFLOAD") {
		require.Equal(t, 1, strings.Count(conditions, "does not work: the fast path"), conditions)
		conditions, lacks = strings.Replace(conditions, "does not work: the fast path", "", 1), lacks[1:]
	}
	require.Empty(t, lacks)
	require.NotContains(t, conditions, "does not work:")
}

// testTokenRenewal writes a kubeconfig with a token that never expires, as an earlier release made it, into the CCM's Secret. The CCM must replace the token by one
// that expires, and write it into the Secret.
func testTokenRenewal(t *testing.T, kubeconfig string) {
	kubectl(t, lab.Hub, strings.Replace(tokenSecretOf("tenant-a", "kubelb-ccm"), "name: stolen", "name: kubelb-ccm", 1), "apply", "-f", "-")
	former := eventually(t, 10*time.Second, func() (string, error) {
		encoded, err := lab.Hub.Get(t.Context(), "tenant-a", "secret/kubelb-ccm", "{.data.token}")
		if err != nil || encoded == "" {
			return "", fmt.Errorf("no token yet: %w", err)
		}
		token, err := base64.StdEncoding.DecodeString(encoded)
		return string(token), err
	})
	config, err := clientcmd.LoadFromFile(kubeconfig)
	require.NoError(t, err)
	for name := range config.AuthInfos {
		config.AuthInfos[name] = &api.AuthInfo{Token: former}
	}
	content, err := clientcmd.Write(*config)
	require.NoError(t, err)
	kubectl(t, lab.Tenant, "", "-n", "kubelb", "patch", "secret", "kubelb-cluster", "--type=merge", "-p", fmt.Sprintf(`{"data":{"kubelb":%q}}`, base64.StdEncoding.EncodeToString(content)))
	eventually(t, 90*time.Second, func() (string, error) {
		encoded := kubectl(t, lab.Tenant, "", "-n", "kubelb", "get", "secret", "kubelb-cluster", "-o", "jsonpath={.data.kubelb}")
		current, err := base64.StdEncoding.DecodeString(encoded)
		if err == nil && strings.Contains(string(current), former) {
			err = fmt.Errorf("the Secret still has the token that never expires")
		}
		return "", err
	})
	runChartTests(t, lab.Tenant, "kubelb-ccm")
}

// runChartTests runs the tests of a chart.
func runChartTests(t *testing.T, c *cluster.ControlPlane, release string) {
	t.Helper()
	out, err := c.Run(t.Context(), helm, "--kubeconfig", c.Kubeconfig, "-n", "kubelb", "test", release, "--logs", "--timeout=60s")
	require.NoError(t, err, out)
}

// runningBackend returns the name of the gateway's dataplane.
func runningBackend(t *testing.T) string {
	t.Helper()
	return kubectl(t, lab.Hub, "", "get", "gateways", "-o", "jsonpath={.items[0].status.backend.name}")
}

// upgrade replaces all pods and rolls back, while clients send requests. Kernel dataplanes forward packets without a pod. Envoy ends with its pod.
func upgrade(t *testing.T) {
	for _, address := range addresses(t) {
		l := startLoad(t.Context(), address+":80")
		chart(t, lab.Hub, "kubelb-manager", "--reset-then-reuse-values", "--set", "log.level=debug")
		time.Sleep(time.Second)
		_, err := lab.Hub.Run(t.Context(), helm, "--kubeconfig", lab.Hub.Kubeconfig, "-n", "kubelb", "rollback", "kubelb-manager", "--wait", "--timeout=120s")
		require.NoError(t, err)
		time.Sleep(time.Second)
		c := l.stop()
		t.Logf("%s: %d requests on a long connection, which ended %d times; %d new connections, %d failed, the slowest %s; %v", address, c.Kept, c.Broken, c.New, c.Failed, c.Slowest.Round(time.Millisecond), c.First)
		require.Greater(t, c.New, 50)
		if backend != "envoy" {
			require.NoError(t, c.First)
		}
	}
}

// otherDataplanes changes through all dataplanes and back while clients send requests.
func otherDataplanes(t *testing.T) {
	address := addresses(t)[0]
	const own = "localhost/kubelb/kubelb-gateway-with-kubelb-backend-example:0.1.0"
	for _, to := range []struct{ backend, image string }{{"nftables", ""}, {"ebpf", ""}, {"example", own},
		// The image needs the former plugin to purge its dataplane.
		{"envoy", own}, {backend, ""}} {
		former := runningBackend(t)
		if to.backend == former {
			continue
		}
		l := startLoad(t.Context(), address+":80")
		choice := to.backend
		if to.backend == "example" {
			choice = "/kubelb-backend-example"
		}
		chart(t, lab.Hub, "kubelb-manager", "--reset-then-reuse-values", "--set", "dataplane.backend="+choice, "--set", "dataplane.image="+to.image, "--set", "dataplane.capabilities={NET_BIND_SERVICE}")
		eventually(t, 30*time.Second, func() (string, error) {
			var err error
			if got := runningBackend(t); got != to.backend {
				err = fmt.Errorf("the gateway's dataplane is %s", got)
			}
			return "", err
		})
		eventually(t, 60*time.Second, func() (string, error) { return "", leftovers(t, former) })
		c := l.stop()
		t.Logf("to %s: %d requests on a long connection, which ended %d times; %d new connections, %d failed, the slowest %s; %v", to.backend, c.Kept, c.Broken, c.New, c.Failed, c.Slowest.Round(time.Millisecond), c.First)
	}
}

// uninstall removes both charts, and requires that nothing remains on the hosts.
func uninstall(t *testing.T) {
	kubectl(t, lab.Tenant, "", "delete", "service", "shop", "--timeout=60s")
	_, err := lab.Tenant.Run(t.Context(), helm, "--kubeconfig", lab.Tenant.Kubeconfig, "-n", "kubelb", "uninstall", "kubelb-ccm", "--wait")
	require.NoError(t, err)
	_, err = lab.Hub.Run(t.Context(), helm, "--kubeconfig", lab.Hub.Kubeconfig, "-n", "kubelb", "uninstall", "kubelb-manager", "--wait")
	require.NoError(t, err)
	eventually(t, 40*time.Second, func() (string, error) {
		pods, err := lab.Hub.Kubectl(t.Context(), "", "-n", "kubelb", "get", "pods", "-o", "name")
		if err == nil && pods != "" {
			err = fmt.Errorf("still there: %s", pods)
		}
		return "", err
	})
	for _, dataplane := range []string{"nftables", "ebpf", "envoy"} {
		require.NoError(t, leftovers(t, dataplane))
	}
	// The CRDs stay, and with them all objects of operators.
	require.Contains(t, kubectl(t, lab.Hub, "", "get", "tenants", "-o", "name"), "tenant.kubelb.k8c.io/a")
}

// leftovers returns an error if anything of a dataplane remains on the gateway's host.
func leftovers(t *testing.T, dataplane string) error {
	t.Helper()
	commands := map[string]string{"nftables": `nft list tables | grep -w 'kubelb$'`, "envoy": `nft list tables | grep kubelb-envoy`, "example": `ip -o address show dev lo | grep lo:kubelb`,
		"ebpf": `nft list tables | grep kubelb-ebpf; ls /sys/fs/bpf | grep kubelb`}
	left, err := lab.OnGateway(t.Context(), "sh", "-c", commands[dataplane]+"; true")
	if err == nil && left != "" {
		err = fmt.Errorf("left of %s: %s", dataplane, left)
	}
	return err
}

// chart installs or upgrades the chart with the name of the release, and waits until its objects are ready.
func chart(t *testing.T, c *cluster.ControlPlane, release string, args ...string) {
	t.Helper()
	argv := []string{helm, "--kubeconfig", c.Kubeconfig, "-n", "kubelb", "upgrade", "--install", release, filepath.Join(charts, release), "--wait", "--timeout=120s",
		"--set", "metrics.serviceMonitor.enabled=true", "--set", "metrics.prometheusRule.enabled=true", "--set", "metrics.dashboards.enabled=true"}
	_, err := c.Run(t.Context(), append(argv, args...)...)
	require.NoError(t, err)
}

func kubectl(t *testing.T, c *cluster.ControlPlane, stdin string, args ...string) string {
	t.Helper()
	out, err := c.Kubectl(t.Context(), stdin, args...)
	require.NoError(t, err)
	return out
}

// addresses waits for both addresses of the Service, and returns them in the form for URLs.
func addresses(t *testing.T) []string {
	t.Helper()
	out := eventually(t, 60*time.Second, func() (string, error) {
		out, err := lab.Tenant.Get(t.Context(), "default", "service/shop", "{.status.loadBalancer.ingress[*].ip}")
		if err == nil && len(strings.Fields(out)) != 2 {
			err = fmt.Errorf("the Service has the addresses %q", out)
		}
		return out, err
	})
	var hosts []string
	for _, ip := range strings.Fields(out) {
		if strings.Contains(ip, ":") {
			ip = "[" + ip + "]"
		}
		hosts = append(hosts, ip)
	}
	return hosts
}

func eventually(t *testing.T, limit time.Duration, check func() (string, error)) string {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		out, err := check()
		if err == nil {
			return out
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", limit, err)
		}
	}
}

func since(t time.Time) time.Duration { return time.Since(t).Round(100 * time.Millisecond) }

func logPods(t *testing.T) {
	if !t.Failed() {
		return
	}
	for name, c := range map[string]*cluster.ControlPlane{"hub": lab.Hub, "tenant": lab.Tenant} {
		for _, args := range [][]string{{"get", "pods", "-A", "-o", "wide"}, {"-n", "kubelb", "get", "events"}, {"-n", "kubelb", "logs", "-l", "app.kubernetes.io/part-of=kubelb", "--all-containers", "--tail=30"}} {
			out, err := c.Kubectl(context.Background(), "", args...)
			t.Logf("%s: kubectl %s (%v)\n%s", name, strings.Join(args, " "), err, out)
		}
	}
}
