package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/api/crds"
)

// migrator creates a service account in the tenant cluster with exactly the rights of docs/migrate.md. It returns its kubeconfig.
func migrator(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository, "docs/migrate.md"))
	require.NoError(t, err)
	role := regexp.MustCompile("(?s)```yaml\n(apiVersion: rbac.*?)```").FindStringSubmatch(string(text))
	require.NotNil(t, role)
	apply(t, role[1]+`---
apiVersion: v1
kind: ServiceAccount
metadata: {name: migrator, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: kubelb-migrate}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: kubelb-migrate}
subjects: [{kind: ServiceAccount, name: migrator, namespace: default}]
`)
	cleanUp(t, "clusterrolebinding/kubelb-migrate", "clusterrole/kubelb-migrate", "serviceaccount/migrator")
	token := strings.TrimSpace(kubectl(t, "create", "token", "migrator"))
	admin, err := os.ReadFile(lab.Tenant.Kubeconfig)
	require.NoError(t, err)
	lines := regexp.MustCompile(`user: \{client-[^}]*\}`).ReplaceAllString(string(admin), "user: {token: "+token+"}")
	file := filepath.Join(t.TempDir(), "migrator.kubeconfig")
	require.NoError(t, os.WriteFile(file, []byte(lines), 0o600))
	return file
}

// migrate runs kubelb migrate in the tenant cluster and returns its output and exit status.
func migrate(t *testing.T, kubeconfig string, args ...string) (string, int) {
	t.Helper()
	argv := append([]string{filepath.Join(os.Getenv("KUBELB_BIN"), "kubelb"), "migrate"}, args...)
	out, err := lab.On(t.Context(), lab.Tenant.Namespace, append(argv, "--kubeconfig="+kubeconfig)...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out, exit.ExitCode()
	}
	require.NoError(t, err)
	return out, 0
}

// KubeLB's CCM has added its finalizer to an Ingress and a SyncSecret, and does not run any more.
const markedByKubeLB = `apiVersion: v1
kind: Namespace
metadata: {name: marked}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, namespace: marked, finalizers: [example.com/other, kubelb.k8c.io/cleanup]}
spec: {defaultBackend: {service: {name: web, port: {number: 80}}}}
---
apiVersion: kubelb.k8c.io/v1alpha1
kind: SyncSecret
metadata: {name: certificate, namespace: marked, finalizers: [kubelb.k8c.io/cleanup]}
data: {}
`

