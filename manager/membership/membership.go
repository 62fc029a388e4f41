// Package membership lets gateways know one another: each gateway keeps a Lease in the hub while it runs, and reads the Leases of its peers.
//
// Both sides keep a rule. A gateway does nothing that needs its Lease after the Lease has expired, counted by its own clock from its last request for
// a renewal. Its peers count it as gone a little later, counted by their clocks from the moment when they saw the renewal. So the clocks need not
// agree. They run on while a machine is suspended.
package membership

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/core/election"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/manager/clock"
)

// Label marks the Leases of gateways.
const Label = "kubelb.k8c.io/gateway"

// viewAnnotation holds what a gateway publishes to its peers, as JSON.
const viewAnnotation = "kubelb.k8c.io/view"

// writeErrorAnnotation holds the reason why a gateway that reaches the API cannot write its Gateway object.
const writeErrorAnnotation = "kubelb.k8c.io/unwritten"

// maxWriteErrorBytes bounds how much of that reason is read and shown.
const maxWriteErrorBytes = 512

// WriteError returns the reason why a Gateway object is out of date although its gateway renews its Lease. It is empty if the object is current.
func WriteError(lease *coordinationv1.Lease) string {
	return plain.Message(lease.Annotations[writeErrorAnnotation], maxWriteErrorBytes)
}

// DefaultDuration is how long a Lease lasts without a renewal.
const DefaultDuration = time.Second

// A Lease is renewed renewalsPerLease times in its duration. Peers wait for 1/clockMargin of the duration longer, since clocks may run at different
// speeds.
const (
	renewalsPerLease = 5
	clockMargin      = 10
)

// LastRenewal returns how long ago a gateway renewed its Lease, and whether the gateway has released it since. If the Lease was never renewed, known is
// false.
func LastRenewal(lease *coordinationv1.Lease, now time.Time) (ago time.Duration, released, known bool) {
	if lease.Spec.RenewTime == nil {
		return 0, false, false
	}
	return now.Sub(lease.Spec.RenewTime.Time), lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == "", true
}

// SilentAfter is the time after the end of a Lease from which on nobody relies on what its gateway published last. It is longer than the difference
// between the clocks of hosts that keep time.
const SilentAfter = 15 * time.Second

// MaxRenewalAge returns how old the last renewal of a Lease may be, if the Lease may have expired for the time after.
func MaxRenewalAge(lease *coordinationv1.Lease, after time.Duration) time.Duration {
	if s := lease.Spec.LeaseDurationSeconds; s != nil {
		after += min(time.Duration(*s)*time.Second, MaxDuration)
	}
	return after
}

// Options configure a Member.
type Options struct {
	// Name is the name of the gateway, and of its Lease.
	Name string
	// Duration is the duration of the Lease, in whole seconds.
	Duration time.Duration
	// DataplaneStays: the dataplane keeps its state when the member ends.
	DataplaneStays bool
	// Changed is called when peers or the own Lease have changed. It must not block.
	Changed func()
	Log     *slog.Logger
}

// Published is what a gateway publishes about itself.
type Published struct {
	election.View
	// Candidate: the gateway is ready to answer for addresses.
	Candidate bool `json:"candidate"`
	// Draining: the gateway withdraws its addresses and is to get no new connections. It still runs.
	Draining bool `json:"leaving,omitempty"`
	// CanTakeOver: the dataplane of the gateway holds everything, and the gateway may answer, so that it can take addresses over.
	CanTakeOver bool `json:"serves,omitempty"`
	// The gateway announces addresses of these families to nobody, so that it cannot take such addresses over.
	SilentFamilies
	// RedirectAddresses are the gateway's own addresses on the segment. Peers redirect packets of its connections to them. There are none while the
	// dataplane or the link of the gateway does not work.
	RedirectAddresses []netip.Addr `json:"reached,omitempty"`
}

// SilentFamilies are address families that a gateway announces to nobody.
type SilentFamilies struct {
	IPv4 bool `json:"unheardIPv4,omitempty"`
	IPv6 bool `json:"unheardIPv6,omitempty"`
}

// Has reports whether the family is one of them.
func (s SilentFamilies) Has(f ipam.Family) bool {
	return f == ipam.IPv4 && s.IPv4 || f == ipam.IPv6 && s.IPv6
}

