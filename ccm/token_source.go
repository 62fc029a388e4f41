package ccm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	core "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"kubelb.k8c.io/api/v1alpha1"
)

// tokenSource has the CCM's token for the hub. It renews the token, keeps it in a store for restarts, and uses another token that an operator puts into the
// store. Each replica has one.
type tokenSource struct {
	tenant string
	store  store
	// request asks the hub for a token with this lifetime.
	request func(context.Context, token, time.Duration) (string, error)
	log     logr.Logger
	now     func() time.Time

	// current is the token in requests.
	current atomic.Pointer[token]
	// Only the goroutine that calls refresh uses the fields below.

	// stored is the content of the store when it was last read or written, and config is the same, parsed.
	stored []byte
	config kubeconfig
	// unsaved: the store does not have the current token yet.
	unsaved bool
	// renewAt is when the token has to be renewed.
	renewAt time.Time
	// lastError is the error that was logged last, and lastErrorAt is when.
	lastError   string
	lastErrorAt time.Time
}

const (
	// refreshEvery is the interval at which the store is read.
	refreshEvery = 30 * time.Second
	// exchangedLifetime is the lifetime of the token that replaces a token without expiry.
	exchangedLifetime = time.Hour
	// exchangeEvery is the interval of requests for a token on a hub that gives none.
	exchangeEvery = time.Hour
	// minLifetime is the shortest lifetime of a token that API servers give.
	minLifetime = 10 * time.Minute
	// sameErrorEvery is the interval at which the same error is logged again.
	sameErrorEvery = 10 * time.Minute
	// requestTimeout bounds each request for a token, and each request of the store.
	requestTimeout = 15 * time.Second
)

// newTokenSource reads the hub's kubeconfig from a file. Requests with the returned configuration bear the current token of the tokenSource. If the kubeconfig has
// other credentials than a ServiceAccount's token, the configuration uses those, and the tokenSource is nil.
func newTokenSource(tenant, path string, log logr.Logger) (*tokenSource, *rest.Config, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, nil, err
	}
	first := parseToken(config.BearerToken)
	if first.name == "" || config.BearerTokenFile != "" {
		return nil, config, nil
	}
	k := &tokenSource{tenant: tenant, store: fileStore(path), log: log, now: time.Now, stored: content}
	if k.config, err = parseKubeconfig(content); err != nil {
		return nil, nil, err
	}
	k.use(first)
	config.BearerToken = ""
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return &tokenTransport{k, next} })
	accounts, err := core.NewForConfig(config)
	if err != nil {
		return nil, nil, err
	}
	k.request = func(ctx context.Context, t token, lifetime time.Duration) (string, error) {
		seconds := int64(lifetime / time.Second)
		request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
		answer, err := accounts.ServiceAccounts(t.namespace).CreateToken(ctx, t.name, request, metav1.CreateOptions{})
		if err != nil {
			return "", err
		}
		return answer.Status.Token, nil
	}
	return k, config, nil
}

// tokenTransport adds the current token to each request.
type tokenTransport struct {
	source *tokenSource
	next   http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (b *tokenTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.source.current.Load().text)
	return b.next.RoundTrip(r)
}

// storeIn makes a Secret of the tenant cluster the store, instead of the file. secret is NAMESPACE/NAME.
func (k *tokenSource) storeIn(tenant *rest.Config, secret string) error {
	namespace, name, ok := strings.Cut(secret, "/")
	if !ok || namespace == "" || name == "" {
		return fmt.Errorf("--kubelb-kubeconfig-secret=%s: use NAMESPACE/NAME", secret)
	}
	api, err := core.NewForConfig(tenant)
	if err != nil {
		return err
	}
	k.store = &secretStore{secrets: api.Secrets(namespace), namespace: namespace, name: name}
	return nil
}

// NeedLeaderElection implements manager.LeaderElectionRunnable. A replica on standby renews its token, too: it needs one when it is elected.
func (k *tokenSource) NeedLeaderElection() bool { return false }

// Start keeps the token valid until ctx ends.
func (k *tokenSource) Start(ctx context.Context) error {
	for ctx.Err() == nil {
		k.refresh(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(refreshEvery):
		}
	}
	return nil
}

// refresh takes a new token from the store, renews the token if its time has come, and saves a token that is not in the store yet.
func (k *tokenSource) refresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*requestTimeout)
	defer cancel()
	if err := k.readStore(ctx); err != nil {
		k.logError(err, "cannot read the kubeconfig of the management cluster again", "where", k.store.String())
	}
	if now := k.now(); !now.Before(k.renewAt) {
		k.renew(ctx, now)
	}
	if k.unsaved {
		k.save(ctx)
	}
}

