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

// watch starts Prometheus, and expects that nothing is wrong.
func watch(t, whole *testing.T) *prometheus {
	p := startPrometheus(t, whole)
	eventually(t, 30*time.Second, func() (string, error) {
		up := map[string]bool{}
		for _, s := range p.since(t, p.began, "up == 1") {
			up[s.Metric["job"]] = true
		}
		if len(up) != 3 {
			return "", fmt.Errorf("Prometheus has reached %v", up)
		}
		return "", nil
	})
	// What the rules said before the first answers holds until each has had its next turn.
	answered := time.Now().Add(2 * scrapeEvery)
	eventually(t, 20*time.Second, func() (string, error) {
		begin := time.Now().Add(-5 * scrapeEvery)
		if begin.Before(answered) {
			return "", errors.New("too early to tell")
		}
		if fired := p.fired(t, begin); len(fired) > 0 {
			return "", fmt.Errorf("nothing is wrong, but these alerts fire: %v", fired)
		}
		return "", nil
	})
	return p
}

// narrow is a pool with one address, which two Services want, of a tenant that may have so many; there is no such router.
const (
	narrow = `
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
	wishes = `
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

// faults makes some, and expects that their alerts fire, and that by now each query of the dashboards has been answered with a number.
func faults(t *testing.T, p *prometheus) {
	begin := time.Now()
	kubectl(t, lab.Hub, narrow, "apply", "-f", "-")
	kubectl(t, lab.Hub, "", "patch", "tenant", "a", "--type=merge", "-p", `{"spec":{"limits":{"addresses":3}}}`)
	kubectl(t, lab.Tenant, wishes, "apply", "-f", "-")
	kubectl(t, lab.Tenant, "", "wait", "service/first", "--for=jsonpath={.status.loadBalancer.ingress[0].ip}=192.0.2.150", "--timeout=30s")
	chart(t, lab.Hub, "kubelb-manager", "--reset-then-reuse-values", "--set", "gateway.announce=bgp")
	wanted := []string{"KubeLBAddressPoolAlmostFull", "KubeLBAddressPoolFull", "KubeLBTenantAtLimit", "KubeLBLoadBalancersPending", "KubeLBServicesPending", "KubeLBBGPSessionDown", "KubeLBBFDSessionDown"}
	eventually(t, 60*time.Second, func() (string, error) {
		fired := p.fired(t, begin)
		quiet := slices.DeleteFunc(slices.Clone(wanted), func(name string) bool { return fired[name] })
		if len(quiet) > 0 {
			return "", fmt.Errorf("these alerts do not fire: %v; these do: %v", quiet, fired)
		}
		return "", nil
	})
	shown := append(panels(t, lab.Hub, "kubelb-dashboards"), panels(t, lab.Tenant, "kubelb-ccm-dashboards")...)
	for _, panel := range shown {
		numbers := 0
		for _, s := range p.since(t, p.began, panel.query) {
			numbers += s.numbers()
		}
		require.Positive(t, numbers, "%s: %s shows nothing: %s", panel.dashboard, panel.title, panel.query)
	}
	t.Logf("%d queries of dashboards were answered, %d alerts fired: %v", len(shown), len(p.fired(t, p.began)), p.fired(t, p.began))

	kubectl(t, lab.Tenant, wishes, "delete", "-f", "-", "--timeout=60s")
	chart(t, lab.Hub, "kubelb-manager", "--reset-then-reuse-values", "--set", "gateway.announce=layer2")
	kubectl(t, lab.Hub, narrow, "delete", "-f", "-")
}

// Each alert fires when it should and not before, which promtool judges by series that are written down.
func TestAlertsFireWhenTheyShould(t *testing.T) {
	if monitoring == "" {
		t.Skip("needs Prometheus' promtool: run it with make install-test")
	}
	out, err := exec.CommandContext(t.Context(), filepath.Join(monitoring, "usr/bin/promtool"), "test", "rules", "testdata/alerts.yaml").CombinedOutput()
	require.NoError(t, err, string(out))
}

func TestEachAlertIsJudged(t *testing.T) {
	judged, err := os.ReadFile("testdata/alerts.yaml")
	require.NoError(t, err)
	files, err := filepath.Glob("../../deploy/charts/*/files/alerts/*.yaml")
	require.NoError(t, err)
	require.Len(t, files, 3)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, alert := range regexp.MustCompile(`alert: (\w+)`).FindAllSubmatch(text, -1) {
			require.Contains(t, string(judged), fmt.Sprintf(`ALERTS{alertname=%q, alertstate="firing"}', exp_samples: []`, alert[1]), file)
		}
	}
}
