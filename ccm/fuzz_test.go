package ccm

import (
	"context"
	"encoding/base64"
	"math"
	"strconv"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
)

// memory is a store in memory.
type memory struct{ content []byte }

func (m *memory) String() string                       { return "memory" }
func (m *memory) load(context.Context) ([]byte, error) { return m.content, nil }
func (m *memory) save(_ context.Context, _, content []byte) error {
	m.content = content
	return nil
}

// fuzzSource is a token source. The fuzzer chooses the content of its store and the answer of its hub.
func fuzzSource(t *testing.T, content []byte, answer string) *tokenSource {
	t.Helper()
	config, err := parseKubeconfig([]byte(kubeconfigWith("token: " + expiring("one", noon))))
	require.NoError(t, err)
	k := &tokenSource{tenant: "tenant-a", store: &memory{content}, log: logr.Discard(), config: config, now: func() time.Time { return noon.Add(time.Hour - time.Second) }}
	k.request = func(context.Context, token, time.Duration) (string, error) { return answer, nil }
	k.use(parseToken(expiring("one", noon)))
	return k
}

// requireValidToken checks the token in requests after a refresh: a token of a ServiceAccount that is valid in a header.
func (k *tokenSource) requireValidToken(t *testing.T) {
	t.Helper()
	current := *k.current.Load()
	require.NotEmpty(t, current.name)
	require.NotEmpty(t, current.namespace)
	for _, c := range current.text {
		require.Greater(t, c, ' ')
		require.Less(t, c, '\x7f')
	}
	require.GreaterOrEqual(t, current.lifetime(), time.Duration(0))
	require.Equal(t, current, parseToken(current.text))
}

// claimsOf returns claims of the account of the token source.
func claimsOf(issued, expires int64) []byte {
	return []byte(`{"sub":"system:serviceaccount:tenant-a:kubelb-ccm","iat":` + strconv.FormatInt(issued, 10) + `,"exp":` + strconv.FormatInt(expires, 10) + `}`)
}

// Whatever the management cluster sends as a token, the CCM goes on, with the new token or with the present one.
func FuzzTokenFromTheHub(f *testing.F) {
	for _, claims := range [][]byte{claimsOf(noon.Unix(), noon.Unix()+3600), claimsOf(1, math.MaxInt64), claimsOf(math.MaxInt64-1, math.MaxInt64),
		claimsOf(math.MaxInt64-62135596800, math.MaxInt64-62135596800+1), []byte(`{"sub":"system:serviceaccount::"}`), []byte(`{"iat":1e400}`), {}} {
		f.Add(claims, "e30.", ".c2ln")
	}
	f.Add(claimsOf(1, 2), "e30\n.", ".\r")
	f.Add(claimsOf(1, 2), "é.", ".c2ln")
	f.Fuzz(func(t *testing.T, claims []byte, header, signature string) {
		k := fuzzSource(t, nil, header+base64.RawURLEncoding.EncodeToString(claims)+signature)
		k.renew(t.Context(), k.now())
		k.requireValidToken(t)
		k.save(t.Context())
	})
}

// Any content of the file or Secret with the kubeconfig is either used as a whole, or an error.
func FuzzKubeconfig(f *testing.F) {
	for _, user := range []string{"token: " + expiring("one", noon), "token: " + lasting("two"), "token: " + jwt(string(claimsOf(1, math.MaxInt64))), `token: "a\nb"`, ""} {
		f.Add([]byte(kubeconfigWith(user)))
	}
	f.Add([]byte("contexts: [{name: a}]\ncurrent-context: a"))
	f.Add([]byte("apiVersion: v1\nkind: Config\nclusters: null\nusers: [null]\ncontexts: [{name: \"\", context: null}]"))
	f.Fuzz(func(t *testing.T, content []byte) {
		k := fuzzSource(t, content, "")
		_ = k.readStore(t.Context())
		k.requireValidToken(t)
		c, err := parseKubeconfig(content)
		if err != nil {
			require.NotEmpty(t, err.Error())
			return
		}
		require.True(t, c.sameHub(c))
		_ = parseToken(c.user.Token)
		with, err := c.with(parseToken(expiring("three", noon)))
		require.NoError(t, err)
		again, err := parseKubeconfig(with)
		require.NoError(t, err)
		require.Equal(t, expiring("three", noon), again.user.Token)
	})
}

// A hub that an attacker controls can neither attack tenant clusters nor stop CCMs.
func TestAnInvalidTokenFromTheHubIsRequestedAgain(t *testing.T) {
	for _, answer := range []string{"", "x", "a.b.c", jwt(`{"sub":"system:serviceaccount:kube-system:admin"}`), expiring("one", noon) + "\n"} {
		k := fuzzSource(t, nil, answer)
		k.renew(t.Context(), k.now())
		require.Equal(t, expiring("one", noon), k.current.Load().text, answer)
		require.False(t, k.unsaved)
	}
	k := fuzzSource(t, nil, jwt(string(claimsOf(math.MaxInt64-62135596800, math.MaxInt64-62135596800+1))))
	k.renew(t.Context(), k.now())
	require.True(t, k.current.Load().neverExpires(), "a time that overflows counts as none")
}
