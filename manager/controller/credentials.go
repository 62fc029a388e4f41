package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
)

// credentials are the settings for the kubeconfigs of tenants' CCMs.
type credentials struct {
	// server and ca are the URL and the CA of the hub's API server for CCMs.
	server string
	ca     []byte
	// lifetime is how long a token lasts. 0 makes tokens that do not expire.
	lifetime time.Duration
}

const (
	// longestCheckInterval is the longest time between two checks of the objects in a tenant's namespace.
	longestCheckInterval = 5 * time.Minute
	// checksPerLifetime is the number of checks in the lifetime of a token. The first check in its second half renews it.
	checksPerLifetime = 4
	// unusedTokenLimit is the time without use after which a token that does not expire is deleted. The API server notes the day of the last use.
	unusedTokenLimit = 2 * 24 * time.Hour
)

func (c credentials) checkInterval() time.Duration {
	if c.lifetime == 0 {
		return longestCheckInterval
	}
	return min(longestCheckInterval, c.lifetime/checksPerLifetime)
}

// kubeconfig returns a kubeconfig with the token, for the tenant's namespace.
func (c credentials) kubeconfig(namespace, token string) ([]byte, error) {
	return json.Marshal(clientcmdapi.Config{
		APIVersion: "v1", Kind: "Config", CurrentContext: "kubelb",
		Clusters:  []clientcmdapi.NamedCluster{{Name: "kubelb", Cluster: clientcmdapi.Cluster{Server: c.server, CertificateAuthorityData: c.ca}}},
		AuthInfos: []clientcmdapi.NamedAuthInfo{{Name: "kubelb", AuthInfo: clientcmdapi.AuthInfo{Token: token}}},
		Contexts:  []clientcmdapi.NamedContext{{Name: "kubelb", Context: clientcmdapi.Context{Cluster: "kubelb", AuthInfo: "kubelb", Namespace: namespace}}},
	})
}

// ensureCredentials keeps a kubeconfig in the tenant's namespace. Its token is valid for at least a quarter of its lifetime.
func (r *tenantReconciler) ensureCredentials(ctx context.Context, tenant *v1alpha1.Tenant, account *corev1.ServiceAccount) (metav1.Condition, error) {
	if r.credentials.lifetime == 0 {
		return r.ensurePermanentToken(ctx, tenant, account)
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: account.Namespace, Name: v1alpha1.CCMKubeconfigSecret}}
	if err := r.reader.Get(ctx, client.ObjectKeyFromObject(secret), secret); client.IgnoreNotFound(err) != nil {
		return metav1.Condition{}, fmt.Errorf("Secret %s: %w", client.ObjectKeyFromObject(secret), err)
	}
	token, expires := tokenOf(secret), secret.Annotations[v1alpha1.AnnotationTokenExpires]
	if !r.credentials.isFresh(secret, account, token, time.Now()) {
		var err error
		if token, expires, err = r.requestToken(ctx, account); err != nil {
			return metav1.Condition{}, err
		}
	}
	if err := r.writeKubeconfig(ctx, tenant, account, token, expires); err != nil {
		return metav1.Condition{}, err
	}
	return r.deleteUnusedToken(ctx, tenant, account.Namespace)
}

// isFresh reports whether the token in the Secret is of the present ServiceAccount, and in the first half of its lifetime.
func (c credentials) isFresh(secret *corev1.Secret, account *corev1.ServiceAccount, token string, now time.Time) bool {
	expires, err := time.Parse(time.RFC3339, secret.Annotations[v1alpha1.AnnotationTokenExpires])
	left := expires.Sub(now)
	return err == nil && token != "" && secret.Annotations[corev1.ServiceAccountUIDKey] == string(account.UID) && left > c.lifetime/2 && left <= c.lifetime+time.Minute
}

// tokenOf returns the token of a kubeconfig that the controllers have written.
func tokenOf(secret *corev1.Secret) string {
	var config clientcmdapi.Config
	if err := json.Unmarshal(secret.Data[v1alpha1.CCMKubeconfigKey], &config); err != nil || len(config.AuthInfos) != 1 {
		return ""
	}
	return config.AuthInfos[0].AuthInfo.Token
}

func (r *tenantReconciler) requestToken(ctx context.Context, account *corev1.ServiceAccount) (token, expires string, err error) {
	seconds := int64(r.credentials.lifetime / time.Second)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	if err := r.client.SubResource("token").Create(ctx, account, request); err != nil {
		return "", "", fmt.Errorf("token for ServiceAccount %s: %w", client.ObjectKeyFromObject(account), err)
	}
	return request.Status.Token, request.Status.ExpirationTimestamp.UTC().Format(time.RFC3339), nil
}

