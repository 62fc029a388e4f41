package e2e

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// An attacker has the credentials of a tenant's CCM, and nothing else. Each attack is refused.
func TestAttacksWithATenantsCredentialsAreRefused(t *testing.T) {
	independentOfDataplane(t)
	const ns, victim = "tenant-hostile", "tenant-a"
	applyToHub(t, "apiVersion: kubelb.k8c.io/v1alpha1\nkind: Tenant\nmetadata: {name: hostile}\nspec: {backendCIDRs: [198.51.100.0/24], backendNetwork: hostile, limits: {addresses: 2}, objects: {loadBalancers: 3}}")
	cleanUpHub(t, "tenant/hostile")
	hubKubectl(t, "wait", "tenant/hostile", "--for=condition=Ready", "--timeout=30s")
	kubeconfig := filepath.Join(lab.Dir, "hostile.kubeconfig")
	require.NoError(t, lab.TenantKubeconfig(t.Context(), "hostile", kubeconfig))
	as := func(stdin string, args ...string) (string, error) {
		return lab.Hub.KubectlAs(t.Context(), kubeconfig, stdin, args...)
	}
	loadBalancer := func(name, line string) string { return hubLoadBalancer(ns, name, line) }
	withMetadata := func(manifest, metadata string) string {
		return strings.Replace(manifest, "metadata: {namespace: "+ns+", name: evil}", "metadata: {namespace: "+ns+", name: evil, "+metadata+"}", 1)
	}
	evil := loadBalancer("evil", "")
	inline := func(ip string) string {
		return strings.Replace(evil, "{addressesReference: {name: default}, ", fmt.Sprintf("{addresses: [{ip: %q}], ", ip), 1)
	}

	// What the tenant is allowed to do works, and stays during all attacks.
	_, err := as(hubAddresses(ns)+loadBalancer("good", ""), "apply", "-f", "-")
	require.NoError(t, err)
	good := hubIP(t, ns, "good")
	apply(t, service("victim", "ports: [{port: 80}]"))
	cleanUp(t, "service/victim")
	victims := externalIPs(t, "victim", 2)

	stored, err := as("", "-n", ns, "get", "loadbalancer", "good", "-o", "yaml")
	require.NoError(t, err)
	const finalizers = "  finalizers:\n  - kubelb.k8c.io/cleanup\n"
	require.Contains(t, stored, finalizers)
	require.Contains(t, stored, good)

	for _, attack := range []struct {
		id, what string
		stdin    string
		args     []string
		answer   string // the API server's error
	}{
		{"T1", "write into another tenant's namespace", hubLoadBalancer(victim, "evil", ""), []string{"create", "-f", "-"}, "forbidden"},
		{"T1", "read another tenant's objects", "", []string{"-n", victim, "get", "loadbalancers"}, "forbidden"},
		{"T1", "read the objects of all tenants", "", []string{"get", "loadbalancers", "-A"}, "forbidden"},
		{"T1", "change its own rights", "", []string{"-n", ns, "create", "rolebinding", "more", "--clusterrole=cluster-admin", "--serviceaccount=" + ns + ":kubelb-ccm"}, "forbidden"},
		{"T1", "raise its own limits", "", []string{"patch", "tenant", "hostile", "--type=merge", "-p", `{"spec":{"limits":null}}`}, "forbidden"},
		{"T3", "target a loopback address", inline("127.0.0.1"), []string{"create", "-f", "-"}, "loopback, link-local, multicast and unspecified addresses are refused"},
		{"T3", "target a cloud's metadata", inline("169.254.169.254"), []string{"create", "-f", "-"}, "loopback, link-local, multicast and unspecified addresses are refused"},
		{"T3", "target a name that the hub resolves", inline("kubernetes.default.svc"), []string{"create", "-f", "-"}, "put a name into hostname"},
		{"T6", "write the status of its own", strings.ReplaceAll(stored, good, victims[0]), []string{"replace", "--subresource=status", "-f", "-"}, "forbidden"},
		{"T6", "write a gateway's status", "", []string{"patch", "gateway.kubelb.k8c.io", "gateway", "--subresource=status", "--type=merge", "-p", `{"status":{}}`}, "forbidden"},
		{"T8", "name more ports than there may be", strings.Replace(evil, "ports: [{name: http, port: 80, protocol: TCP}]\n", "ports: ["+manyPorts(300)+"]\n", 1), []string{"create", "-f", "-"}, "ports"},
		{"T8", "hang a megabyte on an object", withMetadata(evil, `annotations: {x: "`+strings.Repeat("y", 20000)+`"}`), []string{"create", "-f", "-"}, "at most 16384 characters each"},
		{"T9", "call itself another tenant", withMetadata(evil, "labels: {kubelb.k8c.io/tenant: "+victim+"}"), []string{"create", "-f", "-"}, "kubelb.k8c.io/tenant has to be the object's own namespace"},
		{"T10", "have its object belong to another one", withMetadata(evil, "ownerReferences: [{apiVersion: v1, kind: Namespace, name: kubelb, uid: 00000000-0000-0000-0000-000000000000}]"), []string{"create", "-f", "-"}, "metadata.ownerReferences"},
		{"T10", "make an object that nobody can delete", withMetadata(evil, "finalizers: [example.com/for-ever]"), []string{"create", "-f", "-"}, "metadata.finalizers"},
		{"T10", "free an address that gateways still serve", strings.Replace(stored, finalizers, "", 1), []string{"replace", "-f", "-"}, "metadata.finalizers"},
		{"T23", "fill the hub's memory with host names", strings.Replace(evil, "{addressesReference: {name: default}, ", "{addresses: ["+strings.Repeat("{hostname: "+strings.Repeat("h", 250)+"}, ", 100)+"], ", 1), []string{"create", "-f", "-"}, "host names of at most 16384 characters together"},
		{"T23", "fill the caches with a finalizer that it repeats", withMetadata(evil, "finalizers: ["+strings.Repeat("kubelb.k8c.io/cleanup, ", 60_000)+"]"), []string{"create", "-f", "-"}, "metadata.finalizers"},
		{"T21", "keep its namespace by a finalizer on its nodes' addresses", strings.Replace(hubAddresses(ns), "name: default}", "name: more, finalizers: [kubelb.k8c.io/cleanup]}", 1), []string{"create", "-f", "-"}, "objects of this kind have none"},
		{"T22", "give an operator's terminal orders by a name", strings.Replace(evil, "{name: default}", `{name: "no\x1b[2J"}`, 1), []string{"create", "-f", "-"}, "addressesReference.name"},
		{"T22", "give an operator's terminal orders by a key", loadBalancer("evil", `sharingKey: "\x1b]0;root\x07"`), []string{"create", "-f", "-"}, "sharingKey"},
		{"T22", "give an operator's terminal orders by a port", strings.ReplaceAll(evil, "name: http", `name: "\x1b[31m"`), []string{"create", "-f", "-"}, "name"},
		{"T1", "renew another tenant's Lease", "", []string{"-n", victim, "patch", "lease", "kubelb-ccm", "--type=merge", "-p", "{}"}, "forbidden"},
		{"T1", "make a Lease", leaseNamed(ns, "more"), []string{"create", "-f", "-"}, "forbidden"},
		{"T1", "take its Lease away", "", []string{"-n", ns, "delete", "lease", "kubelb-ccm"}, "forbidden"},
		{"T10", "have its Lease belong to another object", "", patchLease(ns, `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Namespace","name":"kubelb","uid":"00000000-0000-0000-0000-000000000000"}]}}`), "leave its metadata as they are"},
		{"T21", "keep its namespace by a finalizer on its Lease", "", patchLease(ns, `{"metadata":{"finalizers":["example.com/for-ever"]}}`), "leave its metadata as they are"},
		{"T23", "fill the hub's memory with its Lease", "", patchLease(ns, `{"metadata":{"annotations":{"a":"`+strings.Repeat("a", 20000)+`"}}}`), "leave its metadata as they are"},
		{"T23", "fill the hub's memory with the fields of its Lease", fieldsOfLease(30_000), []string{"-n", ns, "patch", "lease", "kubelb-ccm", "--type=json", "--patch-file=/dev/stdin"}, "metadata.managedFields"},
		{"T23", "fill etcd with the fields of its objects", withMetadata(evil, "managedFields: [{manager: x, operation: Apply, apiVersion: kubelb.k8c.io/v1alpha1, fieldsType: FieldsV1, fieldsV1: {f:metadata: {f:annotations: {"+manyFields(30_000)+"}}}}]"), []string{"create", "-f", "-"}, "metadata.managedFields"},
		{"T23", "fill the hub's memory with its own name", "", patchLease(ns, `{"spec":{"holderIdentity":"`+strings.Repeat("a", 254)+`"}}`), "at most 253 characters"},
		{"T11", "read Secrets", "", []string{"-n", "kubelb", "get", "secrets"}, "forbidden"},
		{"T11", "read its own namespace's Secrets", "", []string{"-n", ns, "get", "secrets"}, "forbidden"},
	} {
		t.Run(attack.id+" "+attack.what, func(t *testing.T) {
			_, err := as(attack.stdin, attack.args...)
			require.ErrorContains(t, err, attack.answer)
		})
	}
	// With this LoadBalancer the limit is reached.
	_, err = as(loadBalancer("more", ""), "apply", "-f", "-")
	require.NoError(t, err)
	hubIP(t, ns, "more")
	for _, attack := range []struct {
		id, what, manifest, condition, reason string
	}{
		{"T2", "refer to another tenant's nodes", strings.Replace(evil, "{name: default}", "{name: default, namespace: "+victim+"}", 1), "Accepted", "ReferenceNotAllowed"},
		{"T3", "target another network", inline("10.96.0.1"), "Accepted", "EndpointRefused"},
		{"T3", "target an external address", inline(victims[0]), "Accepted", "EndpointRefused"},
		{"T4", "target its nodes' sshd", strings.Replace(evil, "port: 30080", "port: 22", 1), "Accepted", "PortRefused"},
		{"T4", "target its nodes' kubelets", strings.Replace(evil, "port: 30080", "port: 10250", 1), "Accepted", "PortRefused"},
		{"T5", "ask for another tenant's address", loadBalancer("evil", "requestedAddresses: ["+victims[0]+"]"), "AddressAllocated", "AddressInUse"},
		{"T5", "share another tenant's address", loadBalancer("evil", "sharingKey: victim\n  requestedAddresses: ["+victims[0]+"]"), "AddressAllocated", "AddressInUse"},
		{"T7", "take more addresses than its limit", loadBalancer("evil", ""), "AddressAllocated", "LimitReached"},
	} {
		t.Run(attack.id+" "+attack.what, func(t *testing.T) {
			_, err := as(attack.manifest, "apply", "-f", "-")
			require.NoError(t, err)
			t.Log(hubRefusal(t, ns, "evil", attack.condition, attack.reason))
			_, err = as("", "-n", ns, "delete", "loadbalancer", "evil", "--timeout=30s")
			require.NoError(t, err)
		})
	}
	// T23: the quota counts all objects, also those that are not served.
	hubKubectl(t, "wait", "tenant/hostile", "--for=condition=Bounded", "--timeout=90s")
	_, err = as(loadBalancer("third", ""), "create", "-f", "-")
	require.NoError(t, err)
	_, err = as(loadBalancer("fourth", ""), "create", "-f", "-")
	require.ErrorContains(t, err, "exceeded quota: kubelb")
	// T22: of a thousand refused addresses the condition names only a few, so that the status can be written.
	_, err = as(strings.Replace(hubAddresses(ns), "[{ip: 198.51.100.11}", "["+manyAddresses(1000)+"{ip: 198.51.100.11}", 1), "replace", "-f", "-")
	require.NoError(t, err)
	eventually(t, 15*time.Second, func() error {
		if accepted := hubGet(t, ns, "loadbalancer/good", `{.status.conditions[?(@.type=="Accepted")].message}`); !strings.HasSuffix(accepted, "; and 995 more") || len(accepted) > 2048 {
			return errors.New(accepted)
		}
		return nil
	})
	// All addresses are unchanged.
	require.Equal(t, good, hubIP(t, ns, "good"))
	require.Equal(t, victims, externalIPs(t, "victim", 2))
}