func (p Published) equal(other Published) bool {
	return p.View.Equal(other.View) && p.Candidate == other.Candidate && p.Draining == other.Draining && p.CanTakeOver == other.CanTakeOver && p.SilentFamilies == other.SilentFamilies && slices.Equal(p.RedirectAddresses, other.RedirectAddresses)
}

// Member keeps a gateway's Lease. It is safe for concurrent use.
type Member struct {
	options  Options
	leases   coordination.LeaseInterface
	identity string
	renewNow chan struct{}
	// lastError is the reason why this gateway's Lease could not be renewed, or the peers' Leases could not be read.
	lastError atomic.Pointer[error]

	mu          sync.Mutex // guards all below
	wanted      Published
	published   Published     // what the API server has
	peersRead   bool          // the peers' Leases were read after the last renewal
	expires     time.Duration // when the own Lease expires, by clock.Now
	leaseNumber uint64        // how many times the Lease was acquired
	peers       map[string]*peerLease
	lease       *coordinationv1.Lease
	// waitingFor is the other process that holds the Lease.
	waitingFor string
	// writeError is the reason why the Gateway object cannot be written.
	writeError string
}

// peerLease is the Lease of a peer as it was read last.
type peerLease struct {
	published Published
	version   string // the UID and resource version of the Lease
	expires   time.Duration
	released  bool
}

// New returns a member with a Lease in the namespace. The member uses connections of its own: a request that hangs is cancelled together with its
// connection, so that the next request uses another connection.
func New(config *rest.Config, namespace string, o Options) (*Member, error) {
	own := rest.CopyConfig(config)
	own.TLSClientConfig.NextProtos = []string{"http/1.1"}
	own.QPS = -1
	clients, err := coordination.NewForConfig(own)
	if err != nil {
		return nil, fmt.Errorf("client for Leases: %w", err)
	}
	return &Member{options: o, leases: clients.Leases(namespace), identity: o.Name + "/" + string(uuid.NewUUID()), renewNow: make(chan struct{}, 1), peers: map[string]*peerLease{}}, nil
}

// HoldsLease reports whether the own Lease is valid now.
func (m *Member) HoldsLease() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.holdsLease()
}

// LeaseNumber returns the number of the Lease that was held last, counted from 1, and whether it is valid. A Lease that expires and is acquired again
// has another number: peers may have taken over what this gateway had in between.
func (m *Member) LeaseNumber() (number uint64, holds bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leaseNumber, m.holdsLease()
}

// WithoutLeaseFor returns for how long this gateway has had no Lease, 0 while it has one.
func (m *Member) WithoutLeaseFor() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(0, clock.Now()-m.expires)
}

// ReachesAPI reports whether the API was reached recently. It turns false before a Lease that was renewed last can expire.
func (m *Member) ReachesAPI() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.expires > clock.Now()+m.options.Duration/2
}

func (m *Member) holdsLease() bool { return m.expires > clock.Now() }

// Publish publishes what the gateway acts upon from now on, as soon as possible.
func (m *Member) Publish(p Published) {
	m.mu.Lock()
	same := m.wanted.equal(p)
	m.wanted = p
	m.mu.Unlock()
	if !same {
		select {
		case m.renewNow <- struct{}{}:
		default:
		}
	}
}

// SetWriteError publishes with the next renewal why the Gateway object cannot be written. Empty means that it can be written.
func (m *Member) SetWriteError(reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writeError = plain.Message(reason, maxWriteErrorBytes)
}

// IsPublished reports whether the Lease is valid, the API server has the view, and the peers' Leases were read after that. So two gateways that begin
// to act upon contradicting views cannot both miss the view of the other.
func (m *Member) IsPublished(view election.View) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.holdsLease() && m.peersRead && m.published.View.Equal(view)
}

// ActivePeers returns the peers whose Leases are valid, by name, and the names of the candidates. They are known once the peers' Leases were read
// after the last renewal of the own Lease.
func (m *Member) ActivePeers() (peers []election.Peer, candidates []string, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(m.peers)) {
		p := m.peers[name]
		if p.released || p.expires <= clock.Now() {
			continue
		}
		peers = append(peers, election.Peer{Name: name, View: p.published.View})
		if p.published.Candidate {
			candidates = append(candidates, name)
		}
	}
	return peers, candidates, m.peersRead
}

