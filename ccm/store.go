package ccm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	core "k8s.io/client-go/kubernetes/typed/core/v1"

	"kubelb.k8c.io/api/v1alpha1"
)

// store keeps the kubeconfig of the hub, so that the CCM finds the last token after a restart.
type store interface {
	load(context.Context) ([]byte, error)
	// save replaces the content. It returns errReplaced if the present content is not before.
	save(ctx context.Context, before, content []byte) error
	// String names the place for messages.
	fmt.Stringer
}

// errReplaced: an operator or another replica has written another kubeconfig into the store.
var errReplaced = errors.New("the kubeconfig has been replaced by another one")

// fileStore is the path of a file.
type fileStore string

var (
	_ store = fileStore("")
	_ store = &secretStore{}
)

func (f fileStore) String() string { return "file " + string(f) }

func (f fileStore) load(context.Context) ([]byte, error) { return os.ReadFile(string(f)) }

// save writes a temporary file in the same folder and renames it, so that the file is complete at any time.
func (f fileStore) save(ctx context.Context, before, content []byte) (err error) {
	if is, err := f.load(ctx); err != nil || !bytes.Equal(is, before) {
		return errors.Join(errReplaced, err)
	}
	temporary, err := os.CreateTemp(filepath.Dir(string(f)), ".kubelb-*") // only the owner may read it
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(temporary.Name())
		}
	}()
	_, err = temporary.Write(content)
	if err = errors.Join(err, temporary.Sync(), temporary.Close()); err != nil {
		return err
	}
	return os.Rename(temporary.Name(), string(f))
}

// secretStore is a Secret of the tenant cluster.
type secretStore struct {
	secrets         core.SecretInterface
	namespace, name string
}

func (s *secretStore) String() string { return fmt.Sprintf("Secret %s/%s", s.namespace, s.name) }

func (s *secretStore) load(ctx context.Context) ([]byte, error) {
	secret, err := s.secrets.Get(ctx, s.name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return secret.Data[v1alpha1.CCMKubeconfigKey], nil
}

func (s *secretStore) save(ctx context.Context, before, content []byte) error {
	secret, err := s.secrets.Get(ctx, s.name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if !bytes.Equal(secret.Data[v1alpha1.CCMKubeconfigKey], before) {
		return errReplaced
	}
	secret.Data[v1alpha1.CCMKubeconfigKey] = content
	_, err = s.secrets.Update(ctx, secret, metav1.UpdateOptions{})
	return err
}
