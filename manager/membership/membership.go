// Package membership tells gateways of one another: each keeps a Lease on the hub while it works, and reads those of its peers.
//
// A lease is a promise with two sides. The gateway does nothing that it needs the lease for once the lease has ended, by its own clock
// since it last asked for it to be renewed; its peers take it for gone a little later, by their clocks since they saw it renewed. The
// clocks run on while a machine is suspended, and need not agree.
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

// annotation holds what a gateway says of itself to its peers, as JSON.
const annotation = "kubelb.k8c.io/view"

// annotationUnwritten holds why a gateway, which reaches the API, cannot write its Gateway object.
const annotationUnwritten = "kubelb.k8c.io/unwritten"

// longestUnwritten is how many bytes of that are read, and shown.
const longestUnwritten = 512

// Unwritten is why the object of a gateway is of before, although the gateway renews its Lease; empty if it is not.
func Unwritten(lease *coordinationv1.Lease) string {
	return plain.Message(lease.Annotations[annotationUnwritten], longestUnwritten)
}

// DefaultDuration is how long a lease lasts that is not renewed.
const DefaultDuration = time.Second

// renewals is how often a lease is renewed while it lasts; margin is the part of it by which clocks may run apart.
const (
	renewals = 5
	margin   = 10
)

// LastHeard tells how long ago a gateway renewed its Lease, and whether it has given it back since. Of a Lease that was never renewed
// nothing is known.
func LastHeard(lease *coordinationv1.Lease, now time.Time) (ago time.Duration, left, known bool) {
	if lease.Spec.RenewTime == nil {
		return 0, false, false
	}
	return now.Sub(lease.Spec.RenewTime.Time), lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == "", true
}

// SilentAfter is for how long nothing needs to be heard of a gateway, once its lease is over, until nobody relies any more on what it said: longer
// than clocks of hosts are apart that are right.
const SilentAfter = 15 * time.Second

// Silence is how old the last renewal of a Lease may be. after is for how long the lease has to be over.
func Silence(lease *coordinationv1.Lease, after time.Duration) time.Duration {
	if s := lease.Spec.LeaseDurationSeconds; s != nil {
		after += min(time.Duration(*s)*time.Second, LongestDuration)
	}
	return after
}

// Options are what a member needs.
type Options struct {
	// Name is the gateway's, and that of its Lease.
	Name string
	// Duration is that of the lease, in whole seconds.
	Duration time.Duration
	// Lingers: what the dataplane holds stays when the member leaves.
	Lingers bool
	// Changed is told when peers or the own lease have changed; it must not block.
	Changed func()
	Log     *slog.Logger
}

// Said is what a gateway says of itself.
type Said struct {
	election.View
	// Candidate: it is ready to answer for addresses.
	Candidate bool `json:"candidate"`
	// Leaving: it answers for no address any more, and is to be spared new connections. It is there still.
	Leaving bool `json:"leaving,omitempty"`
	// Serves: its dataplane holds everything, and it may answer, so that it can take over from others.
	Serves bool `json:"serves,omitempty"`
	// Unheard are the address families of whose addresses nobody hears from it, so that it cannot take over these.
	Unheard
	// Reached are its own addresses on the segment, at which its dataplane takes packets of connections that it knows. There are none
	// while its dataplane or its link does not work.
	Reached []netip.Addr `json:"reached,omitempty"`
}

// Unheard are address families.
type Unheard struct {
	IPv4 bool `json:"unheardIPv4,omitempty"`
	IPv6 bool `json:"unheardIPv6,omitempty"`
}

// Of tells whether the family is one of them.
func (u Unheard) Of(f ipam.Family) bool { return f == ipam.IPv4 && u.IPv4 || f == ipam.IPv6 && u.IPv6 }

func (s Said) equal(o Said) bool {
	return s.View.Equal(o.View) && s.Candidate == o.Candidate && s.Leaving == o.Leaving && s.Serves == o.Serves && s.Unheard == o.Unheard && slices.Equal(s.Reached, o.Reached)
}

// Member keeps a gateway's Lease. It is safe for concurrent use.
type Member struct {
	options  Options
	leases   coordination.LeaseInterface
	identity string
	hurry    chan struct{}
	// trouble is why the Lease, or those of others, could not be had last.
	trouble atomic.Pointer[error]

	mu     sync.Mutex // guards all below
	said   Said
	told   Said          // what peers can know of it
	looked bool          // the peers' leases were read after it was told
	until  time.Duration // by clock.Now: when the own lease ends
	term   uint64        // how many times it was got anew
	peers  map[string]*peer
	lease  *coordinationv1.Lease
	// waitsFor is who holds the Lease instead.
	waitsFor string
	// unwritten is why the gateway's object cannot be written.
	unwritten string
}

// peer is another gateway's Lease as it was last seen.
type peer struct {
	said     Said
	version  string // of the Lease object and its renewal
	gone     time.Duration
	departed bool
}

