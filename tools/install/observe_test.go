package install

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// startMonitoring starts Prometheus, and requires that no alert fires. Prometheus runs until parent ends.
func startMonitoring(t, parent *testing.T) *prometheus {
	p := startPrometheus(t, parent)
	eventually(t, 30*time.Second, func() (string, error) {
		up := map[string]bool{}
		for _, s := range p.since(t, p.start, "up == 1") {
			up[s.Metric["job"]] = true
		}
		if len(up) != 3 {
			return "", fmt.Errorf("Prometheus has scraped only %v", up)
		}
		return "", nil
	})
	// Alerts from before the first scrapes last until the next evaluation.
	answered := time.Now().Add(2 * scrapeInterval)
	eventually(t, 20*time.Second, func() (string, error) {
		start := time.Now().Add(-5 * scrapeInterval)
		if start.Before(answered) {
			return "", errors.New("too early to decide")
		}
		if fired := p.fired(t, start); len(fired) > 0 {
			return "", fmt.Errorf("there is no fault, but these alerts fire: %v", fired)
		}
		return "", nil
	})
	return p
}

// The faults: twoServices request the only address of a pool and exceed the tenant's limit, and there is no router at the address of the BGPPeer.
const (
	smallPool = `
apiVersion: kubelb.k8c.io/v1alpha1
kind: AddressPool
metadata: {name: narrow}
spec: {addresses: [192.0.2.150/32]}
---
apiVersion: kubelb.k8c.io/v1alpha1
kind: BGPPeer
metadata: {name: nobody}
spec: {address: 192.0.2.99, localASN: 64512, peerASN: 64513, connectTime: 1s, bfd: {}}
`
	twoServices = `
apiVersion: v1
kind: Service
metadata: {name: first, annotations: {kubelb.k8c.io/address-pool: narrow}}
spec: {type: LoadBalancer, ipFamilies: [IPv4], selector: {app: shop}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: second, annotations: {kubelb.k8c.io/address-pool: narrow}}
spec: {type: LoadBalancer, ipFamilies: [IPv4], selector: {app: shop}, ports: [{port: 80, targetPort: 8080}]}
`
)

// faults causes faults, and requires that their alerts fire, and that each query of the dashboards has returned numbers.
func faults(t *testing.T, p *prometheus) {
	start := time.Now()
	kubectl(t, lab.Hub, smallPool, "apply", "-f", "-")
	kubectl(t, lab.Hub, "", "patch", "tenant", "a", "--type=merge", "-p", `{"spec":{"limits":{"addresses":3}}}`)
	kubectl(t, lab.Tenant, twoServices, "apply", "-f", "-")
	kubectl(t, lab.Tenant, "", "wait", "service/first", "--for=jsonpath={.status.loadBalancer.ingress[0].ip}=192.0.2.150", "--timeout=30s")
	chart(t, lab.Hub, "kubelb-manager", "--reset-then-reuse-values", "--set", "gateway.announce=bgp")
	wanted := []string{"KubeLBAddressPoolAlmostFull", "KubeLBAddressPoolFull", "KubeLBTenantAtLimit", "KubeLBLoadBalancersPending", "KubeLBServicesPending", "KubeLBBGPSessionDown", "KubeLBBFDSessionDown"}
	eventually(t, 60*time.Second, func() (string, error) {
		fired := p.fired(t, start)
		missing := slices.DeleteFunc(slices.Clone(wanted), func(name string) bool { return fired[name] })
		if len(missing) > 0 {
			return "", fmt.Errorf("these alerts do not fire: %v; these do: %v", missing, fired)
		}
		return "", nil
	})
	shown := append(panels(t, lab.Hub, "kubelb-dashboards"), panels(t, lab.Tenant, "kubelb-ccm-dashboards")...)
	for _, panel := range shown {
		numbers := 0
		for _, s := range p.since(t, p.start, panel.query) {
			numbers += s.numbers()
		}
		require.Positive(t, numbers, "%s: panel %s has no values: %s", panel.dashboard, panel.title, panel.query)
	}
	t.Logf("%d queries of dashboards were answered, %d alerts fired: %v", len(shown), len(p.fired(t, p.start)), p.fired(t, p.start))

	kubectl(t, lab.Tenant, twoServices, "delete", "-f", "-", "--timeout=60s")
	chart(t, lab.Hub, "kubelb-manager", "--reset-then-reuse-values", "--set", "gateway.announce=layer2")
	kubectl(t, lab.Hub, smallPool, "delete", "-f", "-")
}

// promtool tests with recorded series that each alert fires when it should, and not before.
func TestAlertsFireWhenTheyShould(t *testing.T) {
	if monitoring == "" {
		t.Skip("needs Prometheus' promtool: run it with make install-test")
	}
	out, err := exec.CommandContext(t.Context(), filepath.Join(monitoring, "usr/bin/promtool"), "test", "rules", "testdata/alerts.yaml").CombinedOutput()
	require.NoError(t, err, string(out))
}

func TestEachAlertIsTested(t *testing.T) {
	tests, err := os.ReadFile("testdata/alerts.yaml")
	require.NoError(t, err)
	files, err := filepath.Glob("../../deploy/charts/*/files/alerts/*.yaml")
	require.NoError(t, err)
	require.Len(t, files, 3)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, alert := range regexp.MustCompile(`alert: (\w+)`).FindAllSubmatch(text, -1) {
			require.Contains(t, string(tests), fmt.Sprintf(`ALERTS{alertname=%q, alertstate="firing"}', exp_samples: []`, alert[1]), file)
		}
	}
}