// T20: this holds for any networks of the operator and any lists of the tenant.
func TestATenantCannotTargetNodesOfOthersOrGateways(t *testing.T) {
	independentOfDataplane(t)
	const ns = "tenant-near"
	applyToHub(t, "apiVersion: kubelb.k8c.io/v1alpha1\nkind: Tenant\nmetadata: {name: near}\nspec: {backendCIDRs: [198.51.100.0/24, 198.51.100.1/32, 192.0.2.0/24]}")
	cleanUpHub(t, "tenant/near")
	hubKubectl(t, "wait", "tenant/near", "--for=condition=Ready", "--timeout=30s")
	apply(t, web("near-victim", 1)+service("near-victim", "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "service/near-victim", "deployment/near-victim")
	victims := externalIPs(t, "near-victim", 2)
	eventually(t, 10*time.Second, func() error {
		if held := hubGet(t, "tenant-a", "addresses/default", "{.status.held}"); !strings.Contains(held, "198.51.100.11") {
			return fmt.Errorf("no owner is on record: %q", held)
		}
		return nil
	})
	applyToHub(t, strings.Replace(hubAddresses(ns), "[{ip: 198.51.100.11}", "[{ip: 198.51.100.1}, {ip: 192.0.2.1}, {ip: 198.51.100.77}, {ip: 198.51.100.11}", 1)+hubLoadBalancer(ns, "listed", ""))
	hubIP(t, ns, "listed")
	for _, why := range []string{"198.51.100.1 is an address of gateway gateway of the management cluster", "192.0.2.1 is an address of gateway gateway", "198.51.100.11 is another tenant's node", "198.51.100.12 is another tenant's node"} {
		require.Contains(t, hubGet(t, ns, "loadbalancer/listed", `{.status.conditions[?(@.type=="Accepted")].message}`), why)
	}
	for _, ip := range []string{"198.51.100.1", "198.51.100.12"} {
		applyToHub(t, strings.Replace(hubLoadBalancer(ns, "inline", ""), "{addressesReference: {name: default}, ", fmt.Sprintf("{addresses: [{ip: %q}], ", ip), 1))
		eventually(t, 10*time.Second, func() error {
			if message := hubRefusal(t, ns, "inline", "Accepted", "EndpointRefused"); !strings.Contains(message, ip+" is ") {
				return errors.New(message)
			}
			return nil
		})
	}
	out, status := kubelb(t, "trace", net.JoinHostPort(hubIP(t, ns, "listed"), "80"))
	require.Zero(t, status, out)
	require.Regexp(t, `(?m)^endpoints +port 30080 of 198\.51\.100\.77, if healthy$`, out)
	require.Equal(t, victims, externalIPs(t, "near-victim", 2))
	out, status = kubelb(t, "trace", net.JoinHostPort(victims[0], "80"))
	require.Zero(t, status, out)
	require.Regexp(t, `(?m)^endpoints +port \d+ of 198\.51\.100\.11, 198\.51\.100\.12, if healthy$`, out)
}

// T24: a tenant that waits for another tenant's address does not get it while that tenant recreates its Service.
func TestARecreatedServiceGetsItsRequestedAddress(t *testing.T) {
	independentOfDataplane(t)
	const ns, address = "tenant-waits", "192.0.2.239"
	out, status := kubelb(t, "tenants", "create", "waits", "--backend-cidrs=198.51.100.0/24", "--backend-network=waits")
	require.Zero(t, status, out)
	cleanUpHub(t, "tenant/waits")
	manifest := service("asks", "loadBalancerIP: "+address, "ports: [{port: 80}]")
	manifest = strings.Replace(manifest, "RequireDualStack", "SingleStack", 1)
	apply(t, manifest)
	cleanUp(t, "service/asks")
	require.Equal(t, []string{address}, externalIPs(t, "asks", 1))
	applyToHub(t, hubAddresses(ns)+hubLoadBalancer(ns, "waits", "requestedAddresses: ["+address+"]"))
	hubRefusal(t, ns, "waits", "AddressAllocated", "AddressInUse")
	kubectl(t, "delete", "service/asks", "--timeout=60s")
	eventually(t, 10*time.Second, func() error {
		if message := hubRefusal(t, ns, "waits", "AddressAllocated", "AddressInUse"); !strings.Contains(message, address+" is reserved until ") {
			return errors.New(message)
		}
		return nil
	})
	pools, status := kubelb(t, "pools", "public")
	require.Zero(t, status, pools)
	require.Regexp(t, `(?m)^192\.0\.2\.239 +reserved for tenant a until `, pools)
	apply(t, manifest)
	require.Equal(t, []string{address}, externalIPs(t, "asks", 1))
}

// leaseNamed returns a Lease without a holder.
func leaseNamed(namespace, name string) string {
	return fmt.Sprintf("apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {namespace: %s, name: %s}\n", namespace, name)
}

// patchLease returns the arguments of kubectl that change a tenant's Lease.
func patchLease(namespace, patch string) []string {
	return []string{"-n", namespace, "patch", "lease", "kubelb-ccm", "--type=merge", "-p", patch}
}

// fieldsOfLease returns a patch that adds many fields to the managedFields of a Lease.
func fieldsOfLease(n int) string {
	return `[{"op":"add","path":"/metadata/managedFields/-","value":{"manager":"x","operation":"Apply","apiVersion":"coordination.k8s.io/v1","fieldsType":"FieldsV1","fieldsV1":{"f:metadata":{"f:annotations":{` +
		manyFields(n) + `}}}}}]`
}

func manyFields(n int) string {
	var fields []string
	for i := range n {
		fields = append(fields, fmt.Sprintf(`"f:%040d": {}`, i))
	}
	return strings.Join(fields, ", ")
}

// manyAddresses returns addresses outside of the tenant's networks.
func manyAddresses(n int) string {
	var out strings.Builder
	for i := range n {
		fmt.Fprintf(&out, "{ip: 198.18.%d.%d}, ", i>>8, i&255)
	}
	return out.String()
}

func manyPorts(n int) string {
	var ports []string
	for i := range n {
		ports = append(ports, fmt.Sprintf("{name: p%d, port: %d, protocol: TCP}", i, 1000+i))
	}
	return strings.Join(ports, ", ")
}
