// Package routers has the BGP speaker keep sessions with the routers that BGPPeer objects name for a gateway, and says how they are.
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

// Options are what the sessions depend on.
type Options struct {
	Speaker *bgp.Speaker
	// Hub has what is watched. Passwords are in Secrets of the namespace.
	Hub       client.Reader
	Secrets   client.Reader
	Namespace string
	// Gateway is the name of this one.
	Gateway string
	// Changed is called when the sessions may be others.
	Changed func()
	Log     *slog.Logger
}

// Routers has the speaker keep the sessions. It is safe for concurrent use.
type Routers struct {
	options Options

	// begin is closed once everything is announced that is to be: a router that has kept the routes of this gateway's former process
	// takes those that it is not told then for gone (RFC 4724, section 4.2).
	begin chan struct{}
	once  sync.Once
	// again tells that something may have changed.
	again chan struct{}
	// passwords are the Secrets' by name, as they were read last. They belong to run.
	passwords map[string]string

	mu sync.Mutex // guards those below
	// looked: the BGPPeers have been looked at. problems are why there is no session with a router, by BGPPeer.
	looked   bool
	problems map[string]string
}

// New returns one that has not looked for BGPPeers yet.
func New(o Options) *Routers {
	return &Routers{options: o, begin: make(chan struct{}), again: make(chan struct{}, 1), passwords: map[string]string{}}
}

// MayBegin lets sessions begin.
func (r *Routers) MayBegin() { r.once.Do(func() { close(r.begin) }) }

// Look has the objects looked at again. It does not block.
func (r *Routers) Look() {
	select {
	case r.again <- struct{}{}:
	default:
	}
}

// lookEvery is how often Secrets are read again, which are not watched, and the own addresses are looked at.
const lookEvery = 30 * time.Second

// Run keeps the sessions until ctx ends.
func (r *Routers) Run(ctx context.Context) error {
	select {
	case <-r.begin:
	case <-ctx.Done():
		return nil
	}
	for ctx.Err() == nil {
		if err := r.sync(ctx); err != nil && ctx.Err() == nil {
			r.options.Log.Error("BGP peers", "error", err)
		}
		r.options.Changed()
		select {
		case <-ctx.Done():
		case <-r.again:
		case <-time.After(lookEvery):
		}
	}
	return nil
}

// sync gives the speaker its peers. A router that cannot be one is named with the reason; others are not disturbed.
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
	problems, taken := map[string]string{}, map[netip.Addr]string{}
	var peers []bgp.Peer
	for i := range list.Items {
		object := &list.Items[i]
		chosen, err := chosenBy(object.Spec.GatewaySelector, own.Labels)
		if err == nil && !chosen {
			continue
		}
		var peer bgp.Peer
		if err == nil {
			peer, err = r.peer(ctx, object)
		}
		if other, is := taken[peer.Address]; err == nil && is {
			err = fmt.Errorf("spec.address: BGPPeer %s, which is older, names the same router; delete one of them, or set their spec.gatewaySelector apart", other)
		}
		if err != nil {
			problems[object.Name] = err.Error()
			continue
		}
		taken[peer.Address] = object.Name
		peers = append(peers, peer)
	}
	err := r.options.Speaker.SetPeers(ctx, peers)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.looked, r.problems = true, problems
	return err
}

func chosenBy(selector *metav1.LabelSelector, of map[string]string) (bool, error) {
	if selector == nil {
		return true, nil
	}
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return false, fmt.Errorf("spec.gatewaySelector: %w", err)
	}
	return s.Matches(labels.Set(of)), nil
}