func TestFinalizersOfTheFormerCCMAreRemoved(t *testing.T) {
	independentOfDataplane(t)
	account := migrator(t)
	crd, err := crds.Files.ReadFile("kubelb.k8c.io_syncsecrets.yaml")
	require.NoError(t, err)
	apply(t, string(crd))
	cleanUp(t, "crd/syncsecrets.kubelb.k8c.io")
	tenantWait(t, "crd/syncsecrets.kubelb.k8c.io", "--for=condition=Established")
	apply(t, markedByKubeLB)
	restart := func(flags ...string) {
		lab.CCM.Stop()
		require.NoError(t, lab.StartCCM(cleanUpContext(t), flags...))
	}
	elected := []string{"--enable-leader-election=true", "--leader-election-namespace=kube-system"}
	t.Cleanup(func() { restart() })
	restart(elected...)

	t.Run("this CCM reports them", func(t *testing.T) {
		for _, object := range []string{"Ingress/web", "SyncSecret/certificate"} {
			kind, name, _ := strings.Cut(object, "/")
			eventually(t, 30*time.Second, func() error {
				out := kubectl(t, "-n", "marked", "get", "events", "--field-selector=reason=MarkedByKubeLB,involvedObject.kind="+kind+",involvedObject.name="+name)
				if !strings.Contains(out, "kubelb migrate from-kubelb") {
					return fmt.Errorf("%s: %s", object, out)
				}
				return nil
			})
		}
	})
	t.Run("from KubeLB's CCM", func(t *testing.T) {
		kubectl(t, "-n", "marked", "delete", "syncsecret", "certificate", "--wait=false")
		out, status := migrate(t, account, "from-kubelb", "--dry-run")
		require.Zero(t, status, out)
		require.Contains(t, out, "Ingress marked/web: finalizer kubelb.k8c.io/cleanup would be removed\n")
		require.Contains(t, out, "SyncSecret marked/certificate: finalizer kubelb.k8c.io/cleanup would be removed; the object is being deleted, and nothing holds it any more\n")
		require.Contains(t, out, "2 objects would be released\n")
		require.Contains(t, kubectl(t, "-n", "marked", "get", "ingress", "web", "-o", "jsonpath={.metadata.finalizers}"), "kubelb.k8c.io/cleanup")
		out, status = migrate(t, account, "from-kubelb")
		require.Zero(t, status, out)
		require.Contains(t, out, "2 objects released\n")
		require.Equal(t, `["example.com/other"]`, kubectl(t, "-n", "marked", "get", "ingress", "web", "-o", "jsonpath={.metadata.finalizers}"))
		require.Empty(t, kubectl(t, "-n", "marked", "get", "syncsecrets", "-o", "name"))
		out, status = migrate(t, account, "from-kubelb")
		require.Zero(t, status, out)
		require.Contains(t, out, "0 objects released\n")
		kubectl(t, "-n", "marked", "patch", "ingress", "web", "--type=merge", "-p", `{"metadata":{"finalizers":null}}`)
		kubectl(t, "delete", "namespace", "marked", "--timeout=60s")
	})
	t.Run("back to KubeLB's CCM", func(t *testing.T) {
		apply(t, web("handed", 1)+service("handed", "ports: [{port: 80, targetPort: 8080}]")+service("hangs", "ports: [{port: 80}]"))
		cleanUp(t, "service/handed", "deployment/handed", "service/hangs")
		tenantWait(t, "deployment/handed", "--for=condition=Available")
		addresses := externalIPs(t, "handed", 2)
		externalIPs(t, "hangs", 2)
		out, status := migrate(t, account, "to-kubelb")
		require.NotZero(t, status)
		require.Contains(t, out, "still runs: ")
		require.Contains(t, out, "holds Lease kube-system/19f32e7b.ccm.kubelb.k8c.io")
		uid := tenantGet(t, "service/hangs", "{.metadata.uid}")
		lab.CCM.Stop()
		kubectl(t, "delete", "service", "hangs", "--wait=false")
		out, status = migrate(t, account, "to-kubelb", "--dry-run")
		require.Zero(t, status, out)
		require.Contains(t, out, "Service default/handed: finalizer service.kubernetes.io/load-balancer-cleanup would be replaced by kubelb.k8c.io/cleanup\n")
		require.Contains(t, tenantGet(t, "service/handed", "{.metadata.finalizers}"), "service.kubernetes.io/load-balancer-cleanup")
		out, status = migrate(t, account, "to-kubelb")
		require.Zero(t, status, out)
		require.Contains(t, out, "If LoadBalancer "+uid+" is still on the management cluster, delete it there\n")
		require.Equal(t, `["kubelb.k8c.io/cleanup"]`, tenantGet(t, "service/handed", "{.metadata.finalizers}"))
		require.NotContains(t, tenantGet(t, "service/handed", "{.status.conditions}"), "kubelb.k8c.io/Ready")
		require.Equal(t, addresses, externalIPs(t, "handed", 2))
		require.Empty(t, kubectl(t, "get", "service", "hangs", "--ignore-not-found", "-o", "name"))
		reachesPods(t, addresses[0], 80, 1)
		hubKubectl(t, "-n", "tenant-a", "delete", "loadbalancer", uid, "--wait=false")
		out, status = migrate(t, account, "to-kubelb")
		require.Zero(t, status, out)
		require.NotContains(t, out, "default/handed")

		require.NoError(t, lab.StartCCM(cleanUpContext(t), elected...))
		waitForCondition(t, "handed", "Ready")
		require.Equal(t, `["service.kubernetes.io/load-balancer-cleanup"]`, tenantGet(t, "service/handed", "{.metadata.finalizers}"))
		require.Equal(t, addresses, externalIPs(t, "handed", 2), "the Service keeps its addresses")
	})
}
