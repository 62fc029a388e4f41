package install

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"kubelb.k8c.io/tools/cluster"
)

// attempt is a kubectl command of a service account, and a part of the expected error.
type attempt struct {
	what, stdin string
	args        []string
	answer      string
}

// user runs kubectl with the credentials of a service account.
type user func(stdin string, args ...string) (string, error)

// requireRefused requires that the API server refuses each attempt.
func requireRefused(t *testing.T, as user, attempts []attempt) {
	t.Helper()
	for _, a := range attempts {
		t.Run(a.what, func(t *testing.T) {
			out, err := as(a.stdin, a.args...)
			require.Error(t, err, out)
			t.Log(err)
			require.ErrorContains(t, err, a.answer)
		})
	}
}

// newHub starts a hub and installs the chart there in a namespace, as an operator does. There are no kubelets, so no pod runs.
func newHub(t *testing.T, namespace string, args ...string) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	lab, err = cluster.New(ctx, cluster.Options{Kubernetes: kubernetes, Products: products, Images: images, HubOnly: true, Progress: os.Stderr})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, lab.Close()) })
	kubectl(t, lab.Hub, node("one")+node("two"), "create", "-f", "-")
	argv := []string{helm, "--kubeconfig", lab.Hub.Kubeconfig, "-n", namespace, "install", "kubelb-manager", filepath.Join(charts, "kubelb-manager"), "--create-namespace",
		"--set", "gateway.interfaces={clients}", "--set", "controller.apiServer.url=" + lab.Hub.URL()}
	_, err = lab.Hub.Run(t.Context(), append(argv, args...)...)
	require.NoError(t, err)
	kubectl(t, lab.Hub, "", "wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
}

// node returns a Node without a kubelet.
func node(name string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Node
metadata: {name: %s, labels: {kubernetes.io/os: linux}}
status: {allocatable: {cpu: "4", memory: 8Gi, pods: "50"}, capacity: {cpu: "4", memory: 8Gi, pods: "50"}}
`, name)
}

// login makes a token and a kubeconfig for a service account.
func login(t *testing.T, namespace, account string, args ...string) (as user, kubeconfig string) {
	t.Helper()
	token := kubectl(t, lab.Hub, "", append([]string{"-n", namespace, "create", "token", account}, args...)...)
	config, err := clientcmd.LoadFromFile(lab.Hub.Kubeconfig)
	require.NoError(t, err)
	for name := range config.AuthInfos {
		config.AuthInfos[name] = &api.AuthInfo{Token: strings.TrimSpace(token)}
	}
	kubeconfig = filepath.Join(t.TempDir(), account)
	require.NoError(t, clientcmd.WriteToFile(*config, kubeconfig))
	return func(stdin string, args ...string) (string, error) {
		return lab.Hub.KubectlAs(t.Context(), kubeconfig, stdin, args...)
	}, kubeconfig
}

// loginAsGateway makes a token like that of the DaemonSet's pod on a node.
func loginAsGateway(t *testing.T, namespace, node string) (as user, kubeconfig string) {
	t.Helper()
	pod := eventually(t, 30*time.Second, func() (string, error) {
		out, err := lab.Hub.Kubectl(t.Context(), "", "-n", namespace, "get", "pods", "--field-selector=spec.nodeName="+node, "-l", "app.kubernetes.io/name=kubelb-gateway",
			"-o", "jsonpath={.items[0].metadata.name} {.items[0].metadata.uid}")
		if err == nil && len(strings.Fields(out)) != 2 {
			err = fmt.Errorf("node %s has the pods %q", node, out)
		}
		return out, err
	})
	name, uid, _ := strings.Cut(pod, " ")
	return login(t, namespace, "kubelb-gateway", "--bound-object-kind=Pod", "--bound-object-name="+name, "--bound-object-uid="+uid)
}

// tokenSecretOf returns a Secret that the API server fills with a service account's token.
func tokenSecretOf(namespace, account string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Secret\ntype: kubernetes.io/service-account-token\nmetadata: {name: stolen, namespace: %s, annotations: {kubernetes.io/service-account.name: %s}}", namespace, account)
}

// binding returns a RoleBinding in a namespace for a service account of another one.
func binding(namespace, name, role, account, accountNamespace string) string {
	kind, role, _ := strings.Cut(role, "/")
	return fmt.Sprintf(`apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: %s, namespace: %s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: %s, name: %s}
