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

// token is what the CCM shows the management cluster, and what it says of itself. Only that API server can tell whether it is true.
type token struct {
	text string
	// namespace and name are those of the ServiceAccount, account is its UID; they are empty in a token that is no ServiceAccount's.
	namespace, name, account string
	issued, expires          time.Time // zero in one that lasts
}

// claims are those of a token of a ServiceAccount (RFC 7519), those of a Secret among them.
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

// latest is the last time that a token may name, the end of the year 9999: what is later overflows when it is reckoned with.
const latest = 253402300799

// parseToken reads what a token says of itself. Of one that is no JWT, or no ServiceAccount's, only the text is known.
func parseToken(text string) token {
	t := token{text: text}
	parts := strings.Split(text, ".")
	// The decoder passes over ends of lines, which no header may have.
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
	t.namespace, t.name, t.account = subject[2], subject[3], c.Kubernetes.ServiceAccount.UID
	if t.account == "" {
		t.account = c.LastingUID
	}
	if c.Issued > 0 && c.Expires > c.Issued && c.Expires <= latest {
		t.issued, t.expires = time.Unix(c.Issued, 0), time.Unix(c.Expires, 0)
	}
	return t
}

func (t token) lasts() bool { return t.expires.IsZero() }

// lifetime is for how long it was given.
func (t token) lifetime() time.Duration { return t.expires.Sub(t.issued) }

func (t token) endedAt(now time.Time) bool { return !t.lasts() && !now.Before(t.expires) }

// olderThan tells whether the account has got the other one later.
func (t token) olderThan(o token) bool {
	return t.account == o.account && !t.lasts() && !o.lasts() && t.issued.Before(o.issued)
}

// kubeconfig is one with a token, of which only the token may change while the CCM runs.
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
		return kubeconfig{}, fmt.Errorf("its current-context %q names no user and cluster", config.CurrentContext)
	}
	return kubeconfig{config, config.AuthInfos[context.AuthInfo], config.Clusters[context.Cluster]}, nil
}

// sameHub tells whether both are for the same API server.
func (k kubeconfig) sameHub(o kubeconfig) bool {
	return k.hub.Server == o.hub.Server && string(k.hub.CertificateAuthorityData) == string(o.hub.CertificateAuthorityData)
}

// with is the content with another token.
func (k kubeconfig) with(t token) ([]byte, error) {
	k.user.Token = t.text
	return clientcmd.Write(*k.config)
}
