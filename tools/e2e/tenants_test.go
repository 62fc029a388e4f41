package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestATenantsCredentialsAreCreatedRotatedAndRevoked(t *testing.T) {
	independentOfDataplane(t)
	const ns = "tenant-made"
	out, status := kubelb(t, "tenants", "create", "made", "--backend-cidrs=198.51.100.0/24", "--backend-network=made", "--max-addresses=3", "--max-connections=50")
	require.Zero(t, status, out)
	cleanUpHub(t, "tenant/made")
	use := func(kubeconfig string) func(manifest string) error {
		file := filepath.Join(lab.Dir, "made.kubeconfig")
		require.NoError(t, os.WriteFile(file, []byte(kubeconfig), 0o600))
		return func(manifest string) error {
			require.NoError(t, os.WriteFile(file, []byte(kubeconfig), 0o600))
			_, err := lab.Hub.KubectlAs(t.Context(), file, manifest, "apply", "-f", "-")
			return err
		}
	}
	first := use(out)
	require.NoError(t, first(hubAddresses(ns)+hubLoadBalancer(ns, "web", "")))
	address := hubIP(t, ns, "web")
	eventually(t, 20*time.Second, func() error {
		if out, status := kubelb(t, "tenants", "list"); status != 0 || !regexp.MustCompile(`(?m)^made +Ready +1 +1 of 3 +1 of 5000 +- +0 of 50 +- +198\.51\.100\.0/24$`).MatchString(out) {
			return errors.New(out)
		}
		return nil
	})
	out, status = kubelb(t, "tenants", "create", "made")
	require.NotZero(t, status)
	require.Contains(t, out, `tenant "made" exists already`)

	// T14: a rotation makes stolen credentials useless.
	out, status = kubelb(t, "tenants", "rotate", "made")
	require.Zero(t, status, out)
	second := use(out)
	require.NoError(t, second(hubLoadBalancer(ns, "web", "")))
	eventually(t, 20*time.Second, func() error {
		if first(hubLoadBalancer(ns, "web", "")) == nil {
			return errors.New("the old credentials still work")
		}
		return nil
	})
	eventually(t, 5*time.Second, func() error {
		if out, _ := kubelb(t, "tenants", "list"); !containsAll(out, "made", "1 of 3") {
			return errors.New(out)
		}
		return nil
	})

	out, status = kubelb(t, "tenants", "revoke", "made")
	require.Zero(t, status, out)
	require.Contains(t, out, "tenant made is revoked")
	eventually(t, 20*time.Second, func() error {
		if second(hubLoadBalancer(ns, "web", "")) == nil {
			return errors.New("revoked credentials still work")
		}
		return nil
	})
	hubRefusal(t, ns, "web", "Accepted", "TenantDisabled")
	out, status = kubelb(t, "tenants", "kubeconfig", "made")
	require.NotZero(t, status)
	require.Contains(t, out, "tenant made is revoked")
	out, status = kubelb(t, "tenants", "revoke", "made", "--undo")
	require.Zero(t, status, out)
	out, status = kubelb(t, "tenants", "kubeconfig", "made")
	require.Zero(t, status, out)
	require.NoError(t, use(out)(hubLoadBalancer(ns, "web", "")))
	require.Equal(t, address, hubIP(t, ns, "web"), "the LoadBalancer has kept its address")
	out, status = kubelb(t, "tenants", "kubeconfig", "nobody")
	require.NotZero(t, status)
	require.Contains(t, out, `there is no tenant "nobody"; the tenants are `)
}