// New returns a member whose Lease is in the namespace. It has connections of its own: a request that hangs is given up together with
// its connection, so that the next one finds another way.
func New(config *rest.Config, namespace string, o Options) (*Member, error) {
	own := rest.CopyConfig(config)
	own.TLSClientConfig.NextProtos = []string{"http/1.1"}
	own.QPS = -1
	clients, err := coordination.NewForConfig(own)
	if err != nil {
		return nil, fmt.Errorf("client for Leases: %w", err)
	}
	return &Member{options: o, leases: clients.Leases(namespace), identity: o.Name + "/" + string(uuid.NewUUID()), hurry: make(chan struct{}, 1), peers: map[string]*peer{}}, nil
}

// Holds tells whether the own lease lasts, as of now.
func (m *Member) Holds() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.holds()
}

// Term is which lease it is that was held last, counted from 1 on, and whether it lasts. One that ends and is got again is another one:
// peers may have taken over what the one before was held for.
func (m *Member) Term() (term uint64, holds bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.term, m.holds()
}

// Idle is for how long no lease was held by which anything could be taken over; 0 while one is.
func (m *Member) Idle() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(0, clock.Now()-m.until)
}

// Reaches tells whether the API was reached not long ago: earlier than any lease that was renewed then can end, it says that it was not.
func (m *Member) Reaches() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.until > clock.Now()+m.options.Duration/2
}

func (m *Member) holds() bool { return m.until > clock.Now() }

// Say publishes what the gateway acts upon from now on, as soon as possible.
func (m *Member) Say(s Said) {
	m.mu.Lock()
	same := m.said.equal(s)
	m.said = s
	m.mu.Unlock()
	if !same {
		select {
		case m.hurry <- struct{}{}:
		default:
		}
	}
}

// SayUnwritten says on the Lease why the gateway's object cannot be written, from its next renewal on; empty if it can.
func (m *Member) SayUnwritten(why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unwritten = plain.Message(why, longestUnwritten)
}

// Told tells whether the lease lasts, peers can know that the gateway acts upon the view, and what Peers says is newer than that. Then
// two gateways that have begun to act upon views that contradict each other cannot both have missed it.
func (m *Member) Told(v election.View) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.holds() && m.looked && m.told.View.Equal(v)
}

// Peers are the other gateways whose leases last, by name, and which of them are candidates. It is known who they are once their leases
// have been read since the own one was renewed.
func (m *Member) Peers() (peers []election.Peer, candidates []string, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(m.peers)) {
		p := m.peers[name]
		if p.departed || p.gone <= clock.Now() {
			continue
		}
		peers = append(peers, election.Peer{Name: name, View: p.said.View})
		if p.said.Candidate {
			candidates = append(candidates, name)
		}
	}
	return peers, candidates, m.looked
}

// Other is what is known of another gateway.
type Other struct {
	Name string
	// Reached are its own addresses on the segment, at which packets of connections that it knows are taken, as it has said last.
	Reached []netip.Addr
	// Present: its lease lasts. If not, its dataplane may work still, or its host be gone.
	Present bool
	// Leaving: it has left in good order, or is about to.
	Leaving bool
	// Serves: it can take over addresses, but for those of families in Unheard.
	Serves  bool
	Unheard Unheard
}

// Stays tells whether it works, and goes on to.
func (o Other) Stays() bool { return o.Present && !o.Leaving }

// Others are the other gateways that have a Lease, by name, whether it lasts or not.
func (m *Member) Others() (others []Other) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(m.peers)) {
		p := m.peers[name]
		others = append(others, Other{Name: name, Reached: p.said.Reached, Present: !p.departed && p.gone > clock.Now(), Leaving: p.departed || p.said.Leaving, Serves: p.said.Serves, Unheard: p.said.Unheard})
	}
	return others
}

func inWords(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// Trouble is why the Lease, or those of others, could not be had last; nil if they could.
func (m *Member) Trouble() error {
	if err := m.trouble.Load(); err != nil {
		return *err
	}
	return nil
}

// Run keeps the lease until ctx ends, and then gives it back.
func (m *Member) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	every := m.options.Duration / renewals
	var before string
	for {
		select {
		case <-ctx.Done():
			return m.leave()
		case <-timer.C:
		case <-m.hurry:
		}
		began := time.Now()
		err := m.renew(ctx)
		if err = inWords("renew the gateway's Lease", err); err == nil {
			err = inWords("read the gateways' Leases", m.look(ctx))
		}
		if err != nil && ctx.Err() == nil {
			m.options.Log.Warn("membership", "error", err)
		}
		m.trouble.Store(&err)
		// A lease that ends is a change as well.
		if state := m.state(); state != before {
			before = state
			m.options.Changed()
		}
		timer.Reset(max(0, every-time.Since(began)))
	}
}

// state is a text that differs when something has changed that others act upon.
func (m *Member) state() string {
	peers, candidates, _ := m.Peers()
	m.mu.Lock()
	defer m.mu.Unlock()
	var said []Said
	for _, name := range slices.Sorted(maps.Keys(m.peers)) {
		said = append(said, m.peers[name].said)
	}
	return fmt.Sprint(m.holds(), m.looked, m.told, peers, candidates, said)
}