// use makes t the token in requests.
func (k *tokenSource) use(t token) {
	k.current.Store(&t)
	k.renewAt = time.Time{} // a token without expiry is exchanged at once
	if !t.neverExpires() {
		// Replicas with the same token renew it at different times. The first one saves the new token, and the others find it in the store.
		k.renewAt = t.issued.Add(t.lifetime()/2 + rand.N(t.lifetime()/8+1))
	}
}

// readStore uses another token that an operator has put into the store.
func (k *tokenSource) readStore(ctx context.Context) error {
	content, err := k.store.load(ctx)
	if err != nil || string(content) == string(k.stored) {
		return err
	}
	found, err := parseKubeconfig(content)
	if err != nil {
		return err
	}
	if !found.sameHub(k.config) {
		return errors.New("the new kubeconfig names another API server or another CA: restart kubelb-ccm to use it")
	}
	t, current := parseToken(found.user.Token), k.current.Load()
	k.stored, k.config, k.unsaved = content, found, false
	switch {
	case t.text == current.text:
	case t.name == "":
		return errors.New("the new kubeconfig has no token of a ServiceAccount: restart kubelb-ccm to use it")
	case t.olderThan(*current) && !current.expiredAt(k.now()):
		k.unsaved = true
	default:
		k.use(t)
		k.log.Info("now using the token of a new kubeconfig", "where", k.store.String(), "expires", t.expires)
	}
	return nil
}

// renew gets a new token with the lifetime of the current one.
func (k *tokenSource) renew(ctx context.Context, now time.Time) {
	current := *k.current.Load()
	if current.expiredAt(now) {
		k.logError(nil, "the token for the management cluster has expired: this CCM changes nothing there until it gets a new kubeconfig", "expired", current.expires, "run", k.command(), "put it into", k.store.String())
		return
	}
	lifetime := current.lifetime()
	if current.neverExpires() {
		lifetime = exchangedLifetime
	}
	text, err := k.requestToken(ctx, current, lifetime)
	switch {
	case current.neverExpires() && (apierrors.IsForbidden(err) || apierrors.IsNotFound(err)):
		k.renewAt = now.Add(exchangeEvery)
		k.log.Info("the management cluster gives no tokens that expire: the token without expiry stays in use", "answer", err.Error())
		return
	case apierrors.IsUnauthorized(err):
		k.logError(err, "the management cluster does not accept the token any more, for example after a rotation: this CCM changes nothing there until it gets a new kubeconfig", "run", k.command(), "put it into", k.store.String())
		return
	case err != nil:
		k.logError(err, "cannot renew the token for the management cluster; trying again", "expires", current.expires)
		return
	}
	renewed := parseToken(text)
	if renewed.namespace != current.namespace || renewed.name != current.name {
		k.logError(nil, "the management cluster did not answer with a token of this ServiceAccount; the current token stays in use, trying again", "expires", current.expires)
		return
	}
	k.use(renewed)
	k.unsaved = true
	k.log.Info("renewed the token for the management cluster", "expires", renewed.expires)
}

// requestToken requests a token. If the hub forbids this lifetime, it requests shorter ones: the hub's operator may have lowered the limit.
func (k *tokenSource) requestToken(ctx context.Context, current token, lifetime time.Duration) (string, error) {
	for {
		text, err := k.request(ctx, current, lifetime)
		if !apierrors.IsForbidden(err) || lifetime <= minLifetime {
			return text, err
		}
		lifetime = max(lifetime/2, minLifetime)
	}
}

// save writes the current token into the store.
func (k *tokenSource) save(ctx context.Context) {
	current := *k.current.Load()
	content, err := k.config.with(current)
	if err == nil {
		err = k.store.save(ctx, k.stored, content)
	}
	switch {
	case errors.Is(err, errReplaced):
		k.log.Info("the kubeconfig in the store has been replaced; reading it next", "where", k.store.String())
	case err != nil:
		k.logError(err, "cannot save the renewed token: after a restart that comes later than its expiry this CCM needs a new kubeconfig", "where", k.store.String(), "expires", current.expires, "run", k.command())
	default:
		k.stored, k.unsaved = content, false
	}
}

// logError logs an error. It logs the same error again only after sameErrorEvery.
func (k *tokenSource) logError(err error, message string, values ...any) {
	text := message
	if err != nil {
		text += err.Error()
	}
	if now := k.now(); text != k.lastError || now.Sub(k.lastErrorAt) >= sameErrorEvery {
		k.lastError, k.lastErrorAt = text, now
		k.log.Error(err, message, values...)
	}
}

// command is the command that prints a new kubeconfig on the hub.
func (k *tokenSource) command() string { return kubeconfigCommand(k.tenant) }

func kubeconfigCommand(tenant string) string {
	return "kubelb tenants kubeconfig " + strings.TrimPrefix(tenant, v1alpha1.TenantNamespacePrefix)
}
