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

// KeySecret is the Secret, beside the Leases, that holds what gateways sign their heartbeats with.
const (
	KeySecret = "kubelb-gateways"
	keyField  = "heartbeat"
	keySize   = 32
	// keyFile keeps it on the gateway's host, for a start while the API is away.
	keyFile  = "heartbeat.key"
	keyRetry = time.Second
)

// MakeKey makes the gateways' common secret if there is none, and tries until that is done or ctx ends.
func MakeKey(ctx context.Context, c client.Client, namespace string, log *slog.Logger) error {
	for {
		err := makeKey(ctx, c, namespace)
		if err == nil {
			return nil
		}
		log.Warn("gateways wait for their common key", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(5 * keyRetry):
		}
	}
}

func makeKey(ctx context.Context, c client.Client, namespace string) error {
	key := make([]byte, keySize)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: KeySecret}, Data: map[string][]byte{keyField: key}}
	if err := c.Create(ctx, secret); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make Secret %s/%s, which gateways sign their heartbeats with: %w", namespace, KeySecret, err)
	}
	return nil
}

// WaitForKey reads the gateways' common secret, which a controller makes, and remembers it in the directory. Where it cannot be remembered
// the gateway works all the same: it is for a start while the API is away. WaitForKey returns nil when ctx ends.
func WaitForKey(ctx context.Context, r client.Reader, namespace, dir string, log *slog.Logger) []byte {
	remembered := filepath.Join(dir, keyFile)
	for {
		var secret corev1.Secret
		err := r.Get(ctx, client.ObjectKey{Namespace: namespace, Name: KeySecret}, &secret)
		if key := secret.Data[keyField]; err == nil && len(key) >= keySize {
			if err := statefile.Write(remembered, key); err != nil {
				log.Warn("the gateways' common key is not kept: a start while the API is away goes without it", "error", err)
			}
			return key
		}
		if key, err := os.ReadFile(remembered); err == nil && len(key) >= keySize {
			return key
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(keyRetry):
		}
	}
}
