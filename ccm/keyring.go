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

// keyring has the token by which the management cluster knows this CCM. It renews it, keeps it where a restart finds it, and takes another
// one that is put there. Every replica has one.
type keyring struct {
	tenant string
	store  store
	// request asks the management cluster for a token that lasts for so long.
	request func(context.Context, token, time.Duration) (string, error)
	log     logr.Logger
	now     func() time.Time

	// current is what requests bear.
	current atomic.Pointer[token]
	// What follows belongs to who calls look.

	// stored is what the store held when it was looked at last, and config what the CCM began with.
	stored []byte
	config kubeconfig
	// unsaved: the store does not hold the current token yet.
	unsaved bool
	// due is when the token is to be renewed.
	due time.Time
	// told is what was logged last, and when.
	told   string
	toldAt time.Time
}

const (
	// lookEvery is how often the store is looked at.
	lookEvery = 30 * time.Second
	// exchangeFor is how long a token is to last that replaces a lasting one.
	exchangeFor = time.Hour
	// exchangeEvery is how often a management cluster that gives no tokens is asked whether it does now.
	exchangeEvery = time.Hour
	// shortest is the shortest life of a token that API servers give.
	shortest = 10 * time.Minute
	// tellEvery is how often the same trouble is logged.
	tellEvery = 10 * time.Minute
	// requestTimeout bounds a request for a token, and each of the store.
	requestTimeout = 15 * time.Second
)

// newKeyring reads a kubeconfig file. It returns how the management cluster is reached: by the keyring, or, where the kubeconfig holds
// something else than a token of a ServiceAccount, as it says; then the keyring is nil.
func newKeyring(tenant, path string, log logr.Logger) (*keyring, *rest.Config, error) {
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
	k := &keyring{tenant: tenant, store: fileStore(path), log: log, now: time.Now, stored: content}
	if k.config, err = parseKubeconfig(content); err != nil {
		return nil, nil, err
	}
	k.take(first)
	config.BearerToken = ""
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return &bearer{k, next} })
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

// bearer sends requests with the token as it is then.
type bearer struct {
	keyring *keyring
	next    http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (b *bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.keyring.current.Load().text)
	return b.next.RoundTrip(r)
}

// keepIn has the token kept in a Secret of the tenant's cluster, NAMESPACE/NAME, instead of the file.
func (k *keyring) keepIn(tenant *rest.Config, secret string) error {
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

// NeedLeaderElection implements manager.LeaderElectionRunnable: a replica that stands by needs a token as well when its time comes.
func (k *keyring) NeedLeaderElection() bool { return false }

// Start looks again and again until ctx ends.
func (k *keyring) Start(ctx context.Context) error {
	for ctx.Err() == nil {
		k.look(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(lookEvery):
		}
	}
	return nil
}

// look takes what is new in the store, renews the token when its time has come, and keeps what is not kept yet.
func (k *keyring) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*requestTimeout)
	defer cancel()
	if err := k.read(ctx); err != nil {
		k.tell(err, "the kubeconfig of the management cluster cannot be read again", "where", k.store.String())
	}
	if now := k.now(); !now.Before(k.due) {
		k.renew(ctx, now)
	}
	if k.unsaved {
		k.save(ctx)
	}
}

// take has requests bear another token.
func (k *keyring) take(t token) {
	k.current.Store(&t)
	k.due = time.Time{} // a lasting one is to be exchanged
	if !t.lasts() {
		// Replicas with the same token do not all renew it at once: those that are later find the new one in the store.
		k.due = t.issued.Add(t.lifetime()/2 + rand.N(t.lifetime()/8+1))
	}
}