// Peer is what is known of another gateway.
type Peer struct {
	Name string
	// RedirectAddresses are the peer's own addresses on the segment, as it published them last. It takes packets of its connections there.
	RedirectAddresses []netip.Addr
	// Active: its Lease is valid. If not, its dataplane may still work, or its host may be down.
	Active bool
	// Draining: it drains, or it has shut down.
	Draining bool
	// CanTakeOver: it can take addresses over, except those of the families in Silent.
	CanTakeOver bool
	Silent      SilentFamilies
}

// StaysActive reports whether the peer runs, and does not drain.
func (p Peer) StaysActive() bool { return p.Active && !p.Draining }

// AllPeers returns the other gateways that have a Lease, valid or not, by name.
func (m *Member) AllPeers() (peers []Peer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(m.peers)) {
		p := m.peers[name]
		peers = append(peers, Peer{Name: name, RedirectAddresses: p.published.RedirectAddresses, Active: !p.released && p.expires > clock.Now(), Draining: p.released || p.published.Draining, CanTakeOver: p.published.CanTakeOver, Silent: p.published.SilentFamilies})
	}
	return peers
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// LastError returns the reason why this gateway's Lease could not be renewed, or the peers' Leases could not be read, at the last try. It is nil
// after a success.
func (m *Member) LastError() error {
	if err := m.lastError.Load(); err != nil {
		return *err
	}
	return nil
}

// Run renews the Lease until ctx ends, and then releases it.
func (m *Member) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	interval := m.options.Duration / renewalsPerLease
	var before string
	for {
		select {
		case <-ctx.Done():
			return m.release()
		case <-timer.C:
		case <-m.renewNow:
		}
		started := time.Now()
		err := m.renew(ctx)
		if err = wrap("renew the gateway's Lease", err); err == nil {
			err = wrap("read the gateways' Leases", m.readPeers(ctx))
		}
		if err != nil && ctx.Err() == nil {
			m.options.Log.Warn("renew and read Leases", "error", err)
		}
		m.lastError.Store(&err)
		// The end of a Lease is a change, too.
		if current := m.fingerprint(); current != before {
			before = current
			m.options.Changed()
		}
		timer.Reset(max(0, interval-time.Since(started)))
	}
}

// fingerprint returns a text that changes whenever something changes that others act upon.
func (m *Member) fingerprint() string {
	peers, candidates, _ := m.ActivePeers()
	m.mu.Lock()
	defer m.mu.Unlock()
	var published []Published
	for _, name := range slices.Sorted(maps.Keys(m.peers)) {
		published = append(published, m.peers[name].published)
	}
	return fmt.Sprint(m.holdsLease(), m.peersRead, m.published, peers, candidates, published)
}

// renew writes the Lease. If another process holds a Lease of this name, it waits for the end of that Lease.
func (m *Member) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, m.options.Duration/2)
	defer cancel()
	m.mu.Lock()
	published, lease, writeError := m.wanted, m.lease, m.writeError
	m.mu.Unlock()
	if lease == nil {
		var err error
		if lease, err = m.acquire(ctx); err != nil || lease == nil {
			return err
		}
	}
	lease = lease.DeepCopy()
	if err := m.fillLease(lease, published, writeError); err != nil {
		return err
	}
	requested := clock.Now()
	var written *coordinationv1.Lease
	var err error
	if lease.ResourceVersion == "" {
		written, err = m.leases.Create(ctx, lease, metav1.CreateOptions{})
	} else {
		written, err = m.leases.Update(ctx, lease, metav1.UpdateOptions{})
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		if apierrors.IsConflict(err) || apierrors.IsNotFound(err) || apierrors.IsAlreadyExists(err) {
			m.lease = nil
		}
		return err
	}
	if clock.Now() > m.expires+m.options.Duration/clockMargin {
		m.leaseNumber++ // peers may have counted this gateway as gone
	}
	if !m.holdsLease() {
		// Peers may have been without the API for as long as this gateway. They get a whole Lease to renew theirs.
		for _, p := range m.peers {
			p.expires = max(p.expires, clock.Now()+m.options.Duration+m.options.Duration/clockMargin)
		}
	}
	m.lease, m.published, m.expires, m.peersRead = written, published, requested+m.options.Duration, false
	return nil
}

