package e2e

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/tools/clientcmd"

	"kubelb.k8c.io/tools/cluster"
)

// tokenIn returns the token of a kubeconfig and when it expires. A token that never expires has a zero time.
func tokenIn(t *testing.T, kubeconfig []byte) (token string, expires time.Time) {
	t.Helper()
	config, err := clientcmd.Load(kubeconfig)
	require.NoError(t, err)
	token = config.AuthInfos[config.Contexts[config.CurrentContext].AuthInfo].Token
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	require.NoError(t, err)
	var claims struct {
		Expires int64 `json:"exp"`
	}
	require.NoError(t, json.Unmarshal(payload, &claims))
	if claims.Expires == 0 {
		return token, time.Time{}
	}
	return token, time.Unix(claims.Expires, 0)
}

// lastingToken makes a token for a tenant's CCM that never expires, as an earlier release did.
func lastingToken(t *testing.T, namespace string) string {
	t.Helper()
	applyToHub(t, "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/service-account-token\nmetadata: {name: kubelb-ccm, namespace: "+namespace+", annotations: {kubernetes.io/service-account.name: kubelb-ccm}}")
	var token []byte
	eventually(t, 10*time.Second, func() error {
		encoded, err := lab.Hub.Get(t.Context(), namespace, "secret/kubelb-ccm", "{.data.token}")
		if err == nil && encoded == "" {
			err = errors.New("the Secret has no token yet")
		}
		if err == nil {
			token, err = base64.StdEncoding.DecodeString(encoded)
		}
		return err
	})
	return string(token)
}

// T19: a stolen kubeconfig of a tenant is useless after an hour.
func TestATenantsTokenExpiresAfterAnHourAndNotLater(t *testing.T) {
	independentOfDataplane(t)
	const ns = "tenant-brief"
	out, status := kubelb(t, "tenants", "create", "brief", "--backend-cidrs=198.51.100.0/24")
	require.Zero(t, status, out)
	cleanUpHub(t, "tenant/brief")
	_, expires := tokenIn(t, []byte(out))
	require.WithinDuration(t, time.Now().Add(time.Hour), expires, 2*time.Minute)
	require.NotContains(t, hubKubectl(t, "-n", ns, "get", "secrets", "-o", "jsonpath={.items[*].type}"), "service-account-token")
	file := filepath.Join(lab.Dir, "brief.kubeconfig")
	require.NoError(t, os.WriteFile(file, []byte(out), 0o600))
	as := func(stdin string, args ...string) (string, error) {
		return lab.Hub.KubectlAs(t.Context(), file, stdin, append([]string{"-n", ns}, args...)...)
	}
	_, err := as("", "create", "token", "kubelb-ccm", "--duration=1h")
	require.NoError(t, err, "the CCM renews its token in this way")
	for _, attack := range []struct {
		what, stdin string
		args        []string
		answer      string
	}{
		{"make a token that lasts for a day", "", []string{"create", "token", "kubelb-ccm", "--duration=24h"}, "a token of a tenant lasts 3600 seconds at most"},
		{"make a token of another account", "", []string{"create", "token", "default"}, "forbidden"},
		{"make a token of another tenant", "", []string{"-n", "tenant-a", "create", "token", "kubelb-ccm"}, "forbidden"},
		{"make a token without end", "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/service-account-token\nmetadata: {name: mine, namespace: " + ns + ", annotations: {kubernetes.io/service-account.name: kubelb-ccm}}", []string{"create", "-f", "-"}, "forbidden"},
	} {
		t.Run(attack.what, func(t *testing.T) {
			_, err := as(attack.stdin, attack.args...)
			require.ErrorContains(t, err, attack.answer)
		})
	}
}

func TestACCMReplacesALastingTokenInItsKubeconfig(t *testing.T) {
	independentOfDataplane(t)
	out, status := kubelb(t, "tenants", "create", "exchange", "--backend-cidrs=198.51.100.0/24")
	require.Zero(t, status, out)
	cleanUpHub(t, "tenant/exchange")
	token, _ := tokenIn(t, []byte(out))
	file := filepath.Join(lab.Dir, "exchange.kubeconfig")
	require.NoError(t, os.WriteFile(file, []byte(strings.ReplaceAll(out, token, lastingToken(t, "tenant-exchange"))), 0o600))
	// It serves no Service, since none has a class.
	ccm, err := cluster.Start(lab.Tenant.Namespace, lab.Dir, "exchange", filepath.Join(os.Getenv("KUBELB_BIN"), "kubelb-ccm"), "--cluster-name=exchange", "--kubelb-kubeconfig="+file,
		"--kubeconfig="+lab.Tenant.Kubeconfig, "--use-loadbalancer-class", "--enable-leader-election=false", "--metrics-addr=0", "--health-probe-bind-address=0")
	require.NoError(t, err)
	t.Cleanup(ccm.Stop)
	eventually(t, 20*time.Second, func() error {
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		if _, expires := tokenIn(t, content); time.Until(expires) < 50*time.Minute {
			err = fmt.Errorf("the token expires at %s: %s", expires, ccm.Tail())
		}
		return err
	})
	_, err = lab.Hub.KubectlAs(t.Context(), file, "", "-n", "tenant-exchange", "get", "loadbalancers.kubelb.k8c.io")
	require.NoError(t, err)
}

func TestACCMUsesANewKubeconfigWithoutARestart(t *testing.T) {
	independentOfDataplane(t)
	apply(t, service("before-rotation", "ports: [{port: 80}]"))
	cleanUp(t, "service/before-rotation", "service/after-rotation")
	before := externalIPs(t, "before-rotation", 2)
	file := filepath.Join(lab.Dir, "tenant", "ccm-hub.kubeconfig")
	former, err := os.ReadFile(file)
	require.NoError(t, err)
	formerFile := filepath.Join(lab.Dir, "former.kubeconfig")
	require.NoError(t, os.WriteFile(formerFile, former, 0o600))
	out, status := kubelb(t, "tenants", "rotate", cluster.TenantName)
	require.Zero(t, status, out)
	require.NoError(t, os.WriteFile(file, []byte(out), 0o600))
	// API servers cache for some seconds that a token is valid.
	eventually(t, 30*time.Second, func() error {
		if _, err := lab.Hub.KubectlAs(t.Context(), formerFile, "", "-n", "tenant-"+cluster.TenantName, "get", "loadbalancers.kubelb.k8c.io"); err == nil {
			return errors.New("the former token still works")
		}
		return nil
	})
	apply(t, service("after-rotation", "ports: [{port: 80}]"))
	eventually(t, 2*time.Minute, func() error {
		if ips := tenantGet(t, "service/after-rotation", "{.status.loadBalancer.ingress[*].ip}"); len(strings.Fields(ips)) != 2 {
			return fmt.Errorf("it has the addresses %q: %s", ips, lab.CCM.Tail())
		}
		return nil
	})
	require.False(t, lab.CCM.Exited())
	require.Equal(t, before, externalIPs(t, "before-rotation", 2))
}