// peer is the object in the speaker's terms.
func (r *Routers) peer(ctx context.Context, object *v1alpha1.BGPPeer) (bgp.Peer, error) {
	spec := &object.Spec
	address, err := netip.ParseAddr(spec.Address)
	if err != nil {
		return bgp.Peer{}, fmt.Errorf("spec.address: %w", err)
	}
	p := bgp.Peer{Name: object.Name, Address: address.Unmap(), Port: uint16(spec.Port), LocalASN: uint32(spec.LocalASN), PeerASN: uint32(spec.PeerASN),
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
	p.Password, err = r.password(ctx, spec.PasswordSecret)
	return p, err
}

// passwordKey is that of the password in its Secret.
const passwordKey = "password"

// password reads a Secret. While the API is away what was read before counts.
func (r *Routers) password(ctx context.Context, name string) (string, error) {
	if name == "" {
		return "", nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var secret corev1.Secret
	err := r.options.Secrets.Get(ctx, client.ObjectKey{Namespace: r.options.Namespace, Name: name}, &secret)
	if before, known := r.passwords[name]; err != nil && known && client.IgnoreNotFound(err) != nil {
		return before, nil
	}
	if apierrors.IsForbidden(err) {
		return "", fmt.Errorf("spec.passwordSecret: gateways may not read Secret %s/%s: add it to gateway.passwordSecrets of the chart, and upgrade", r.options.Namespace, name)
	}
	if err != nil {
		return "", fmt.Errorf("spec.passwordSecret: Secret %s/%s: %w", r.options.Namespace, name, err)
	}
	password := string(secret.Data[passwordKey])
	if password == "" {
		return "", fmt.Errorf("spec.passwordSecret: Secret %s/%s has no key %q", r.options.Namespace, name, passwordKey)
	}
	r.passwords[name] = password
	return password, nil
}

// Sessions are all routers with what has become of them, by name.
func (r *Routers) Sessions() (all []v1alpha1.BGPSession) {
	for _, s := range r.options.Speaker.Sessions() {
		all = append(all, sessionOf(s))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, problem := range r.problems {
		all = append(all, v1alpha1.BGPSession{Peer: name, State: v1alpha1.BGPDown, Message: plain.Message(problem, 1024)})
	}
	slices.SortFunc(all, func(a, b v1alpha1.BGPSession) int { return cmp.Compare(a.Peer, b.Peer) })
	return all
}

// sessionOf is a session as the Gateway object says it.
func sessionOf(s bgp.Session) v1alpha1.BGPSession {
	is := v1alpha1.BGPSession{Peer: s.Peer.Name, Address: s.Peer.Address.String(), State: v1alpha1.BGPDown}
	lacks := []string{s.Reason}
	if s.Established {
		is.State, lacks = v1alpha1.BGPEstablished, nil
	}
	for _, f := range []ipam.Family{ipam.IPv4, ipam.IPv6} {
		wanted := f == ipam.IPv4 && s.Peer.IPv4 || f == ipam.IPv6 && s.Peer.IPv6
		switch untold := s.Untold(f); {
		case untold == "":
			is.Families = append(is.Families, corev1.IPFamily(f.String()))
		case s.Established && wanted:
			lacks = append(lacks, fmt.Sprintf("not told of %s addresses: %s", f, untold))
		}
	}
	if s.Undetected != "" {
		lacks = append(lacks, s.Undetected)
	}
	is.Message = plain.Message(strings.Join(lacks, "; "), 1024)
	if s.Peer.BFDInterval > 0 {
		is.BFD = map[bool]string{true: bfd.Up.String(), false: bfd.Down.String()}[s.Detected]
	}
	if !s.Since.IsZero() {
		since := metav1.NewTime(s.Since.Truncate(time.Second))
		is.Since = &since
	}
	return is
}

// HasLooked tells whether the BGPPeers have been looked at.
func (r *Routers) HasLooked() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.looked
}

// Silent is why no router is told of addresses of a family, empty if one is, or it is not known yet.
func (r *Routers) Silent(f ipam.Family) string {
	if !r.HasLooked() {
		return ""
	}
	why := r.options.Speaker.Silent(f)
	if why == "" {
		return ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	if len(r.problems) == 0 || len(r.options.Speaker.Sessions()) > 0 {
		all = append(all, why)
	}
	for _, name := range slices.Sorted(maps.Keys(r.problems)) {
		all = append(all, fmt.Sprintf("BGPPeer %s: %s", name, r.problems[name]))
	}
	return phrase.Few(all, "; ")
}

// Condition says whether all is well with the sessions. looked tells whether it is known which routers there are.
func Condition(sessions []v1alpha1.BGPSession, looked bool) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionBGPEstablished, Status: metav1.ConditionTrue, Reason: "Established", Message: "there is a session with every router"}
	var down, lacking []string
	for _, s := range sessions {
		line := strings.TrimSuffix(fmt.Sprintf("%s (%s): %s", s.Peer, s.Address, s.Message), ": ")
		switch {
		case s.State != v1alpha1.BGPEstablished:
			down = append(down, line)
		case s.Message != "":
			lacking = append(lacking, line)
		}
	}
	switch {
	case !looked:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "Starting", "sessions begin once the dataplane holds everything"
	case len(sessions) == 0:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "NoPeer", "no BGPPeer names a router for this gateway: create one"
	case len(down) > 0:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "SessionDown", fmt.Sprintf("%d of %d routers have no session: %s", len(down), len(sessions), phrase.Few(down, "; "))
	case len(lacking) > 0:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "SessionLacks", fmt.Sprintf("%d of %d sessions lack something: %s", len(lacking), len(sessions), phrase.Few(lacking, "; "))
	}
	return c
}
