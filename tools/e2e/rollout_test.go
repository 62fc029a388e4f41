package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// rounds returns KUBELB_ROUNDS, the number of times that pods are replaced and a node is drained. The default is one.
func rounds(t *testing.T) int {
	text := os.Getenv("KUBELB_ROUNDS")
	if text == "" {
		return 1
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err)
	return n
}

// webWithGracefulShutdown returns pods that still answer for some seconds after they are told to end, until kube-proxies and gateways know it. Otherwise requests
// would be lost. The time is not a multiple of five seconds, after which kubectl drain evicts the next pod. Otherwise the last pod of a node would be told to end
// just when another terminating one stops, to which kube-proxy still sends connections (KEP-1669).
func webWithGracefulShutdown(name string) string {
	return strings.NewReplacer(
		"terminationGracePeriodSeconds: 0", "terminationGracePeriodSeconds: 15",
		"whenUnsatisfiable: DoNotSchedule", "whenUnsatisfiable: ScheduleAnyway",
		"--udp-port=8053]", "--udp-port=8053, --delay-shutdown=7], readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}",
		"spec:\n  replicas: 2", "spec:\n  replicas: 2\n  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}",
	).Replace(web(name, 2)) + fmt.Sprintf(`
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: %[1]s}
spec: {minAvailable: 1, selector: {matchLabels: {app: %[1]s}}}
`, name)
}

func TestARolloutAndADrainedNodeLoseNoRequest(t *testing.T) {
	for _, policy := range []string{"Cluster", "Local"} {
		t.Run(policy, func(t *testing.T) {
			name := "rollout-" + strings.ToLower(policy)
			apply(t, webWithGracefulShutdown(name)+service(name, "externalTrafficPolicy: "+policy, "ports: [{port: 80, targetPort: 8080}]"))
			cleanUp(t, "service/"+name, "deployment/"+name, "poddisruptionbudget/"+name)
			t.Cleanup(func() {
				_, err := lab.Tenant.Kubectl(cleanUpContext(t), "", "uncordon", "node2")
				require.NoError(t, err)
			})
			tenantWait(t, "deployment/"+name, "--for=condition=Available")
			ips := externalIPs(t, name, 2)
			for _, ip := range ips {
				reachesPods(t, ip, 80, 2)
			}
			four, six := startTraffic(t, ips[0]), startTraffic(t, ips[1])
			for range rounds(t) {
				kubectl(t, "rollout", "restart", "deployment/"+name)
				kubectl(t, "rollout", "status", "deployment/"+name, "--timeout=120s")
				waitForPods(t, name, 2)
				kubectl(t, "drain", "node2", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s")
				kubectl(t, "uncordon", "node2")
				kubectl(t, "rollout", "status", "deployment/"+name, "--timeout=120s")
				waitForPods(t, name, 2)
			}
			time.Sleep(time.Second)
			for _, tr := range []*traffic{four, six} {
				failed := tr.stop()
				t.Logf("%s: %d requests on long connections, of which %d ended; %d new connections", tr.url, tr.keptRequests.Load(), tr.endedConnections.Load(), tr.newConnections.Load())
				require.Empty(t, failed)
			}
		})
	}
}

// waitForPods waits until the former pods have ended. A rollout is complete before that.
func waitForPods(t *testing.T, name string, replicas int) {
	t.Helper()
	eventually(t, 60*time.Second, func() error {
		list, err := lab.Tenant.List(t.Context(), "default", "pods", "{.items[*].metadata.name}", metav1.ListOptions{LabelSelector: "app=" + name})
		require.NoError(t, err)
		if pods := strings.Fields(list); len(pods) != replicas {
			return fmt.Errorf("there are %d pods: %v", len(pods), pods)
		}
		return nil
	})
}
