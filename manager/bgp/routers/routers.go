// Package routers makes the BGP speaker keep sessions with the routers of the gateway's BGPPeer objects, and reports their state.
package routers

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/phrase"
	"kubelb.k8c.io/manager/bfd"
	"kubelb.k8c.io/manager/bgp"
)

// Options configure Routers.
type Options struct {
	Speaker *bgp.Speaker
	// Hub reads the objects that are watched, Secrets the passwords in the namespace.
	Hub       client.Reader
	Secrets   client.Reader
	Namespace string
	// Gateway is the name of this gateway.
	Gateway string
	// Changed is called when the sessions may have changed.
	Changed func()
	Log     *slog.Logger
}

// Routers makes the speaker keep the sessions. It is safe for concurrent use.
type Routers struct {
	options Options

	// allowed is closed once everything is announced. A router may have kept the routes of this gateway's former process. When a session begins, it
	// drops those that are not announced again (RFC 4724, section 4.2).
	allowed chan struct{}
	once    sync.Once
	// refresh gets a value when something may have changed.
	refresh chan struct{}
	// passwords are the passwords as they were read last, by Secret. They belong to sync.
	passwords map[string]string

	mu sync.Mutex // guards all below
	// loaded: the BGPPeers were read. problems are the reasons why there is no session with a router, by BGPPeer. stale are the reasons why the password
	// of a session could not be read again.
	loaded          bool
	problems, stale map[string]string
}

// New returns Routers that have not read the BGPPeers yet.
func New(o Options) *Routers {
	return &Routers{options: o, allowed: make(chan struct{}), refresh: make(chan struct{}, 1), passwords: map[string]string{}}
}

// AllowSessions lets sessions begin.
func (r *Routers) AllowSessions() { r.once.Do(func() { close(r.allowed) }) }

// Refresh makes Run read the objects again. It does not block.
func (r *Routers) Refresh() {
	select {
	case r.refresh <- struct{}{}:
	default:
	}
}

// refreshInterval is how often Secrets, which are not watched, and the own addresses are read again.
const refreshInterval = 30 * time.Second

// Run keeps the sessions until ctx ends.
func (r *Routers) Run(ctx context.Context) error {
	select {
	case <-r.allowed:
	case <-ctx.Done():
		return nil
	}
	for ctx.Err() == nil {
		if err := r.sync(ctx); err != nil && ctx.Err() == nil {
			r.options.Log.Error("set up BGP sessions", "error", err)
		}
		r.options.Changed()
		select {
		case <-ctx.Done():
		case <-r.refresh:
		case <-time.After(refreshInterval):
		}
	}
	return nil
}

// sync sets the peers of the speaker. A BGPPeer that is invalid gets a problem, and does not affect others.
func (r *Routers) sync(ctx context.Context) error {
	var list v1alpha1.BGPPeerList
	if err := r.options.Hub.List(ctx, &list); err != nil {
		return err
	}
	var own v1alpha1.Gateway
	if err := r.options.Hub.Get(ctx, client.ObjectKey{Name: r.options.Gateway}, &own); client.IgnoreNotFound(err) != nil {
		return err
	}
	slices.SortFunc(list.Items, func(a, b v1alpha1.BGPPeer) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	problems, stale, byAddress := map[string]string{}, map[string]string{}, map[netip.Addr]string{}
	var peers []bgp.Peer
	for i := range list.Items {
		object := &list.Items[i]
		selected, err := selects(object.Spec.GatewaySelector, own.Labels)
		if err == nil && !selected {
			continue
		}
		var peer bgp.Peer
		var unread error
		if err == nil {
			peer, unread, err = r.peer(ctx, object)
		}
		if other, exists := byAddress[peer.Address]; err == nil && exists {
			err = fmt.Errorf("spec.address: the older BGPPeer %s names the same router; delete one of them, or make their spec.gatewaySelector select different gateways", other)
		}
		if err != nil {
			problems[object.Name] = err.Error()
			continue
		}
		if unread != nil {
			stale[object.Name] = unread.Error() + "; the session keeps the password that was read before"
		}
		byAddress[peer.Address] = object.Name
		peers = append(peers, peer)
	}
	err := r.options.Speaker.SetPeers(ctx, peers)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loaded, r.problems, r.stale = true, problems, stale
	return err
}

func selects(selector *metav1.LabelSelector, gatewayLabels map[string]string) (bool, error) {
	if selector == nil {
		return true, nil
	}
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return false, fmt.Errorf("spec.gatewaySelector: %w", err)
	}
	return s.Matches(labels.Set(gatewayLabels)), nil
}

