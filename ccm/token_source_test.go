package ccm

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"

	"kubelb.k8c.io/api/v1alpha1"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// expiring returns a token of a ServiceAccount with this UID, valid for an hour.
func expiring(uid string, issued time.Time) string {
	return jwt(fmt.Sprintf(`{"sub":"system:serviceaccount:tenant-a:kubelb-ccm","iat":%d,"exp":%d,"kubernetes.io":{"serviceaccount":{"uid":%q}}}`, issued.Unix(), issued.Add(time.Hour).Unix(), uid))
}

// lasting returns a token of a Secret, which does not expire.
func lasting(uid string) string {
	return jwt(fmt.Sprintf(`{"sub":"system:serviceaccount:tenant-a:kubelb-ccm","kubernetes.io/serviceaccount/service-account.uid":%q}`, uid))
}

func jwt(payload string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".c2ln"
}

func kubeconfigWith(user string) string {
	return `apiVersion: v1
kind: Config
current-context: kubelb
clusters: [{name: kubelb, cluster: {server: "https://hub.example.com:6443"}}]
users: [{name: kubelb, user: {` + user + `}}]
contexts: [{name: kubelb, context: {cluster: kubelb, user: kubelb, namespace: tenant-a}}]
`
}

// tokenTest is a token source with a kubeconfig file, a clock, a hub and a log of its own.
type tokenTest struct {
	*tokenSource
	clock time.Time
	file  string
	// asked are the requested lifetimes; refusal is the hub's error.
	asked   []time.Duration
	refusal error
	logged  []string
}

func newTokenTest(t *testing.T, text string) *tokenTest {
	r := &tokenTest{clock: noon, file: filepath.Join(t.TempDir(), "kubelb")}
	r.put(t, text)
	var err error
	r.tokenSource, _, err = newTokenSource("tenant-a", r.file, funcr.New(func(_, line string) { r.logged = append(r.logged, line) }, funcr.Options{}))
	require.NoError(t, err)
	r.now = func() time.Time { return r.clock }
	r.request = func(_ context.Context, of token, lifetime time.Duration) (string, error) {
		r.asked = append(r.asked, lifetime)
		if r.refusal != nil {
			return "", r.refusal
		}
		return expiring(of.accountUID, r.clock), nil
	}
	return r
}

func (r *tokenTest) put(t *testing.T, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(r.file, []byte(kubeconfigWith("token: "+text)), 0o600))
}

// lookAt calls refresh at a time after noon.
func (r *tokenTest) lookAt(t *testing.T, after time.Duration) token {
	r.clock = noon.Add(after)
	r.refresh(t.Context())
	return *r.current.Load()
}

// kept returns the token in the store.
func (r *tokenTest) kept(t *testing.T) string {
	t.Helper()
	content, err := r.store.load(t.Context())
	require.NoError(t, err)
	config, err := parseKubeconfig(content)
	require.NoError(t, err)
	return config.user.Token
}

func (r *tokenTest) log() string { return strings.Join(r.logged, "\n") }

