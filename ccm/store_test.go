package ccm

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"kubelb.k8c.io/api/v1alpha1"
)

func TestAKubeconfigFileIsReplacedAtomically(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kubelb")
	require.NoError(t, os.WriteFile(file, []byte("one"), 0o600))
	s := fileStore(file)
	require.NoError(t, s.save(t.Context(), []byte("one"), []byte("two")))
	content, err := s.load(t.Context())
	require.NoError(t, err)
	require.Equal(t, "two", string(content))
	require.Equal(t, "file "+file, s.String())

	require.ErrorIs(t, s.save(t.Context(), []byte("one"), []byte("three")), errReplaced, "another program has written the file")
	require.NoError(t, os.Remove(file))
	require.ErrorIs(t, s.save(t.Context(), []byte("two"), []byte("three")), os.ErrNotExist, "an operator has deleted the file")
	entries, err := os.ReadDir(filepath.Dir(file))
	require.NoError(t, err)
	require.Empty(t, entries, "no temporary file with a token is left")
}

func TestAFileThatCannotBeWrittenStaysComplete(t *testing.T) {
	folder := t.TempDir()
	file := filepath.Join(folder, "kubelb")
	require.NoError(t, os.WriteFile(file, []byte("one"), 0o600))
	// A folder in place of the file: the new content is written, and cannot be renamed.
	require.NoError(t, os.Remove(file))
	require.NoError(t, os.MkdirAll(filepath.Join(file, "inside"), 0o700))
	require.Error(t, fileStore(file).save(t.Context(), nil, []byte("two")))
	entries, err := os.ReadDir(folder)
	require.NoError(t, err)
	require.Len(t, entries, 1)
}

func TestAMissingSecretIsAnError(t *testing.T) {
	api := fake.NewClientset()
	s := &secretStore{secrets: api.CoreV1().Secrets("kubelb"), namespace: "kubelb", name: "kubelb-cluster"}
	require.Equal(t, "Secret kubelb/kubelb-cluster", s.String())
	_, err := s.load(t.Context())
	require.True(t, apierrors.IsNotFound(err))
	require.True(t, apierrors.IsNotFound(s.save(t.Context(), nil, []byte("x"))))
	_, err = api.CoreV1().Secrets("kubelb").Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kubelb", Name: "kubelb-cluster"},
		Data: map[string][]byte{v1alpha1.CCMKubeconfigKey: []byte("one")}}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.NoError(t, s.save(t.Context(), []byte("one"), []byte("two")))
	content, err := s.load(t.Context())
	require.NoError(t, err)
	require.Equal(t, "two", string(content))
}