// peer returns the object as a peer of the speaker. unread is why its password could not be read again.
func (r *Routers) peer(ctx context.Context, object *v1alpha1.BGPPeer) (p bgp.Peer, unread, err error) {
	spec := &object.Spec
	address, err := netip.ParseAddr(spec.Address)
	if err != nil {
		return bgp.Peer{}, nil, fmt.Errorf("spec.address: %w", err)
	}
	p = bgp.Peer{Name: object.Name, Address: address.Unmap(), Port: uint16(spec.Port), LocalASN: uint32(spec.LocalASN), PeerASN: uint32(spec.PeerASN),
		HoldTime: spec.HoldTime.Duration, Keepalive: spec.HoldTime.Duration / 3, ConnectRetry: spec.ConnectTime.Duration, TTLSecurity: spec.TTLSecurity, Communities: spec.Communities}
	if spec.KeepaliveTime != nil {
		p.Keepalive = spec.KeepaliveTime.Duration
	}
	if spec.GracefulRestartTime != nil {
		p.GracefulRestart = spec.GracefulRestartTime.Duration
	}
	if spec.BFD != nil {
		p.BFDInterval, p.BFDMultiplier = time.Duration(spec.BFD.IntervalMilliseconds)*time.Millisecond, uint8(spec.BFD.Multiplier)
	}
	if spec.MultihopTTL != nil {
		p.MultihopTTL = uint8(min(*spec.MultihopTTL, math.MaxUint8))
	}
	if spec.LocalPreference != nil {
		preference := uint32(*spec.LocalPreference)
		p.LocalPreference = &preference
	}
	p.IPv4, p.IPv6 = slices.Contains(spec.Families, corev1.IPv4Protocol), slices.Contains(spec.Families, corev1.IPv6Protocol)
	if len(spec.Families) == 0 {
		p.IPv4, p.IPv6 = p.Address.Is4(), p.Address.Is6()
	}
	p.Password, unread, err = r.password(ctx, spec.PasswordSecret)
	return p, unread, err
}

// passwordKey is the key of the password in its Secret.
const passwordKey = "password"

// password returns the password of a Secret. If the Secret cannot be read, it returns the password that was read last, so that the session goes on, and unread
// says why. A Secret that is gone or empty ends the session, and its former password is not used again.
func (r *Routers) password(ctx context.Context, name string) (password string, unread, err error) {
	if name == "" {
		return "", nil, nil
	}
	secret, err := r.secret(ctx, name)
	if before, known := r.passwords[name]; err != nil && known && !apierrors.IsNotFound(err) {
		return before, err, nil
	}
	delete(r.passwords, name)
	if err != nil {
		return "", nil, err
	}
	password = string(secret.Data[passwordKey])
	if password == "" {
		return "", nil, fmt.Errorf("spec.passwordSecret: Secret %s/%s has no key %q", r.options.Namespace, name, passwordKey)
	}
	r.passwords[name] = password
	return password, nil, nil
}

// secret reads a Secret of the namespace.
func (r *Routers) secret(ctx context.Context, name string) (secret corev1.Secret, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	err = r.options.Secrets.Get(ctx, client.ObjectKey{Namespace: r.options.Namespace, Name: name}, &secret)
	switch {
	case apierrors.IsForbidden(err):
		err = fmt.Errorf("spec.passwordSecret: gateways may not read Secret %s/%s: add its name to gateway.passwordSecrets of the chart, and upgrade the release", r.options.Namespace, name)
	case err != nil:
		err = fmt.Errorf("spec.passwordSecret: Secret %s/%s: %w", r.options.Namespace, name, err)
	}
	return secret, err
}

