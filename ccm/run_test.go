package ccm

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// runs returns the output of the program with these arguments.
func runs(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // the program runs if it does not end with a reason
	defer cancel()
	var out strings.Builder
	err := Run(ctx, args, func(string) string { return t.TempDir() }, &out, io.Discard)
	return out.String(), err
}

// hubServer returns the API server of a hub that answers requests about rights and tokens, and the kubeconfig of a tenant.
func hubServer(t *testing.T, may func(authorizationv1.ResourceAttributes) bool) (kubeconfig string, asked *[]*http.Request) {
	t.Helper()
	asked = &[]*http.Request{}
	read := func(r *http.Request) runtime.Object {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(err) // the server ends the request
		}
		o, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
		if err != nil {
			panic(err)
		}
		return o
	}
	answer := func(w http.ResponseWriter, what any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(what)
	}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*asked = append(*asked, r)
		switch r.URL.Path {
		case "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
			review := read(r).(*authorizationv1.SelfSubjectAccessReview)
			review.SetGroupVersionKind(authorizationv1.SchemeGroupVersion.WithKind("SelfSubjectAccessReview"))
			review.Status.Allowed = may(*review.Spec.ResourceAttributes)
			answer(w, review)
		case "/api/v1/namespaces/tenant-a/serviceaccounts/kubelb-ccm/token":
			request := read(r).(*authenticationv1.TokenRequest)
			request.SetGroupVersionKind(authenticationv1.SchemeGroupVersion.WithKind("TokenRequest"))
			request.Status.Token = expiring("renewed", time.Now())
			answer(w, request)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(server.Close)
	kubeconfig = filepath.Join(t.TempDir(), "kubelb")
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	content := strings.ReplaceAll(kubeconfigWith("token: "+expiring("one", time.Now())), `server: "https://hub.example.com:6443"`,
		fmt.Sprintf("server: %q, certificate-authority-data: %s", server.URL, base64.StdEncoding.EncodeToString(ca)))
	require.NoError(t, os.WriteFile(kubeconfig, []byte(content), 0o600))
	return kubeconfig, asked
}

func TestHelpExplainsTheFlags(t *testing.T) {
	out, err := runs(t, "--help")
	require.NoError(t, err)
	for _, flag := range []string{"-cluster-name", "-kubelb-kubeconfig-secret", "-accept-addresses", "-release"} {
		require.Contains(t, out, flag)
	}
}

func TestInvalidFlagsAreAnError(t *testing.T) {
	kubeconfig, _ := hubServer(t, tenantsRights)
	for want, args := range map[string][]string{
		"flag provided but not defined: -nonsense":              {"--nonsense"},
		"--cluster-name is required":                            {},
		"--node-address-type=Any: use":                          {"--cluster-name=a", "--node-address-type=Any"},
		"loud":                                                  {"--cluster-name=a", "--log-level=loud"},
		"management cluster: --kubelb-kubeconfig=/nowhere:":     {"--cluster-name=a", "--kubelb-kubeconfig=/nowhere"},
		"tenant cluster: ":                                      {"--cluster-name=a", "--kubelb-kubeconfig=" + kubeconfig, "--kubeconfig=/nowhere"},
		"--kubelb-kubeconfig-secret=kubelb: use NAMESPACE/NAME": {"--cluster-name=a", "--kubelb-kubeconfig=" + kubeconfig, "--kubeconfig=" + kubeconfig, "--kubelb-kubeconfig-secret=kubelb"},
	} {
		_, err := runs(t, args...)
		require.ErrorContains(t, err, want)
	}
	_, err := runs(t, "--release", "--kubeconfig=/nowhere")
	require.ErrorContains(t, err, "tenant cluster: ", "--cluster-name is not needed without requests to the hub")
}

func TestCheckChecksTheCredentialsAndExits(t *testing.T) {
	kubeconfig, asked := hubServer(t, tenantsRights)
	out, err := runs(t, "--check", "--cluster-name=tenant-a", "--kubelb-kubeconfig="+kubeconfig)
	require.NoError(t, err)
	require.Regexp(t, `^The management cluster at https://127.0.0.1:\d+ answers, and the credentials have the rights of tenant a.\n$`, out)
	require.Contains(t, (*asked)[0].Header.Get("Authorization"), "Bearer e30.")

	_, err = runs(t, "--check", "--cluster-name=b", "--kubelb-kubeconfig="+kubeconfig)
	require.ErrorContains(t, err, "in namespace tenant-b: use the credentials in the Secret kubelb-ccm-kubeconfig of that namespace, and see that --cluster-name is the tenant's name")
}

// T1: the program ends before it watches anything.
func TestTheProgramRefusesAnOperatorsCredentials(t *testing.T) {
	kubeconfig, _ := hubServer(t, func(authorizationv1.ResourceAttributes) bool { return true })
	for _, args := range [][]string{{"--check"}, {"--kubeconfig=/nowhere"}} {
		_, err := runs(t, append(args, "--cluster-name=a", "--kubelb-kubeconfig="+kubeconfig)...)
		require.ErrorContains(t, err, "may create loadbalancers in every namespace, which a tenant's credentials may not")
	}
	out, err := runs(t, "--check", "--allow-broad-credentials", "--cluster-name=a", "--kubelb-kubeconfig="+kubeconfig)
	require.NoError(t, err)
	require.Contains(t, out, "answers")
}

func TestATokenIsRequestedForTheSameAccount(t *testing.T) {
	kubeconfig, asked := hubServer(t, tenantsRights)
	k, config, err := newTokenSource("tenant-a", kubeconfig, logr.Discard())
	require.NoError(t, err)
	require.Empty(t, config.BearerToken, "requests have the current token")
	first := *k.current.Load()
	text, err := k.request(t.Context(), first, 30*time.Minute)
	require.NoError(t, err)
	require.Equal(t, "renewed", parseToken(text).accountUID)
	require.Len(t, *asked, 1)
	require.Equal(t, http.MethodPost, (*asked)[0].Method)
	require.Equal(t, "Bearer "+first.text, (*asked)[0].Header.Get("Authorization"))
	_, err = k.request(t.Context(), token{namespace: "tenant-b", name: "kubelb-ccm"}, time.Hour)
	require.Error(t, err)
}

func TestTheTenantClusterIsConfiguredByKubeconfigOrPod(t *testing.T) {
	kubeconfig, _ := hubServer(t, tenantsRights)
	config, err := restConfig(kubeconfig)
	require.NoError(t, err)
	require.Contains(t, config.Host, "https://127.0.0.1:")
	_, err = restConfig("")
	require.ErrorIs(t, err, rest.ErrNotInCluster)
}