// acquire returns the Lease to write: a new one, or one that nobody holds any more. It returns nil while another process holds the Lease.
func (m *Member) acquire(ctx context.Context) (*coordinationv1.Lease, error) {
	lease, err := m.leases.Get(ctx, m.options.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: m.options.Name, Labels: map[string]string{Label: m.options.Name}}}, nil
	}
	if err != nil {
		return nil, err
	}
	holder := lease.Spec.HolderIdentity
	if holder == nil || *holder == "" || *holder == m.identity {
		return lease, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	former := m.updatePeer(*holder, lease)
	if former.expires > clock.Now() {
		if m.waitingFor != *holder {
			m.options.Log.Info("another process holds this gateway's Lease; wait until that expires", "holder", *holder)
		}
		m.waitingFor = *holder
		return nil, nil
	}
	delete(m.peers, *holder)
	return lease, nil
}

func (m *Member) fillLease(lease *coordinationv1.Lease, published Published, writeError string) error {
	text, err := json.Marshal(published)
	if err != nil {
		return err
	}
	metav1.SetMetaDataAnnotation(&lease.ObjectMeta, viewAnnotation, string(text))
	if writeError != "" {
		metav1.SetMetaDataAnnotation(&lease.ObjectMeta, writeErrorAnnotation, writeError)
	} else {
		delete(lease.Annotations, writeErrorAnnotation)
	}
	seconds, renewed := int32(m.options.Duration/time.Second), metav1.NowMicro()
	if lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity != m.identity {
		lease.Spec.AcquireTime = &renewed
	}
	lease.Spec.HolderIdentity, lease.Spec.LeaseDurationSeconds, lease.Spec.RenewTime = &m.identity, &seconds, &renewed
	return nil
}

// readPeers reads the peers' Leases from the API server, not from a watch, which may lag behind.
func (m *Member) readPeers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, m.options.Duration/2)
	defer cancel()
	list, err := m.leases.List(ctx, metav1.ListOptions{LabelSelector: Label})
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.peersRead = true
	exists := map[string]bool{}
	for i := range list.Items {
		lease := &list.Items[i]
		holder := lease.Spec.HolderIdentity
		if holder == nil || *holder == m.identity {
			continue
		}
		name := lease.Name
		if name == m.options.Name {
			continue // it belongs to an earlier process of this gateway
		}
		exists[name] = true
		m.updatePeer(name, lease)
	}
	for name, p := range m.peers {
		// A peer whose Lease was deleted may still run.
		if !exists[name] && p.expires <= clock.Now() {
			delete(m.peers, name)
		}
	}
	return nil
}

// updatePeer takes over a Lease as it was read. The caller holds mu.
func (m *Member) updatePeer(name string, lease *coordinationv1.Lease) *peerLease {
	version := string(lease.UID) + "/" + lease.ResourceVersion
	p := m.peers[name]
	if p == nil {
		p = &peerLease{}
		m.peers[name] = p
	}
	if p.version == version {
		return p
	}
	duration := m.options.Duration
	if s := lease.Spec.LeaseDurationSeconds; s != nil {
		duration = min(time.Duration(*s)*time.Second, MaxDuration)
	}
	p.version, p.expires = version, clock.Now()+duration+duration/clockMargin
	p.released = lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == ""
	published, err := parsePublished(lease.Annotations[viewAnnotation])
	if err != nil {
		m.options.Log.Warn("the Lease of a gateway is invalid: the gateway counts as one that answers for no address", "gateway", name, "error", err)
	}
	p.published = published
	return p
}

// release gives the Lease back, so that peers need not wait until it expires.
func (m *Member) release() error {
	m.mu.Lock()
	m.expires = 0
	lease := m.lease
	m.mu.Unlock()
	if lease == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), m.options.Duration)
	defer cancel()
	lease = lease.DeepCopy()
	m.mu.Lock()
	published := m.wanted
	m.mu.Unlock()
	published.Candidate, published.Draining = false, true
	if !m.options.DataplaneStays {
		published.RedirectAddresses = nil
	}
	noHolder := ""
	if err := m.fillLease(lease, published, ""); err != nil {
		return err
	}
	lease.Spec.HolderIdentity = &noHolder
	if _, err := m.leases.Update(ctx, lease, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("release the gateway's Lease: %w", err)
	}
	return nil
}
