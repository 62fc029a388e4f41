package membership

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/backends/statefile"
)

// KeySecret is the Secret with the key that signs heartbeats. It is in the namespace of the Leases.
const (
	KeySecret = "kubelb-gateways"
	keyField  = "heartbeat"
	keySize   = 32
	// keyFile holds the key on the gateway's host, for a start while the API is unreachable.
	keyFile  = "heartbeat.key"
	keyRetry = time.Second
)

// EnsureKey creates the key of heartbeats if there is none. It tries again until it succeeds or ctx ends.
func EnsureKey(ctx context.Context, c client.Client, namespace string, log *slog.Logger) error {
	for {
		err := createKey(ctx, c, namespace)
		if err == nil {
			return nil
		}
		log.Warn("create the key of heartbeats", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(5 * keyRetry):
		}
	}
}

func createKey(ctx context.Context, c client.Client, namespace string) error {
	key := make([]byte, keySize)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: KeySecret}, Data: map[string][]byte{keyField: key}}
	if err := c.Create(ctx, secret); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create Secret %s/%s, the key of the gateways' heartbeats: %w", namespace, KeySecret, err)
	}
	return nil
}

// WaitForKey reads the key of heartbeats, which the controllers create, and saves it in the directory. If it cannot be saved, the gateway works all
// the same: the file is only for a start while the API is unreachable. WaitForKey returns nil when ctx ends.
func WaitForKey(ctx context.Context, r client.Reader, namespace, dir string, log *slog.Logger) []byte {
	path := filepath.Join(dir, keyFile)
	for {
		var secret corev1.Secret
		err := r.Get(ctx, client.ObjectKey{Namespace: namespace, Name: KeySecret}, &secret)
		if key := secret.Data[keyField]; err == nil && len(key) >= keySize {
			if err := statefile.Write(path, key); err != nil {
				log.Warn("save the key of heartbeats: without it a start while the API is unreachable has no heartbeats", "error", err)
			}
			return key
		}
		if key, err := os.ReadFile(path); err == nil && len(key) >= keySize {
			return key
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(keyRetry):
		}
	}
}
