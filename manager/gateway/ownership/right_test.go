package ownership

import (
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/manager/clock"
	"kubelb.k8c.io/manager/heartbeat"
)

// rightInput is the input of a right.
type rightInput struct {
	leaseNumber     uint64
	holds           bool
	peerState       heartbeat.PeerState
	leased, missing bool
}

func (w *rightInput) LeaseNumber() (uint64, bool)           { return w.leaseNumber, w.holds }
func (w *rightInput) PeerState() heartbeat.PeerState        { return w.peerState }
func (w *rightInput) PeersSince(time.Duration) (bool, bool) { return w.leased, w.missing }
func (w *rightInput) right(keepWhenAlone bool) *Right {
	return w.rightWith(RightOptions{KeepWhenAlone: keepWhenAlone})
}

// rightWith returns the right of a gateway that has its Lease.
func (w *rightInput) rightWith(o RightOptions) *Right {
	o.Lease, o.Segment, o.Changed, o.Log = w, w, func() {}, slog.New(slog.DiscardHandler)
	r := NewRight(o)
	w.acquireLease()
	r.acquire()
	return r
}

// acquireLease gives the gateway a new Lease.
func (w *rightInput) acquireLease() { w.leaseNumber, w.holds = w.leaseNumber+1, true }

// expireTrust moves the right's last safe moment into the past, by trustPeriod.
func expireTrust(r *Right) { r.safeAt -= trustPeriod }

func TestWithoutALeaseAGatewayGoesOnOnlyIfNobodyTakesOver(t *testing.T) {
	for name, c := range map[string]struct {
		verdict       heartbeat.PeerState
		keepWhenAlone bool
		goesOn, keeps bool
	}{
		"a peer reaches the API":              {heartbeat.PeerReachesAPI, true, false, false},
		"no peer reaches it":                  {heartbeat.PeersWithoutAPI, false, true, true},
		"alone, keep when alone":              {heartbeat.NoPeer, true, true, true},
		"alone, withdraw when alone":          {heartbeat.NoPeer, false, false, true},
		"it has not listened for long enough": {heartbeat.Unknown, true, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := &rightInput{peerState: c.verdict}
			r := w.right(c.keepWhenAlone)
			require.True(t, r.decide())
			w.holds = false
			require.False(t, r.MayAnswer(), "a decision has to come first")
			require.Equal(t, c.goesOn, r.decide())
			require.Equal(t, c.goesOn, r.MayAnswer())
			require.Equal(t, c.keeps, r.ownsAddresses())
			require.False(t, r.holdsLease())
		})
	}
}

func TestWithdrawnAddressesComeBackOnlyWithTheNextLease(t *testing.T) {
	w := &rightInput{peerState: heartbeat.PeerReachesAPI}
	r := w.right(true)
	w.holds = false
	require.False(t, r.decide())
	w.peerState = heartbeat.PeersWithoutAPI
	require.False(t, r.decide(), "a peer may have its addresses")
	require.False(t, r.acquire())
	w.acquireLease()
	require.False(t, r.decide())
	require.False(t, r.MayAnswer(), "its addresses have to be withdrawn first")
	require.True(t, r.acquire())
	require.True(t, r.MayAnswer())
	require.True(t, r.decide())
}

func TestAGatewayInDoubtGoesOnOnceItIsSureThatNobodyTookOver(t *testing.T) {
	for name, c := range map[string]struct {
		leased, missing, keepWhenAlone bool
		goesOn, keeps                  bool
	}{
		"no peer had a Lease":                           {false, false, false, true, true},
		"a peer had a Lease":                            {true, false, true, false, false},
		"a peer is not heard any more":                  {false, true, false, false, true},
		"a peer is not heard any more, keep when alone": {false, true, true, true, true},
	} {
		for _, before := range []heartbeat.PeerState{heartbeat.Unknown, heartbeat.NoPeer} {
			t.Run(name, func(t *testing.T) {
				w := &rightInput{peerState: before, leased: c.leased, missing: c.missing}
				r := w.right(c.keepWhenAlone)
				w.holds = false
				r.decide()
				expireTrust(r)
				w.peerState = heartbeat.PeersWithoutAPI
				require.Equal(t, c.goesOn, r.decide())
				require.Equal(t, c.goesOn, r.MayAnswer())
				require.Equal(t, c.keeps, r.ownsAddresses())
			})
		}
	}
}

func TestWhenPeersReachTheAPIAgainAGatewayHasAMomentToRenewItsLease(t *testing.T) {
	w := &rightInput{peerState: heartbeat.PeersWithoutAPI}
	r := w.right(false)
	w.holds = false
	require.True(t, r.decide())
	w.peerState = heartbeat.PeerReachesAPI
	require.True(t, r.decide())
	w.acquireLease()
	require.True(t, r.decide())
	require.True(t, r.holdsLease())

	w.holds = false
	require.False(t, r.decide(), "the peer had a Lease all the time")
	require.False(t, r.ownsAddresses())
	w.acquireLease()
	require.True(t, r.acquire())
	w.holds, w.peerState = false, heartbeat.PeersWithoutAPI
	require.True(t, r.decide())
	w.peerState = heartbeat.PeerReachesAPI
	r.safeAt -= trustPeriod
	require.False(t, r.decide(), "the time to come back is over")
	require.False(t, r.ownsAddresses())
}

func TestANewLeaseKeepsTheAddressesOnlyIfNobodyCouldHaveTakenThemOver(t *testing.T) {
	w := &rightInput{peerState: heartbeat.PeersWithoutAPI}
	r := w.right(true)
	w.holds = false
	require.True(t, r.decide())
	w.acquireLease()
	require.True(t, r.MayAnswer())
	require.False(t, r.holdsLease())
	require.True(t, r.decide())
	require.True(t, r.holdsLease(), "no peer could take over in between")

	w.holds, w.peerState = false, heartbeat.Unknown
	require.False(t, r.decide())
	expireTrust(r)
	w.acquireLease()
	require.False(t, r.MayAnswer(), "the gateway stood still, and peers may have taken its addresses over")
	require.False(t, r.decide())
	require.False(t, r.ownsAddresses())
	require.True(t, r.acquire())
	require.True(t, r.MayAnswer())
}

func TestTheOnlyGatewayOfASegmentGoesOnWithItsNextLease(t *testing.T) {
	for _, missing := range []bool{false, true} {
		w := &rightInput{peerState: heartbeat.NoPeer, missing: missing}
		r := w.right(true)
		w.holds = false
		require.True(t, r.decide())
		expireTrust(r)
		w.acquireLease()
		require.Equal(t, !missing, r.decide(), "a peer that was heard before may have taken over")
		require.Equal(t, !missing, r.ownsAddresses())
	}
}

func TestIfPeersAnswerForTheSameAddressesAGatewayInDoubtGoesOn(t *testing.T) {
	w := &rightInput{peerState: heartbeat.Unknown, leased: true}
	r := w.rightWith(RightOptions{Shared: true})
	w.holds = false
	require.True(t, r.decide())
	expireTrust(r)
	w.peerState = heartbeat.PeersWithoutAPI
	require.True(t, r.decide())
	w.acquireLease()
	expireTrust(r)
	require.True(t, r.decide())
	require.True(t, r.holdsLease())
}

func TestADecisionToGoOnExpiresSoon(t *testing.T) {
	w := &rightInput{peerState: heartbeat.PeersWithoutAPI}
	r := w.right(false)
	w.holds = false
	require.True(t, r.decide())
	r.validUntil = clock.Now() - 1
	require.False(t, r.MayAnswer())
	require.True(t, r.ownsAddresses())
}
