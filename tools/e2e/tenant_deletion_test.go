package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/tools/cluster"
)

// Other names are derived from these. The API server refuses a name if a derived name would be invalid.
func TestNamesAndAddressesThatCannotWorkAreRefused(t *testing.T) {
	independentOfDataplane(t)
	object := func(kind, name, spec string) string {
		return fmt.Sprintf("apiVersion: kubelb.k8c.io/v1alpha1\nkind: %s\nmetadata: {name: %s}\nspec: %s\n", kind, name, spec)
	}
	for manifest, message := range map[string]string{
		object("Tenant", "a.b", "{}"):                                                            "metadata.name may have no dot, so that the namespace tenant-<name> is valid",
		object("Tenant", strings.Repeat("a", 57), "{}"):                                          "metadata.name may have at most 56 characters",
		object("Gateway", strings.Repeat("a", 64), "{}"):                                         "metadata.name may have at most 63 characters, since it is a label of the gateway's Lease",
		object("BGPPeer", "link-local", `{address: "fe80::1", localASN: 64512, peerASN: 64500}`): "spec.address: must be an address that a router can have",
	} {
		_, err := lab.Hub.Kubectl(t.Context(), manifest, "apply", "-f", "-")
		require.ErrorContains(t, err, message)
	}
}

// The operator deletes a Tenant while its CCM is stopped. The CCM then starts, reports the deletion, and --release removes its finalizers.
func TestTheClusterOfADeletedTenantIsInformedAndReleased(t *testing.T) {
	independentOfDataplane(t)
	apply(t, service("stays", "ports: [{port: 80}]")+service("leaves", "ports: [{port: 80}]"))
	cleanUp(t, "service/stays", "service/leaves")
	address := externalIPs(t, "stays", 2)[0]
	externalIPs(t, "leaves", 2)
	file := filepath.Join(lab.Dir, "deleted.kubeconfig")
	require.NoError(t, lab.TenantKubeconfig(t.Context(), cluster.TenantName, file))
	lab.CCM.Kill()
	t.Cleanup(func() {
		_, err := lab.Hub.Kubectl(cleanUpContext(t), cluster.TenantManifest, "apply", "-f", "-")
		require.NoError(t, err)
		require.NoError(t, lab.StartCCM(cleanUpContext(t)))
	})
	hubKubectl(t, "delete", "tenant", cluster.TenantName, "--timeout=60s")
	reserved := hubGet(t, "default", "addresspool/public", "{.status.reserved[*].address}")
	require.Contains(t, reserved, address, "the Services in the tenant cluster may still show the address")

	program := filepath.Join(os.Getenv("KUBELB_BIN"), "kubelb-ccm")
	ccm, err := cluster.Start(lab.Tenant.Namespace, lab.Dir, "kubelb-ccm-deleted", program, "--cluster-name="+cluster.TenantName, "--kubelb-kubeconfig="+file,
		"--kubeconfig="+lab.Tenant.Kubeconfig, "--enable-leader-election=false", "--metrics-addr=0", "--health-probe-bind-address=0")
	require.NoError(t, err)
	t.Cleanup(ccm.Kill)
	kubectl(t, "delete", "service", "leaves", "--wait=false")
	eventually(t, 90*time.Second, func() error {
		if got := readyCondition(t, "leaves"); !containsAll(got, "HubRefused", "kubelb-ccm --release") || !strings.Contains(events(t, "leaves"), "SyncLoadBalancerFailed") {
			return fmt.Errorf("condition %q, events %q", got, events(t, "leaves"))
		}
		return nil
	})
	waitForCondition(t, "stays", "Unknown HubSilent")
	t.Log(readyCondition(t, "leaves"), readyCondition(t, "stays"))
	ccm.Kill()
	out, err := lab.Tenant.Run(t.Context(), program, "--release", "--kubeconfig="+lab.Tenant.Kubeconfig)
	require.NoError(t, err)
	require.True(t, containsAll(out, "/leaves is released.", "/stays is released."), out)
	require.Empty(t, kubectl(t, "get", "service", "leaves", "--ignore-not-found", "-o", "name"))
	require.Empty(t, tenantGet(t, "service/stays", "{.status.loadBalancer.ingress}{.metadata.finalizers}"))
}