// writeKubeconfig writes the Secret with the kubeconfig. expires is empty for a token that does not expire.
func (r *tenantReconciler) writeKubeconfig(ctx context.Context, tenant *v1alpha1.Tenant, account *corev1.ServiceAccount, token, expires string) error {
	kubeconfig, err := r.credentials.kubeconfig(account.Namespace, token)
	if err != nil {
		return err
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: account.Namespace, Name: v1alpha1.CCMKubeconfigSecret}}
	return r.apply(ctx, tenant, secret, func() {
		secret.Data = map[string][]byte{v1alpha1.CCMKubeconfigKey: kubeconfig}
		metav1.SetMetaDataAnnotation(&secret.ObjectMeta, corev1.ServiceAccountUIDKey, string(account.UID))
		delete(secret.Annotations, v1alpha1.AnnotationTokenExpires)
		if expires != "" {
			secret.Annotations[v1alpha1.AnnotationTokenExpires] = expires
		}
	})
}

// ensurePermanentToken keeps a Secret into which the API server's token controller writes a token that does not expire, and a kubeconfig with this token.
func (r *tenantReconciler) ensurePermanentToken(ctx context.Context, tenant *v1alpha1.Tenant, account *corev1.ServiceAccount) (metav1.Condition, error) {
	token := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: account.Namespace, Name: v1alpha1.CCMName}, Type: corev1.SecretTypeServiceAccountToken}
	err := r.apply(ctx, tenant, token, func() {
		metav1.SetMetaDataAnnotation(&token.ObjectMeta, corev1.ServiceAccountNameKey, v1alpha1.CCMName)
	})
	if err != nil {
		return metav1.Condition{}, err
	}
	waiting := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: "WaitingForToken",
		Message: "the API server's token controller has not filled Secret " + v1alpha1.CCMName + " yet"}
	if of := token.Annotations[corev1.ServiceAccountUIDKey]; of != "" && of != string(account.UID) {
		// The token is of a ServiceAccount that was deleted, and is not valid any more.
		return waiting, client.IgnoreNotFound(r.client.Delete(ctx, token))
	}
	if len(token.Data[corev1.ServiceAccountTokenKey]) == 0 {
		return waiting, nil
	}
	if err := r.writeKubeconfig(ctx, tenant, account, string(token.Data[corev1.ServiceAccountTokenKey]), ""); err != nil {
		return metav1.Condition{}, err
	}
	return metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "LastingToken",
		Message: "namespace and credentials exist; the token does not expire, and lasts until it is rotated (kubelb tenants rotate " + tenant.Name + ")"}, nil
}

// deleteUnusedToken deletes the token that does not expire, of a former setting, once nobody has used it for unusedTokenLimit: the CCM has exchanged it,
// or does not run.
func (r *tenantReconciler) deleteUnusedToken(ctx context.Context, tenant *v1alpha1.Tenant, namespace string) (metav1.Condition, error) {
	ready := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Reconciled",
		Message: fmt.Sprintf("namespace and credentials exist; a CCM that has not renewed its token for %s needs a new kubeconfig: kubelb tenants kubeconfig %s", r.credentials.lifetime, tenant.Name)}
	var permanent corev1.Secret
	err := r.reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: v1alpha1.CCMName}, &permanent)
	if apierrors.IsNotFound(err) || err == nil && permanent.Type != corev1.SecretTypeServiceAccountToken {
		return ready, nil
	}
	if err != nil {
		return metav1.Condition{}, fmt.Errorf("Secret %s/%s: %w", namespace, v1alpha1.CCMName, err)
	}
	if time.Since(lastUsed(&permanent)) > unusedTokenLimit {
		return ready, client.IgnoreNotFound(r.client.Delete(ctx, &permanent))
	}
	ready.Reason = "LastingToken"
	ready.Message += fmt.Sprintf(". Secret %s has a token that does not expire, of a former release or setting: it is deleted when nobody has used it for two days, or by: kubelb tenants rotate %s", v1alpha1.CCMName, tenant.Name)
	return ready, nil
}

// lastUsedLabel is the label with the day of the last use of a Secret's token. The API server sets it.
const lastUsedLabel = "kubernetes.io/legacy-token-last-used"

// lastUsed is the end of the day on which the token was last used, or the time at which it was made.
func lastUsed(permanent *corev1.Secret) time.Time {
	day, err := time.Parse(time.DateOnly, permanent.Labels[lastUsedLabel])
	if err != nil {
		return permanent.CreationTimestamp.Time
	}
	return day.AddDate(0, 0, 1)
}
