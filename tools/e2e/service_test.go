package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// web is a Deployment of agnhost with two replicas, one on each node.
func web(name string, replicas int) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: %[1]s}}}]
      containers:
      - {name: web, image: "localhost/agnhost:1", imagePullPolicy: Never, args: [netexec, --http-port=8080, --udp-port=8053]}
`, name, replicas)
}

func TestBasicServiceGetsAnAddressAndRealTraffic(t *testing.T) {
	apply(t, web("basic", 2)+service("basic", "ipFamilyPolicy: RequireDualStack", "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "service/basic", "deployment/basic")
	tenantWait(t, "deployment/basic", "--for=condition=Available")
	ips := externalIPs(t, "basic", 2)
	for _, ip := range ips {
		reachesPods(t, ip, 80, 2)
	}
	uid := tenantGet(t, "service/basic", "{.metadata.uid}")
	lb := func(path string) string { return hubGet(t, "tenant-a", "loadbalancer/"+uid, path) }
	require.Equal(t, "default", lb("{.metadata.labels.kubelb\\.k8c\\.io/origin-ns}"))
	require.Equal(t, "basic", lb("{.metadata.labels.kubelb\\.k8c\\.io/origin-name}"))
	require.Contains(t, lb("{.metadata.finalizers}"), "kubelb.k8c.io/cleanup")
	require.Equal(t, "default", lb("{.spec.endpoints[0].addressesReference.name}"))
	require.Equal(t, strings.Join(ips, " "), lb("{.status.loadBalancer.ingress[*].ip}"))
	require.Equal(t, "True", lb(`{.status.conditions[?(@.type=="Ready")].status}`))
	require.Contains(t, events(t, "basic"), "EnsuredLoadBalancer")
}

func TestDeletedServiceLeavesBothSidesClean(t *testing.T) {
	apply(t, service("gone", "ports: [{port: 80}]"))
	ip := externalIPs(t, "gone", 1)[0]
	uid := tenantGet(t, "service/gone", "{.metadata.uid}")
	require.Contains(t, ruleset(t), ip)
	kubectl(t, "delete", "service", "gone", "--timeout=30s")
	eventually(t, 10*time.Second, func() error {
		if out, err := lab.Hub.Kubectl(t.Context(), "", "-n", "tenant-a", "get", "loadbalancer", uid); err == nil {
			return fmt.Errorf("still on the hub: %s", out)
		}
		if strings.Contains(ruleset(t), ip) {
			return fmt.Errorf("still in the dataplane")
		}
		return nil
	})
}