subjects: [{kind: ServiceAccount, name: %s, namespace: %s}]
`, name, namespace, kind, role, account, accountNamespace)
}

func namespaceNamed(name, labels string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {%s}}\n", name, labels)
}

const managedLabel = "kubelb.k8c.io/managed-by: kubelb"

// T17: an attacker in the manager's pod has only the manager's rights: in its own namespace and in those of tenants.
func TestTheManagersRightsAreLimitedToItsAndTenantsNamespaces(t *testing.T) {
	newHub(t, "kubelb")
	// Objects of other users of the hub.
	kubectl(t, lab.Hub, "", "-n", "kube-system", "create", "serviceaccount", "operator")
	kubectl(t, lab.Hub, "", "create", "clusterrolebinding", "operator", "--clusterrole=cluster-admin", "--serviceaccount=kube-system:operator")
	kubectl(t, lab.Hub, namespaceNamed("shop", "")+"---\n"+namespaceNamed("tenant-of-another-product", "team: shop"), "create", "-f", "-")
	kubectl(t, lab.Hub, namespaceNamed("tenant-a", managedLabel), "create", "-f", "-")
	for _, ns := range []string{"shop", "tenant-of-another-product", "kubelb"} {
		kubectl(t, lab.Hub, "", "-n", ns, "create", "secret", "generic", "password", "--from-literal=password=x")
	}
	kubectl(t, lab.Hub, tenantWithNetwork("198.51.100.0/24"), "create", "-f", "-")
	as, _ := login(t, "kubelb", "kubelb-manager")
	_, err := as("", "patch", "tenant", "a", "--type=merge", "-p", `{"metadata":{"finalizers":["kubelb.k8c.io/cleanup"]}}`)
	require.NoError(t, err, "the manager may write its finalizer")
	rights, err := as("", "auth", "can-i", "--list", "-n", "kube-system")
	require.NoError(t, err)
	t.Log("its rights in kube-system:\n" + rights)
	create, replace := []string{"create", "--dry-run=server", "-f", "-"}, []string{"replace", "--dry-run=server", "-f", "-"}
	const byRBAC, byPolicy = "cannot", "ValidatingAdmissionPolicy 'manager.kubelb.k8c.io'"
	requireRefused(t, as, []attempt{
		{"make itself an operator by a token Secret", tokenSecretOf("kube-system", "operator"), create, byRBAC},
		{"request an operator's token", "", []string{"-n", "kube-system", "create", "token", "operator"}, byRBAC},
		{"read all Secrets", "", []string{"get", "secrets", "-A"}, byRBAC},
		{"read a Secret of another namespace", "", []string{"-n", "shop", "get", "secret", "password"}, byRBAC},
		{"read another program's Secret in its own namespace", "", []string{"-n", "kubelb", "get", "secret", "password"}, byRBAC},
		{"read a Secret in a namespace that only looks like a tenant's", "", []string{"-n", "tenant-of-another-product", "get", "secret", "password"}, byRBAC},
		{"get a gateway's token by a Secret", tokenSecretOf("kubelb", "kubelb-gateway"), create, byPolicy},
		{"delete another namespace", "", []string{"delete", "namespace", "shop", "--dry-run=server"}, byPolicy},
		{"delete a namespace that only looks like a tenant's", "", []string{"delete", "namespace", "tenant-of-another-product", "--dry-run=server"}, byPolicy},
		{"create a namespace with another name", namespaceNamed("more", managedLabel), create, byPolicy},
		{"create a namespace without its label", namespaceNamed("tenant-more", ""), create, byPolicy},
		{"add its label to another namespace", namespaceNamed("shop", managedLabel), replace, byPolicy},
		{"add its label to a namespace that only looks like a tenant's", namespaceNamed("tenant-of-another-product", managedLabel), replace, byPolicy},
		{"remove its label from a tenant's namespace", namespaceNamed("tenant-a", ""), replace, byPolicy},
		{"bind its rights in kube-system", binding("kube-system", "kubelb-manager", "ClusterRole/kubelb-tenant-namespace", "kubelb-manager", "kubelb"), create, byPolicy},
		{"bind its rights in a namespace that only looks like a tenant's", binding("tenant-of-another-product", "kubelb-manager", "ClusterRole/kubelb-tenant-namespace", "kubelb-manager", "kubelb"), create, byPolicy},
		{"bind its rights in its own namespace", binding("kubelb", "more", "ClusterRole/kubelb-tenant-namespace", "kubelb-manager", "kubelb"), create, byPolicy},
		{"give its rights in a tenant's namespace to another account", binding("tenant-a", "kubelb-manager", "ClusterRole/kubelb-tenant-namespace", "operator", "kube-system"), create, byPolicy},
		{"bind an operator's role in a tenant's namespace", binding("tenant-a", "kubelb-manager", "ClusterRole/cluster-admin", "kubelb-manager", "kubelb"), create, "is attempting to grant RBAC permissions not currently held"},
		{"write a Role in kube-system", "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: more, namespace: kube-system}", create, byRBAC},
		{"write a service account in kube-system", "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: more, namespace: kube-system}", create, byRBAC},
		{"write its own ClusterRole", "", []string{"label", "clusterrole", "kubelb-manager", "a=b", "--dry-run=server"}, byRBAC},
		{"delete the policy that restricts it", "", []string{"delete", "validatingadmissionpolicybinding", "manager.kubelb.k8c.io", "--dry-run=server"}, byRBAC},
		{"impersonate another user", "", []string{"--as=admin", "--as-group=system:masters", "get", "nodes"}, byRBAC},
		{"patch a tenant's networks", tenantWithNetwork("0.0.0.0/0"), []string{"patch", "--dry-run=server", "--type=merge", "--patch-file=/dev/stdin", "tenant", "a"}, "ValidatingAdmissionPolicy 'specs.kubelb.k8c.io'"},
		{"replace a tenant's spec", tenantWithNetwork("0.0.0.0/0"), replace, byRBAC},
		{"write a gateway's Lease", lease("kubelb", "one"), create, byPolicy},
		{"prevent that gateways start, by a quota", resourceQuota("kubelb", "stop", "pods: 0"), create, byPolicy},
		{"prevent that gateways start, by its trial quota", resourceQuota("kubelb", "kubelb-trial", "count/pods: 0"), create, byPolicy},
		{"have a Tenant deleted by the garbage collector", ownedTenant, []string{"patch", "--dry-run=server", "--type=merge", "--patch-file=/dev/stdin", "tenant", "a"}, "ValidatingAdmissionPolicy 'specs.kubelb.k8c.io'"},
		{"prevent the deletion of a Tenant", "", []string{"patch", "--dry-run=server", "--type=merge", "-p", `{"metadata":{"finalizers":["kubelb.k8c.io/cleanup","example.com/for-ever"]}}`, "tenant", "a"}, "ValidatingAdmissionPolicy 'specs.kubelb.k8c.io'"},
		{"read the Leases of all namespaces", "", []string{"get", "leases", "-A"}, byRBAC},
		{"write another program's Lease", "", []string{"-n", "kube-system", "patch", "lease", "kubelb-ccm", "--type=merge", "-p", "{}"}, byRBAC},
		{"give its Role to another account in its own namespace", binding("kubelb", "kubelb-manager", "Role/kubelb-manager", "kubelb-gateway", "kubelb"), replace, byPolicy},
	})
}

func tenantWithNetwork(network string) string {
	return "apiVersion: kubelb.k8c.io/v1alpha1\nkind: Tenant\nmetadata: {name: a}\nspec: {backendCIDRs: [" + network + "]}\n"
}

// ownedTenant has an owner that does not exist, so that the garbage collector would delete the Tenant.
const ownedTenant = "metadata: {ownerReferences: [{apiVersion: v1, kind: Namespace, name: kubelb, uid: 00000000-0000-0000-0000-000000000000}]}\n"

func resourceQuota(namespace, name, hard string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: %s, namespace: %s}\nspec: {hard: {%s}}\n", name, namespace, hard)
}

// accountNamed returns a ServiceAccount.
func accountNamed(namespace, name string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: %s, namespace: %s}\n", name, namespace)
}

// T17: in a tenant's namespace the manager has the rights of the tenant's CCM, and can make its credentials.
func TestTheManagersRightsInATenantsNamespace(t *testing.T) {
	newHub(t, "kubelb")
	kubectl(t, lab.Hub, namespaceNamed("tenant-a", managedLabel), "create", "-f", "-")
	as, _ := login(t, "kubelb", "kubelb-manager")
	own := binding("tenant-a", "kubelb-manager", "ClusterRole/kubelb-tenant-namespace", "kubelb-manager", "kubelb")
	_, err := as(own, "create", "-f", "-")
	require.NoError(t, err)
	create, replace := []string{"create", "--dry-run=server", "-f", "-"}, []string{"replace", "--dry-run=server", "-f", "-"}
	eventually(t, 10*time.Second, func() (string, error) { return as(accountNamed("tenant-a", "kubelb-ccm"), "create", "-f", "-") })
	rights, err := as("", "auth", "can-i", "--list", "-n", "tenant-a")
	require.NoError(t, err)
	t.Log("its rights in a tenant's namespace:\n" + rights)
	_, err = as("apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: kubelb-ccm, namespace: tenant-a}", "create", "-f", "-")
	require.NoError(t, err)
	role := func(name, rule string) string {
		return fmt.Sprintf("apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: %s, namespace: tenant-a}\nrules: [%s]\n", name, rule)
	}
	const byRBAC, byPolicy = "cannot", "ValidatingAdmissionPolicy 'manager.kubelb.k8c.io'"
	requireRefused(t, as, []attempt{
		{"create another account", accountNamed("tenant-a", "more"), create, byPolicy},
		{"get another account's token by a Secret", tokenSecretOf("tenant-a", "default"), create, byPolicy},
		{"get another account's token by the CCM's Secret", strings.Replace(tokenSecretOf("tenant-a", "default"), "name: stolen", "name: kubelb-ccm", 1), create, byPolicy},
		{"request another account's token", "", []string{"-n", "tenant-a", "create", "token", "default"}, byRBAC},
		{"read another Secret", "", []string{"-n", "tenant-a", "get", "secret", "password"}, byRBAC},
		{"read all Secrets", "", []string{"-n", "tenant-a", "get", "secrets"}, byRBAC},
		{"give the tenant more rights than it has itself", role("kubelb-ccm", "{apiGroups: [\"\"], resources: [pods], verbs: [create]}"), replace, "not currently held"},
		{"write another Role", role("more", ""), create, byPolicy},
		{"bind the tenant's Role to another account", binding("tenant-a", "kubelb-ccm", "Role/kubelb-ccm", "operator", "kube-system"), create, byPolicy},
		{"give its rights to another account", strings.Replace(own, "name: kubelb-manager, namespace: kubelb}", "name: kubelb-gateway, namespace: kubelb}", 1), replace, byPolicy},
		{"create another Lease", lease("tenant-a", "more"), create, byPolicy},
		{"create another quota", resourceQuota("tenant-a", "stop", "count/loadbalancers.kubelb.k8c.io: 0"), create, byPolicy},
		{"limit other objects of a tenant", resourceQuota("tenant-a", "kubelb", "count/serviceaccounts: 0"), create, byPolicy},
		{"write another Lease", "", []string{"-n", "tenant-a", "patch", "lease", "more", "--type=merge", "-p", "{}"}, byRBAC},
		{"read all Leases of the namespace", "", []string{"-n", "tenant-a", "get", "leases"}, byRBAC},
		{"run a pod", "", []string{"-n", "tenant-a", "run", "x", "--image=x", "--dry-run=server"}, byRBAC},
	})
}

func lease(namespace, name string) string {
	return fmt.Sprintf("apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {name: %s, namespace: %s, labels: {kubelb.k8c.io/gateway: %s}}\nspec: {holderIdentity: nobody}\n", name, namespace, name)
}

func gateway(name, spec string) string {
	return fmt.Sprintf("apiVersion: kubelb.k8c.io/v1alpha1\nkind: Gateway\nmetadata: {name: %s}\nspec: {%s}\n", name, spec)
}

// T18: an attacker in a gateway's pod has the rights of that gateway, and of no other one.
func TestAGatewayMayWriteOnlyItsOwnObjects(t *testing.T) {
	newHub(t, "kubelb", "--set", "gateway.labels.site=north")
	kubectl(t, lab.Hub, gateway("one", "draining: true")+"---\n"+gateway("two", "")+"---\n"+lease("kubelb", "one")+"---\n"+lease("kubelb", "two")+"---\n"+lease("kubelb", "controller.kubelb.k8c.io"), "create", "-f", "-")
	kubectl(t, lab.Hub, "", "-n", "kubelb", "create", "secret", "generic", "password", "--from-literal=password=x")
	kubectl(t, lab.Hub, "", "-n", "kubelb", "create", "secret", "generic", "kubelb-gateways", "--from-literal=heartbeat=x")
	as, _ := loginAsGateway(t, "kubelb", "one")
	rights, err := as("", "auth", "can-i", "--list", "-n", "kubelb")
	require.NoError(t, err)
	t.Log("its rights in the manager's namespace:\n" + rights)
	const byRBAC, byPolicy = "cannot", "ValidatingAdmissionPolicy 'gateways.kubelb.k8c.io'"
	status := []string{"replace", "--dry-run=server", "--subresource=status", "-f", "-"}
	statusOf := func(name string) string {
		return kubectl(t, lab.Hub, "", "get", "gateways.kubelb.k8c.io", name, "-o", "yaml")
	}
	replace, create := []string{"replace", "--dry-run=server", "-f", "-"}, []string{"create", "--dry-run=server", "-f", "-"}
	requireRefused(t, as, []attempt{
		{"write another gateway's status", statusOf("two"), status, byPolicy},
		{"write another gateway's labels", strings.Replace(gateway("two", ""), "name: two", "name: two, labels: {site: mine}", 1), replace, byPolicy},
		{"create a Gateway with another name", gateway("three", ""), create, byPolicy},
		{"add a label by which another pool selects gateways", strings.Replace(gateway("one", "draining: true"), "name: one", "name: one, labels: {site: mine}", 1), replace, byPolicy},
		{"end its own drain", gateway("one", "draining: false"), replace, byPolicy},
		{"write another gateway's Lease", lease("kubelb", "two"), replace, byPolicy},
		{"create another gateway's Lease", lease("kubelb", "three"), create, byPolicy},
		{"write the Lease of the controllers' election", lease("kubelb", "controller.kubelb.k8c.io"), replace, byPolicy},
		{"name another gateway in its own Lease", strings.Replace(lease("kubelb", "one"), "gateway: one", "gateway: two", 1), replace, byPolicy},
		{"read a Secret that is not for gateways", "", []string{"-n", "kubelb", "get", "secret", "password"}, byRBAC},
		{"read all Secrets of the namespace", "", []string{"-n", "kubelb", "get", "secrets"}, byRBAC},
		{"write a LoadBalancer's status", "", []string{"-n", "tenant-a", "patch", "loadbalancer", "x", "--subresource=status", "--type=merge", "-p", "{}"}, byRBAC},
	})
	allowed := []attempt{
		{"write its own status", statusOf("one"), status, ""},
		{"write the labels of the chart", strings.Replace(gateway("one", "draining: true"), "name: one", "name: one, labels: {site: north}", 1), replace, ""},
		{"write its own Lease", lease("kubelb", "one"), replace, ""},
		{"read the heartbeats' key", "", []string{"-n", "kubelb", "get", "secret", "kubelb-gateways"}, ""},
	}
	for _, a := range allowed {
		out, err := as(a.stdin, a.args...)
		require.NoError(t, err, "%s: %s", a.what, out)
	}
	// A token without a node, such as of a Secret, has only read access.
	withoutNode, _ := login(t, "kubelb", "kubelb-gateway")
	requireRefused(t, withoutNode, []attempt{
		{"write a status by a token without a node", statusOf("one"), status, "names no node"},
		{"write a Lease by a token without a node", lease("kubelb", "one"), replace, "names no node"},
	})
	_, err = withoutNode("", "get", "gateways.kubelb.k8c.io")
	require.NoError(t, err)
}

const tenantOfHub = `apiVersion: kubelb.k8c.io/v1alpha1
kind: Tenant
metadata: {name: %s}
spec: {backendCIDRs: [198.51.100.0/24]}
---
`

// formerTenant are the objects of a tenant from a release whose tokens do not expire.
const formerTenant = `apiVersion: v1
kind: Namespace
metadata: {name: tenant-former, labels: {kubelb.k8c.io/managed-by: kubelb}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: kubelb-ccm, namespace: tenant-former}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: kubelb-ccm, namespace: tenant-former}
rules: [{apiGroups: [kubelb.k8c.io], resources: [loadbalancers], verbs: [list]}]
---
apiVersion: v1
kind: Secret
type: kubernetes.io/service-account-token
metadata: {name: kubelb-ccm, namespace: tenant-former, annotations: {kubernetes.io/service-account.name: kubelb-ccm}}
---
`

// T17 and T18 also require that the rights suffice: the manager and a gateway do all their work with these accounts, in a namespace with any name.
func TestTheChartsRightsSuffice(t *testing.T) {
	const ns = "elsewhere"
	newHub(t, ns)
	kubectl(t, lab.Hub, formerTenant+binding("tenant-former", "kubelb-ccm", "Role/kubelb-ccm", "kubelb-ccm", "tenant-former"), "create", "-f", "-")
	kubectl(t, lab.Hub, cluster.PoolManifest+"---\n"+fmt.Sprintf(tenantOfHub, "a")+fmt.Sprintf(tenantOfHub, "former"), "apply", "-f", "-")
	as, kubeconfig := login(t, ns, "kubelb-manager")
	start := func(flags ...string) {
		require.NoError(t, lab.StartController(append(flags, "--kubeconfig="+kubeconfig, "--service-account=kubelb-manager", "--namespace="+ns, "--enable-leader-election")...))
	}
	start()
	_, kubeconfig2 := loginAsGateway(t, ns, "one")
	gateway, err := lab.StartGateway(lab.Gateway, "one", "--kubeconfig="+kubeconfig2, "--namespace="+ns, "--drain-with-node=one", "--purge-with-daemonset=kubelb-gateway")
	require.NoError(t, err)
	t.Cleanup(gateway.Stop)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(lab.Manager.Tail() + "\n" + gateway.Tail())
		}
	})
	kubectl(t, lab.Hub, "", "wait", "tenant/a", "tenant/former", "--for=condition=Ready", "--timeout=30s")
	require.NotContains(t, logOf(t, lab.Manager), "no ValidatingAdmissionPolicy restricts")

	file := filepath.Join(lab.Dir, "a.kubeconfig")
	require.NoError(t, lab.TenantKubeconfig(t.Context(), "a", file))
	_, err = lab.Hub.KubectlAs(t.Context(), file, loadBalancerOfHub, "create", "-f", "-")
	require.NoError(t, err)
	kubectl(t, lab.Hub, "", "-n", "tenant-a", "wait", "loadbalancer/web", "--for=condition=Ready", "--timeout=30s")
	// The manager counts only a renewal that happens while it runs.
	eventually(t, 40*time.Second, func() (string, error) {
		_, err := lab.Hub.KubectlAs(t.Context(), file, "", "-n", "tenant-a", "patch", "lease", "kubelb-ccm", "--type=merge", "-p", fmt.Sprintf(`{"spec":{"renewTime":%q}}`, time.Now().UTC().Format(metav1.RFC3339Micro)))
		require.NoError(t, err)
		return lab.Hub.Kubectl(t.Context(), "", "wait", "tenant/a", "--for=condition=Connected", "--timeout=2s")
	})
	kubectl(t, lab.Hub, "", "wait", "gateways.kubelb.k8c.io/one", "--for=condition=Ready", "--timeout=10s")
	require.Equal(t, "one", kubectl(t, lab.Hub, "", "-n", ns, "get", "lease", "one", "-o", "jsonpath={.metadata.labels.kubelb\\.k8c\\.io/gateway}"))
	require.NotEmpty(t, kubectl(t, lab.Hub, "", "-n", ns, "get", "lease", "controller.kubelb.k8c.io", "-o", "jsonpath={.spec.holderIdentity}"))

	// A tenant of an earlier release can still use its lasting token, and also has a kubeconfig with a token that expires.
	require.Contains(t, kubectl(t, lab.Hub, "", "get", "tenant", "former", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].reason}`), "LastingToken")
	require.NotEmpty(t, kubectl(t, lab.Hub, "", "-n", "tenant-former", "get", "secret", "kubelb-ccm", "-o", "jsonpath={.data.token}"))
	require.NotEmpty(t, kubectl(t, lab.Hub, "", "-n", "tenant-former", "get", "secret", "kubelb-ccm-kubeconfig", "-o", `jsonpath={.metadata.annotations.kubelb\.k8c\.io/token-expires}`))

	kubectl(t, lab.Hub, "", "patch", "tenant", "former", "--type=merge", "-p", `{"spec":{"revoked":true}}`)
	kubectl(t, lab.Hub, "", "wait", "tenant/former", "--for=jsonpath={.status.phase}=Revoked", "--timeout=10s")
	kubectl(t, lab.Hub, "", "delete", "tenant", "a", "former", "--timeout=60s")
	require.Empty(t, kubectl(t, lab.Hub, "", "get", "namespaces", "-l", "kubelb.k8c.io/managed-by=kubelb", "-o", "name"))

	gateway.Kill()
	kubectl(t, lab.Hub, "", "wait", "gateways.kubelb.k8c.io/one", "--for=condition=Ready=Unknown", "--timeout=40s")

	// Tokens that do not expire, for tenants with KubeLB's CCM.
	lab.Manager.Stop()
	start("--tenant-token-lifetime=0")
	kubectl(t, lab.Hub, fmt.Sprintf(tenantOfHub, "lasting"), "apply", "-f", "-")
	kubectl(t, lab.Hub, "", "wait", "tenant/lasting", "--for=condition=Ready", "--timeout=60s")
	require.NoError(t, lab.TenantKubeconfig(t.Context(), "lasting", file))
	list := []string{"-n", "tenant-lasting", "get", "loadbalancers"}
	_, err = lab.Hub.KubectlAs(t.Context(), file, "", list...)
	require.NoError(t, err)
	_, err = lab.Hub.Run(t.Context(), filepath.Join(products, "kubelb"), "tenants", "rotate", "lasting", "--kubeconfig="+lab.Hub.Kubeconfig)
	require.NoError(t, err)
	former := file + ".former"
	require.NoError(t, os.Rename(file, former))
	require.NoError(t, lab.TenantKubeconfig(t.Context(), "lasting", file))
	_, err = lab.Hub.KubectlAs(t.Context(), file, "", list...)
	require.NoError(t, err)
	eventually(t, 20*time.Second, func() (_ string, err error) {
		if _, works := lab.Hub.KubectlAs(t.Context(), former, "", list...); works == nil {
			err = errors.New("a rotated token still works")
		}
		return "", err
	})

	// Without the policy RBAC alone allows more, and the manager logs a warning.
	kubectl(t, lab.Hub, "", "delete", "validatingadmissionpolicybinding", "manager.kubelb.k8c.io")
	eventually(t, 30*time.Second, func() (string, error) {
		return as(namespaceNamed("shop", ""), "create", "--dry-run=server", "-f", "-")
	})
	lab.Manager.Stop()
	start()
	eventually(t, 20*time.Second, func() (_ string, err error) {
		if text := logOf(t, lab.Manager); !strings.Contains(text, "no ValidatingAdmissionPolicy restricts this service account") {
			err = errors.New(lab.Manager.Tail())
		}
		return "", err
	})
}

const loadBalancerOfHub = `apiVersion: kubelb.k8c.io/v1alpha1
kind: Addresses
metadata: {namespace: tenant-a, name: default}
spec: {addresses: [{ip: 198.51.100.11}]}
---
apiVersion: kubelb.k8c.io/v1alpha1
kind: LoadBalancer
metadata: {namespace: tenant-a, name: web}
spec:
  type: LoadBalancer
  ports: [{name: http, port: 80, protocol: TCP}]
  endpoints: [{addressesReference: {name: default}, ports: [{name: http, port: 30080, protocol: TCP}]}]
`

func logOf(t *testing.T, p *cluster.Process) string {
	t.Helper()
	text, err := os.ReadFile(p.Log)
	require.NoError(t, err)
	return string(text)
}