// renew writes the Lease. A Lease of the same name that another process has is waited for.
func (m *Member) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, m.options.Duration/2)
	defer cancel()
	m.mu.Lock()
	said, lease, unwritten := m.said, m.lease, m.unwritten
	m.mu.Unlock()
	if lease == nil {
		var err error
		if lease, err = m.acquire(ctx); err != nil || lease == nil {
			return err
		}
	}
	lease = lease.DeepCopy()
	if err := m.fill(lease, said, unwritten); err != nil {
		return err
	}
	asked := clock.Now()
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
	if clock.Now() > m.until+m.options.Duration/margin {
		m.term++ // before that, no peer took this one for gone
	}
	if !m.holds() {
		// Peers may have been as long without the API as this gateway, and get as long to come back.
		for _, p := range m.peers {
			p.gone = max(p.gone, clock.Now()+m.options.Duration+m.options.Duration/margin)
		}
	}
	m.lease, m.told, m.until, m.looked = written, said, asked+m.options.Duration, false
	return nil
}

// acquire returns the Lease to write: a new one, or one that nobody holds any more. It returns nil while somebody else does.
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
	former := m.see(*holder, lease)
	if former.gone > clock.Now() {
		if m.waitsFor != *holder {
			m.options.Log.Info("another process holds this gateway's Lease; waiting for it to end", "holder", *holder)
		}
		m.waitsFor = *holder
		return nil, nil
	}
	delete(m.peers, *holder)
	return lease, nil
}

func (m *Member) fill(lease *coordinationv1.Lease, said Said, unwritten string) error {
	text, err := json.Marshal(said)
	if err != nil {
		return err
	}
	metav1.SetMetaDataAnnotation(&lease.ObjectMeta, annotation, string(text))
	if unwritten != "" {
		metav1.SetMetaDataAnnotation(&lease.ObjectMeta, annotationUnwritten, unwritten)
	} else {
		delete(lease.Annotations, annotationUnwritten)
	}
	seconds, renewed := int32(m.options.Duration/time.Second), metav1.NowMicro()
	if lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity != m.identity {
		lease.Spec.AcquireTime = &renewed
	}
	lease.Spec.HolderIdentity, lease.Spec.LeaseDurationSeconds, lease.Spec.RenewTime = &m.identity, &seconds, &renewed
	return nil
}

// look reads the peers' Leases, all as they stand at the API server and not as a watch that may lag has them.
func (m *Member) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, m.options.Duration/2)
	defer cancel()
	list, err := m.leases.List(ctx, metav1.ListOptions{LabelSelector: Label})
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.looked = true
	there := map[string]bool{}
	for i := range list.Items {
		lease := &list.Items[i]
		holder := lease.Spec.HolderIdentity
		if holder == nil || *holder == m.identity {
			continue
		}
		name := lease.Name
		if name == m.options.Name {
			continue // an earlier process of this gateway, whose lease is waited for
		}
		there[name] = true
		m.see(name, lease)
	}
	for name, p := range m.peers {
		// One that is gone from the API is not gone: somebody may have deleted it.
		if !there[name] && p.gone <= clock.Now() {
			delete(m.peers, name)
		}
	}
	return nil
}

// see notes a Lease as it stands now; mu is held.
func (m *Member) see(name string, lease *coordinationv1.Lease) *peer {
	version := string(lease.UID) + "/" + lease.ResourceVersion
	p := m.peers[name]
	if p == nil {
		p = &peer{}
		m.peers[name] = p
	}
	if p.version == version {
		return p
	}
	duration := m.options.Duration
	if s := lease.Spec.LeaseDurationSeconds; s != nil {
		duration = min(time.Duration(*s)*time.Second, LongestDuration)
	}
	p.version, p.gone = version, clock.Now()+duration+duration/margin
	p.departed = lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == ""
	said, err := readSaid(lease.Annotations[annotation])
	if err != nil {
		m.options.Log.Warn("a gateway's Lease cannot be read: it is taken for one that answers for nothing", "gateway", name, "error", err)
	}
	p.said = said
	return p
}

// leave gives the lease back, so that peers need not wait for its end.
func (m *Member) leave() error {
	m.mu.Lock()
	m.until = 0
	lease := m.lease
	m.mu.Unlock()
	if lease == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), m.options.Duration)
	defer cancel()
	lease = lease.DeepCopy()
	m.mu.Lock()
	said := m.said
	m.mu.Unlock()
	said.Candidate, said.Leaving = false, true
	if !m.options.Lingers {
		said.Reached = nil
	}
	nobody := ""
	if err := m.fill(lease, said, ""); err != nil {
		return err
	}
	lease.Spec.HolderIdentity = &nobody
	if _, err := m.leases.Update(ctx, lease, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("give back the gateway's Lease: %w", err)
	}
	return nil
}
