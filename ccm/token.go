package ccm

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// token is a bearer token for the hub, with its claims. The claims are not verified: only the hub's API server can do that.
type token struct {
	text string
	// namespace and name are the ServiceAccount's, accountUID is its UID. They are empty if the token is not a ServiceAccount's.
	namespace, name, accountUID string
	issued, expires             time.Time // zero if the token does not expire
}

// claims are the claims of a ServiceAccount's token (RFC 7519). LastingUID is in tokens that come from a Secret.
type claims struct {
	Subject    string `json:"sub"`
	Issued     int64  `json:"iat"`
	Expires    int64  `json:"exp"`
	LastingUID string `json:"kubernetes.io/serviceaccount/service-account.uid"`
	Kubernetes struct {
		ServiceAccount struct {
			UID string `json:"uid"`
		} `json:"serviceaccount"`
	} `json:"kubernetes.io"`
}

// latestExpiry is the latest time in a token that is used: the end of the year 9999. Calculations with later times overflow.
const latestExpiry = 253402300799

// parseToken reads the claims of a token. If the token is not a JWT of a ServiceAccount, all fields but the text are empty.
func parseToken(text string) token {
	t := token{text: text}
	parts := strings.Split(text, ".")
	// The decoder ignores line breaks, but an HTTP header must not contain any.
	if len(parts) != 3 || strings.ContainsAny(text, "\r\n") {
		return t
	}
	for _, part := range parts {
		if _, err := base64.RawURLEncoding.DecodeString(part); err != nil {
			return t
		}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	var c claims
	if err != nil || json.Unmarshal(payload, &c) != nil {
		return t
	}
	subject := strings.Split(c.Subject, ":")
	if len(subject) != 4 || subject[0] != "system" || subject[1] != "serviceaccount" || subject[2] == "" || subject[3] == "" {
		return t
	}
	t.namespace, t.name, t.accountUID = subject[2], subject[3], c.Kubernetes.ServiceAccount.UID
	if t.accountUID == "" {
		t.accountUID = c.LastingUID
	}
	if c.Issued > 0 && c.Expires > c.Issued && c.Expires <= latestExpiry {
		t.issued, t.expires = time.Unix(c.Issued, 0), time.Unix(c.Expires, 0)
	}
	return t
}

func (t token) neverExpires() bool { return t.expires.IsZero() }

// lifetime is the time between issue and expiry.
func (t token) lifetime() time.Duration { return t.expires.Sub(t.issued) }

func (t token) expiredAt(now time.Time) bool { return !t.neverExpires() && !now.Before(t.expires) }

// olderThan reports whether both tokens are of the same account and t was issued before o.
func (t token) olderThan(o token) bool {
	return t.accountUID == o.accountUID && !t.neverExpires() && !o.neverExpires() && t.issued.Before(o.issued)
}

// kubeconfig is a kubeconfig, with the user and the cluster of its current context. Only the user's token may change while the CCM runs.
type kubeconfig struct {
	config *api.Config
	user   *api.AuthInfo
	hub    *api.Cluster
}

func parseKubeconfig(content []byte) (kubeconfig, error) {
	config, err := clientcmd.Load(content)
	if err != nil {
		return kubeconfig{}, err
	}
	context := config.Contexts[config.CurrentContext]
	if context == nil || config.AuthInfos[context.AuthInfo] == nil || config.Clusters[context.Cluster] == nil {
		return kubeconfig{}, fmt.Errorf("its current-context %q does not name a user and a cluster", config.CurrentContext)
	}
	return kubeconfig{config, config.AuthInfos[context.AuthInfo], config.Clusters[context.Cluster]}, nil
}

// sameHub reports whether both kubeconfigs name the same API server and CA.
func (k kubeconfig) sameHub(o kubeconfig) bool {
	return k.hub.Server == o.hub.Server && string(k.hub.CertificateAuthorityData) == string(o.hub.CertificateAuthorityData)
}

// with returns the content of the kubeconfig with another token.
func (k kubeconfig) with(t token) ([]byte, error) {
	k.user.Token = t.text
	return clientcmd.Write(*k.config)
}