func TestTheCCMAcceptsOnlyATenantsCredentials(t *testing.T) {
	independentOfDataplane(t)
	const ns = "tenant-checked"
	kubeconfig, status := kubelb(t, "tenants", "create", "checked", "--backend-cidrs=198.51.100.0/24")
	require.Zero(t, status, kubeconfig)
	cleanUpHub(t, "tenant/checked")
	file := filepath.Join(lab.Dir, "checked.kubeconfig")
	require.NoError(t, os.WriteFile(file, []byte(kubeconfig), 0o600))
	ccm := func(kubeconfig string, flags ...string) (string, error) {
		return lab.Tenant.Run(t.Context(), append([]string{filepath.Join(os.Getenv("KUBELB_BIN"), "kubelb-ccm"), "--kubelb-kubeconfig=" + kubeconfig,
			"--kubeconfig=" + lab.Tenant.Kubeconfig, "--metrics-addr=0", "--health-probe-bind-address=0"}, flags...)...)
	}
	out, err := ccm(file, "--check", "--cluster-name=checked")
	require.NoError(t, err)
	require.Contains(t, out, "answers, and the credentials have the rights of tenant checked")
	// KubeLB's CCM watches these kinds too, and writes none.
	_, err = lab.Hub.KubectlAs(t.Context(), file, "", "-n", ns, "get", "routes.kubelb.k8c.io,syncsecrets.kubelb.k8c.io")
	require.NoError(t, err)
	_, err = lab.Hub.KubectlAs(t.Context(), file, "apiVersion: kubelb.k8c.io/v1alpha1\nkind: Route\nmetadata: {name: r, namespace: "+ns+"}", "create", "-f", "-")
	require.ErrorContains(t, err, "forbidden")
	_, err = ccm(file, "--check", "--cluster-name=a")
	require.ErrorContains(t, err, "may not create addresses, get addresses, list addresses, ")
	require.ErrorContains(t, err, "in namespace tenant-a: use the credentials in the Secret kubelb-ccm-kubeconfig")
	// T1: a tenant cluster must not have an operator's credentials.
	for _, flags := range [][]string{{"--check"}, {}} {
		_, err = ccm(lab.Hub.Kubeconfig, append(flags, "--cluster-name=checked")...)
		require.ErrorContains(t, err, "may create loadbalancers in every namespace, which a tenant's credentials may not: use the credentials in the Secret kubelb-ccm-kubeconfig of namespace "+ns)
	}
	_, err = ccm(lab.Hub.Kubeconfig, "--check", "--cluster-name=checked", "--allow-broad-credentials")
	require.NoError(t, err)
}

// A CCM that has failed cannot report it. So the hub reports since when it has heard nothing of it.
func TestATenantReportsThatItsCCMIsSilent(t *testing.T) {
	independentOfDataplane(t)
	createService(t, "unheard")
	hubKubectl(t, "wait", "tenant/a", "--for=condition=Connected", "--timeout=60s")
	out, _ := kubelb(t, "status")
	require.NotContains(t, out, "its CCM")

	lab.CCM.Kill()
	killed, running := time.Now(), false
	t.Cleanup(func() {
		if !running {
			require.NoError(t, lab.StartCCM(cleanUpContext(t)))
		}
	})
	// A shorter duration of the Lease, so that the test need not wait for two minutes.
	hubKubectl(t, "-n", "tenant-a", "patch", "lease", "kubelb-ccm", "--type=merge", "-p", `{"spec":{"leaseDurationSeconds":20}}`)
	hubKubectl(t, "wait", "tenant/a", "--for=jsonpath={.status.conditions[?(@.type==\"Connected\")].reason}=CCMSilent", "--timeout=60s")
	t.Logf("the Tenant reports it %s after its CCM was killed", time.Since(killed))
	const since = `the tenant's CCM has not renewed its Lease since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ: later changes of Services and nodes are not known here`
	out, _ = kubelb(t, "status")
	require.Regexp(t, `(?m)^warning: tenant a: `+since+`$`, out)
	eventually(t, 10*time.Second, func() error {
		if out, status := kubelb(t, "explain", "default/unheard", "--tenant=a"); status != 0 || !regexp.MustCompile(`(?m)^  yes +its tenant's nodes are known +\d+ addresses of nodes; `+since+`$`).MatchString(out) {
			return errors.New(out)
		}
		return nil
	})

	running = true
	require.NoError(t, lab.StartCCM(t.Context()))
	started := time.Now()
	hubKubectl(t, "wait", "tenant/a", "--for=condition=Connected", "--timeout=60s")
	t.Logf("the Tenant is connected again %s after its CCM was started", time.Since(started))
	out, _ = kubelb(t, "status")
	require.NotContains(t, out, "its CCM")
}

// T21: a tenant's objects may have finalizers from before the policy was installed.
func TestATenantIsDeletedInSpiteOfFinalizersOnItsObjects(t *testing.T) {
	independentOfDataplane(t)
	const ns = "tenant-held"
	out, status := kubelb(t, "tenants", "create", "held", "--backend-cidrs=198.51.100.0/24", "--backend-network=held")
	require.Zero(t, status, out)
	cleanUpHub(t, "tenant/held")
	applyToHub(t, strings.Replace(hubAddresses(ns), "name: default}", "name: default, finalizers: [kubelb.k8c.io/cleanup]}", 1)+hubLoadBalancer(ns, "web", ""))
	hubIP(t, ns, "web")
	hubKubectl(t, "delete", "tenant/held", "--timeout=30s")
	hubKubectl(t, "wait", "namespace/"+ns, "--for=delete", "--timeout=30s")
}

func containsAll(text string, parts ...string) bool {
	for _, part := range parts {
		if !strings.Contains(text, part) {
			return false
		}
	}
	return true
}