func TestATokenIsRenewedAtHalfOfItsLifetimeAndSaved(t *testing.T) {
	r := newTokenTest(t, expiring("one", noon))
	require.Equal(t, noon.Add(time.Hour).Unix(), r.lookAt(t, 29*time.Minute).expires.Unix())
	require.Empty(t, r.asked)
	require.Equal(t, noon.Add(98*time.Minute).Unix(), r.lookAt(t, 38*time.Minute).expires.Unix())
	require.Equal(t, []time.Duration{time.Hour}, r.asked)
	require.Equal(t, expiring("one", noon.Add(38*time.Minute)), r.kept(t))
	r.lookAt(t, 40*time.Minute)
	require.Len(t, r.asked, 1)
	info, err := os.Stat(r.file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}

func TestAFailedRenewalIsRetried(t *testing.T) {
	r := newTokenTest(t, expiring("one", noon))
	r.refusal = errors.New("connection refused")
	r.lookAt(t, 38*time.Minute)
	r.lookAt(t, 39*time.Minute)
	require.Len(t, r.asked, 2)
	require.Equal(t, 1, strings.Count(r.log(), "cannot renew the token for the management cluster; trying again"), r.log())
	r.refusal = nil
	require.Equal(t, noon.Add(100*time.Minute).Unix(), r.lookAt(t, 40*time.Minute).expires.Unix())

	// An outage longer than the lifetime: the log names the command for a new kubeconfig, and the CCM uses that.
	r.refusal = errors.New("connection refused")
	r.lookAt(t, 99*time.Minute)
	asked := len(r.asked)
	r.lookAt(t, 101*time.Minute)
	require.Len(t, r.asked, asked)
	require.Contains(t, r.log(), "the token for the management cluster has expired")
	require.Contains(t, r.log(), "kubelb tenants kubeconfig a")
	r.put(t, expiring("one", noon.Add(95*time.Minute)))
	require.Equal(t, noon.Add(155*time.Minute).Unix(), r.lookAt(t, 102*time.Minute).expires.Unix())
}

func TestATokenWithoutExpiryIsExchanged(t *testing.T) {
	r := newTokenTest(t, lasting("one"))
	r.refusal = apierrors.NewForbidden(schema.GroupResource{Resource: "serviceaccounts"}, "kubelb-ccm", errors.New("a hub of a former release"))
	require.True(t, r.lookAt(t, 0).neverExpires())
	r.lookAt(t, time.Minute)
	require.Equal(t, []time.Duration{time.Hour, 30 * time.Minute, 15 * time.Minute, 10 * time.Minute}, r.asked, "the present token stays in use")
	r.refusal = nil
	require.False(t, r.lookAt(t, time.Hour).neverExpires())
	require.Len(t, r.asked, 5)
	require.Equal(t, expiring("one", noon.Add(time.Hour)), r.kept(t))
}

func TestAShorterLifetimeIsRequestedIfTheHubForbidsTheLongerOne(t *testing.T) {
	r := newTokenTest(t, expiring("one", noon))
	ask := r.request
	r.request = func(ctx context.Context, of token, lifetime time.Duration) (string, error) {
		r.refusal = nil
		if lifetime > 20*time.Minute {
			r.refusal = apierrors.NewForbidden(schema.GroupResource{Resource: "serviceaccounts"}, "kubelb-ccm", errors.New("20 minutes at most"))
		}
		return ask(ctx, of, lifetime)
	}
	r.lookAt(t, 38*time.Minute)
	require.Equal(t, []time.Duration{time.Hour, 30 * time.Minute, 15 * time.Minute}, r.asked)
	require.Equal(t, expiring("one", noon.Add(38*time.Minute)), r.kept(t))
}

func TestANewKubeconfigIsUsedWithoutARestart(t *testing.T) {
	r := newTokenTest(t, expiring("one", noon))
	r.put(t, expiring("two", noon.Add(-5*time.Minute)))
	require.Equal(t, "two", r.lookAt(t, time.Minute).accountUID, "after a rotation, though the token was made earlier")
	r.put(t, expiring("two", noon.Add(10*time.Minute)))
	require.Equal(t, noon.Add(70*time.Minute).Unix(), r.lookAt(t, 11*time.Minute).expires.Unix(), "another replica has renewed it")
	r.put(t, expiring("two", noon))
	require.Equal(t, noon.Add(70*time.Minute).Unix(), r.lookAt(t, 12*time.Minute).expires.Unix(), "an older token is not used")
	require.Equal(t, expiring("two", noon.Add(10*time.Minute)), r.kept(t))

	require.NoError(t, os.WriteFile(r.file, []byte(strings.ReplaceAll(kubeconfigWith("token: "+expiring("three", noon)), "hub.example.com", "other.example.com")), 0o600))
	require.Equal(t, "two", r.lookAt(t, 13*time.Minute).accountUID)
	require.Contains(t, r.log(), "restart kubelb-ccm to use it")
}

func TestAReplacedKubeconfigIsNotOverwritten(t *testing.T) {
	r := newTokenTest(t, expiring("one", noon))
	r.request = func(_ context.Context, of token, _ time.Duration) (string, error) {
		r.put(t, expiring("two", r.clock))
		return expiring(of.accountUID, r.clock), nil
	}
	r.lookAt(t, 38*time.Minute)
	require.Equal(t, expiring("two", noon.Add(38*time.Minute)), r.kept(t))
	require.Equal(t, "two", r.lookAt(t, 39*time.Minute).accountUID)
}

// readOnlyStore is a read-only store.
type readOnlyStore struct{ store }

func (readOnlyStore) save(context.Context, []byte, []byte) error {
	return errors.New("read-only file system")
}

func TestAStoreThatCannotBeWrittenIsLogged(t *testing.T) {
	r := newTokenTest(t, expiring("one", noon))
	r.store = readOnlyStore{r.store}
	r.lookAt(t, 38*time.Minute)
	require.Equal(t, noon.Add(140*time.Minute).Unix(), r.lookAt(t, 80*time.Minute).expires.Unix(), "it renews all the same")
	require.Contains(t, r.log(), "cannot save the renewed token")
	require.Contains(t, r.log(), "kubelb tenants kubeconfig a")
}

func TestARotatedTokenIsLogged(t *testing.T) {
	r := newTokenTest(t, expiring("one", noon))
	r.refusal = apierrors.NewUnauthorized("Unauthorized")
	r.lookAt(t, 38*time.Minute)
	require.Contains(t, r.log(), "does not accept the token any more")
	require.Contains(t, r.log(), "kubelb tenants kubeconfig a")
}

func TestSavingATokenKeepsOtherKeysOfTheSecret(t *testing.T) {
	api := fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kubelb", Name: "kubelb-cluster"}, Data: map[string][]byte{
		v1alpha1.CCMKubeconfigKey: []byte(kubeconfigWith("token: " + expiring("one", noon))), "other": []byte("x")}})
	r := newTokenTest(t, expiring("one", noon))
	r.store = &secretStore{secrets: api.CoreV1().Secrets("kubelb"), namespace: "kubelb", name: "kubelb-cluster"}
	r.lookAt(t, 38*time.Minute)
	require.Equal(t, expiring("one", noon.Add(38*time.Minute)), r.kept(t))
	secret, err := api.CoreV1().Secrets("kubelb").Get(t.Context(), "kubelb-cluster", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, "x", string(secret.Data["other"]))
	require.ErrorIs(t, r.store.save(t.Context(), []byte("before"), nil), errReplaced)
	require.ErrorContains(t, r.storeIn(nil, "kubelb-cluster"), "use NAMESPACE/NAME")
}

func TestRequestsHaveTheCurrentToken(t *testing.T) {
	var seen []string
	hub := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen = append(seen, r.Header.Get("Authorization")) }))
	defer hub.Close()
	r := newTokenTest(t, expiring("one", noon))
	client := http.Client{Transport: &tokenTransport{r.tokenSource, http.DefaultTransport}}
	for _, after := range []time.Duration{0, 38 * time.Minute} {
		r.lookAt(t, after)
		answer, err := client.Get(hub.URL)
		require.NoError(t, err)
		answer.Body.Close()
	}
	require.Equal(t, []string{"Bearer " + expiring("one", noon), "Bearer " + expiring("one", noon.Add(38*time.Minute))}, seen)
}

func TestOtherCredentialsAreNotChanged(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kubelb")
	for _, user := range []string{"token: opaque", "username: admin, password: x", "tokenFile: " + file} {
		require.NoError(t, os.WriteFile(file, []byte(kubeconfigWith(user)), 0o600))
		k, config, err := newTokenSource("tenant-a", file, funcr.New(func(string, string) {}, funcr.Options{}))
		require.NoError(t, err)
		require.Nil(t, k, user)
		require.Nil(t, config.WrapTransport)
	}
}