// read takes another token that was put into the store.
func (k *keyring) read(ctx context.Context) error {
	content, err := k.store.load(ctx)
	if err != nil || string(content) == string(k.stored) {
		return err
	}
	found, err := parseKubeconfig(content)
	if err != nil {
		return err
	}
	if !found.sameHub(k.config) {
		return errors.New("it names another API server now, or another CA: restart kubelb-ccm to use it")
	}
	t, current := parseToken(found.user.Token), k.current.Load()
	k.stored, k.config, k.unsaved = content, found, false
	switch {
	case t.text == current.text:
	case t.name == "":
		return errors.New("it holds no token of a ServiceAccount now: restart kubelb-ccm to use it")
	case t.olderThan(*current) && !current.endedAt(k.now()):
		k.unsaved = true
	default:
		k.take(t)
		k.log.Info("took the token of another kubeconfig", "where", k.store.String(), "expires", t.expires)
	}
	return nil
}

// renew gets a token for as long as the present one was for.
func (k *keyring) renew(ctx context.Context, now time.Time) {
	current := *k.current.Load()
	if current.endedAt(now) {
		k.tell(nil, "the token for the management cluster has ended: this CCM changes nothing there until it gets a new kubeconfig", "ended", current.expires, "run", k.command(), "put it into", k.store.String())
		return
	}
	lifetime := current.lifetime()
	if current.lasts() {
		lifetime = exchangeFor
	}
	text, err := k.ask(ctx, current, lifetime)
	switch {
	case current.lasts() && (apierrors.IsForbidden(err) || apierrors.IsNotFound(err)):
		k.due = now.Add(exchangeEvery)
		k.log.Info("the management cluster gives no tokens that expire: the lasting one goes on", "answer", err.Error())
		return
	case apierrors.IsUnauthorized(err):
		k.tell(err, "the management cluster does not take the token any more, as after a rotation: this CCM changes nothing there until it gets a new kubeconfig", "run", k.command(), "put it into", k.store.String())
		return
	case err != nil:
		k.tell(err, "the token for the management cluster could not be renewed; trying again", "expires", current.expires)
		return
	}
	renewed := parseToken(text)
	if renewed.namespace != current.namespace || renewed.name != current.name {
		k.tell(nil, "the management cluster answered with something else than a token of this account; the present one goes on, trying again", "expires", current.expires)
		return
	}
	k.take(renewed)
	k.unsaved = true
	k.log.Info("renewed the token for the management cluster", "expires", renewed.expires)
}

// ask requests a token, and one for less time where the management cluster allows that only: its operator may have changed that.
func (k *keyring) ask(ctx context.Context, current token, lifetime time.Duration) (string, error) {
	for {
		text, err := k.request(ctx, current, lifetime)
		if !apierrors.IsForbidden(err) || lifetime <= shortest {
			return text, err
		}
		lifetime = max(lifetime/2, shortest)
	}
}

// save keeps the current token where a restart finds it.
func (k *keyring) save(ctx context.Context) {
	current := *k.current.Load()
	content, err := k.config.with(current)
	if err == nil {
		err = k.store.save(ctx, k.stored, content)
	}
	switch {
	case errors.Is(err, errReplaced):
		k.log.Info("another kubeconfig is there; looking at it next", "where", k.store.String())
	case err != nil:
		k.tell(err, "the renewed token is not kept: after a restart later than it expires this CCM needs a new kubeconfig", "where", k.store.String(), "expires", current.expires, "run", k.command())
	default:
		k.stored, k.unsaved = content, false
	}
}

// tell logs trouble as an error, the same one now and then only.
func (k *keyring) tell(err error, message string, values ...any) {
	text := message
	if err != nil {
		text += err.Error()
	}
	if now := k.now(); text != k.told || now.Sub(k.toldAt) >= tellEvery {
		k.told, k.toldAt = text, now
		k.log.Error(err, message, values...)
	}
}

// command prints a new kubeconfig on the management cluster.
func (k *keyring) command() string { return kubeconfigCommand(k.tenant) }

func kubeconfigCommand(tenant string) string {
	return "kubelb tenants kubeconfig " + strings.TrimPrefix(tenant, v1alpha1.TenantNamespacePrefix)
}