// Sessions returns the state of the session with each router, by name.
func (r *Routers) Sessions() (all []v1alpha1.BGPSession) {
	sessions := r.options.Speaker.Sessions()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range sessions {
		all = append(all, toSession(s, r.stale[s.Peer.Name]))
	}
	for name, problem := range r.problems {
		all = append(all, v1alpha1.BGPSession{Peer: name, State: v1alpha1.BGPDown, Message: plain.Message(problem, 1024)})
	}
	slices.SortFunc(all, func(a, b v1alpha1.BGPSession) int { return cmp.Compare(a.Peer, b.Peer) })
	return all
}

// toSession returns a session as the Gateway object shows it. stale is why its password could not be read again, if so.
func toSession(s bgp.Session, stale string) v1alpha1.BGPSession {
	session := v1alpha1.BGPSession{Peer: s.Peer.Name, Address: s.Peer.Address.String(), State: v1alpha1.BGPDown}
	problems := []string{s.Reason}
	if s.Established {
		session.State, problems = v1alpha1.BGPEstablished, nil
	}
	for _, f := range []ipam.Family{ipam.IPv4, ipam.IPv6} {
		wanted := f == ipam.IPv4 && s.Peer.IPv4 || f == ipam.IPv6 && s.Peer.IPv6
		switch reason := s.SilentReason(f); {
		case reason == "":
			session.Families = append(session.Families, corev1.IPFamily(f.String()))
		case s.Established && wanted:
			problems = append(problems, fmt.Sprintf("%s addresses are not announced to it: %s", f, reason))
		}
	}
	problems = append(problems, s.Undetected, stale)
	problems = slices.DeleteFunc(problems, func(problem string) bool { return problem == "" })
	session.Message = plain.Message(strings.Join(problems, "; "), 1024)
	if s.Peer.BFDInterval > 0 {
		session.BFD = map[bool]string{true: bfd.Up.String(), false: bfd.Down.String()}[s.Detected]
	}
	if !s.Since.IsZero() {
		since := metav1.NewTime(s.Since.Truncate(time.Second))
		session.Since = &since
	}
	return session
}

// HasLoaded reports whether the BGPPeers were read.
func (r *Routers) HasLoaded() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.loaded
}

// SilentReason returns the reason why addresses of a family are announced to no router. It is empty if they are announced to one, or if this is not known
// yet.
func (r *Routers) SilentReason(f ipam.Family) string {
	if !r.HasLoaded() {
		return ""
	}
	reason := r.options.Speaker.SilentReason(f)
	if reason == "" {
		return ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	if len(r.problems) == 0 || len(r.options.Speaker.Sessions()) > 0 {
		all = append(all, reason)
	}
	for _, name := range slices.Sorted(maps.Keys(r.problems)) {
		all = append(all, fmt.Sprintf("BGPPeer %s: %s", name, r.problems[name]))
	}
	return phrase.Few(all, "; ")
}

// Condition returns the condition BGPEstablished of the sessions. loaded says whether the BGPPeers were read.
func Condition(sessions []v1alpha1.BGPSession, loaded bool) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionBGPEstablished, Status: metav1.ConditionTrue, Reason: "Established", Message: "there is a session with every router"}
	var down, incomplete []string
	for _, s := range sessions {
		line := strings.TrimSuffix(fmt.Sprintf("%s (%s): %s", s.Peer, s.Address, s.Message), ": ")
		switch {
		case s.State != v1alpha1.BGPEstablished:
			down = append(down, line)
		case s.Message != "":
			incomplete = append(incomplete, line)
		}
	}
	switch {
	case !loaded:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "Starting", "sessions begin once the dataplane holds everything"
	case len(sessions) == 0:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "NoPeer", "no BGPPeer names a router for this gateway: create one"
	case len(down) > 0:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "SessionDown", fmt.Sprintf("%d of %d routers have no session: %s", len(down), len(sessions), phrase.Few(down, "; "))
	case len(incomplete) > 0:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "SessionLacks", fmt.Sprintf("%d of %d sessions are incomplete: %s", len(incomplete), len(sessions), phrase.Few(incomplete, "; "))
	}
	return c
}
