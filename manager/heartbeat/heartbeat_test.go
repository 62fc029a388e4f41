package heartbeat

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/manager/clock"
)

var mac = net.HardwareAddr{2, 0, 0, 0, 0, 1}

func speaker(name, key string, reaches bool) *Speaker {
	return withoutLease(name, key, reaches, 0)
}

// withoutLease returns a speaker of a gateway that has had no Lease for the time.
func withoutLease(name, key string, reaches bool, since time.Duration) *Speaker {
	s := New(Options{Name: name, Epoch: uint64(time.Now().UnixNano()), ReachesAPI: func() bool { return reaches }, WithoutLeaseFor: func() time.Duration { return since }, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	s.key = []byte(key)
	return s
}

// listening returns a speaker that has listened for long.
func listening(name string) *Speaker {
	s := speaker(name, "secret", false)
	s.listeningSince, s.lastCheck = clock.Now()-time.Hour, clock.Now()
	return s
}

func TestTheSegmentShowsWhetherAPeerReachesTheAPI(t *testing.T) {
	s := listening("a")
	require.Equal(t, NoPeer, s.PeerState())
	require.NoError(t, s.handle(speaker("b", "secret", false).frame(mac, time.Now()), time.Now()))
	require.Equal(t, PeersWithoutAPI, s.PeerState())
	require.NoError(t, s.handle(speaker("c", "secret", true).frame(mac, time.Now()), time.Now()))
	require.Equal(t, PeerReachesAPI, s.PeerState())
	begin := clock.Now()
	for at := begin; at < begin+Silence; at += Interval {
		s.peerState(at)
	}
	require.Equal(t, NoPeer, s.peerState(begin+Silence+1), "the heartbeats are too old")
}

func TestAfterAPauseTheStateOfPeersIsUnknown(t *testing.T) {
	s := listening("a")
	require.NoError(t, s.handle(speaker("b", "secret", false).frame(mac, time.Now()), time.Now()))
	awake := clock.Now() + time.Minute
	require.Equal(t, Unknown, s.peerState(awake))
	for at := awake; at <= awake+Silence; at += Interval {
		require.Equal(t, Unknown, s.peerState(at))
	}
	require.Equal(t, NoPeer, s.peerState(awake+Silence+1))
}

func TestAGatewayThatStoodStillFindsWhetherPeersHadALease(t *testing.T) {
	s := listening("a")
	hear := func(from *Speaker) { require.NoError(t, s.handle(from.frame(mac, time.Now()), time.Now())) }
	leased, missing := s.PeersSince(clock.Now())
	require.False(t, leased || missing, "there is no peer")
	hear(withoutLease("b", "secret", false, time.Minute))
	leased, missing = s.PeersSince(clock.Now() - 30*time.Second)
	require.False(t, leased || missing)
	leased, _ = s.PeersSince(clock.Now() - 2*time.Minute)
	require.True(t, leased, "it had a Lease after that")
	hear(withoutLease("c", "secret", false, 0))
	leased, _ = s.PeersSince(clock.Now() - 30*time.Second)
	require.True(t, leased, "another peer has a Lease")
	b, c := s.peers["b"], s.peers["c"]
	b.receivedAt, c.receivedAt = b.receivedAt-time.Minute, c.receivedAt-10*time.Second
	s.peers["b"], s.peers["c"] = b, c
	leased, missing = s.PeersSince(clock.Now() - 5*time.Second)
	require.False(t, leased || missing, "both were silent before")
	leased, missing = s.PeersSince(clock.Now() - 30*time.Second)
	require.False(t, leased, "a silent peer does not count as leased")
	require.True(t, missing)
}

func TestInvalidFramesAreIgnored(t *testing.T) {
	now := time.Now()
	b := speaker("b", "secret", true)
	good := b.frame(mac, now)
	changed := bytes.Clone(good)
	changed[ethernetHeader+1] ^= flagReachesAPI
	for name, c := range map[string]struct {
		frame []byte
		says  string
	}{
		"another key":      {speaker("b", "guess", true).frame(mac, now), "not signed"},
		"changed":          {changed, "not signed"},
		"cut short":        {good[:len(good)-1], "not signed"},
		"hardly there":     {good[:20], "too short"},
		"of another clock": {speaker("b", "secret", true).frame(mac, now.Add(-2*maxClockSkew)), "clock"},
	} {
		t.Run(name, func(t *testing.T) {
			s := listening("a")
			require.ErrorContains(t, s.handle(c.frame, now), c.says)
			require.Equal(t, NoPeer, s.PeerState())
		})
	}
	s := listening("a")
	later := b.frame(mac, now)
	require.NoError(t, s.handle(later, now))
	require.ErrorContains(t, s.handle(good, now), "is not new")
	require.ErrorContains(t, s.handle(later, now), "is not new")
	require.NoError(t, listening("b").handle(good, now), "the own frames are ignored")
}

// started returns a speaker of a process that starts at this time of its host's clock, with this state directory.
func started(t *testing.T, name, dir string, at time.Time) *Speaker {
	t.Helper()
	epoch, err := NextEpoch(dir, at)
	require.NoError(t, err)
	s := speaker(name, "secret", true)
	s.options.Epoch = epoch
	return s
}

func TestAGatewayWhoseClockWasAheadIsAcceptedAfterARestart(t *testing.T) {
	s, dir, now := listening("a"), t.TempDir(), time.Now()
	require.NoError(t, s.handle(started(t, "b", dir, now.Add(30*time.Second)).frame(mac, now.Add(30*time.Second)), now))
	later := now.Add(5 * time.Second) // its clock was corrected, and its manager restarted
	require.NoError(t, s.handle(started(t, "b", dir, later).frame(mac, later), later))
	require.Empty(t, s.Refusals())
	again := later.Add(-time.Hour) // restarted again, with a clock that is behind
	require.NoError(t, s.handle(started(t, "b", dir, again).frame(mac, later.Add(time.Second)), later.Add(time.Second)))
}

func TestAGatewayThatLostItsStateIsAcceptedOnceItsClockIsPastItsFormerFrames(t *testing.T) {
	s, now := listening("a"), time.Now()
	silent := clock.Now()
	ahead := now.Add(30 * time.Second)
	require.NoError(t, s.handleAt(started(t, "b", t.TempDir(), ahead).frame(mac, ahead), now, silent))
	anew := started(t, "b", t.TempDir(), now)
	silent += 5 * time.Second
	require.ErrorContains(t, s.handleAt(anew.frame(mac, now.Add(5*time.Second)), now.Add(5*time.Second), silent), "epoch is lower")
	silent += 30 * time.Second
	require.NoError(t, s.handleAt(anew.frame(mac, now.Add(35*time.Second)), now.Add(35*time.Second), silent))
	require.NoError(t, s.handleAt(anew.frame(mac, now.Add(36*time.Second)), now.Add(36*time.Second), silent))
}

// Gateways restart, their clocks jump, their state is lost, and all the time a host on the segment replays whatever it has received.
func TestNoOldFrameIsAccepted(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 7))
	for range 300 {
		s, b, wall, since := listening("a"), speaker("b", "secret", true), time.Now(), clock.Now()
		skew := time.Duration(0)
		var old [][]byte
		heard := 0
		for range 60 {
			passed := time.Duration(random.Int64N(int64(2 * time.Second)))
			wall, since = wall.Add(passed), since+passed
			switch random.IntN(8) {
			case 0:
				skew = time.Duration(random.Int64N(int64(time.Minute))) - 30*time.Second
			case 1:
				epoch := nextEpoch(b.options.Epoch, wall.Add(skew))
				b = speaker("b", "secret", true)
				b.options.Epoch = epoch
			case 2:
				b = speaker("b", "secret", true)
				b.options.Epoch = nextEpoch(0, wall.Add(skew))
			}
			frame := b.frame(mac, wall.Add(skew))
			if s.handleAt(frame, wall, since) == nil {
				heard++
			}
			old = append(old, frame)
			for range 5 {
				require.Error(t, s.handleAt(old[random.IntN(len(old))], wall, since))
			}
		}
		require.Positive(t, heard)
	}
}

// A compromised gateway can make up others.
func TestNoMoreThanAThousandGatewaysAreKnown(t *testing.T) {
	s, wall, since := listening("a"), time.Now(), clock.Now()
	honest := speaker("honest", "secret", true)
	require.NoError(t, s.handleAt(honest.frame(mac, wall), wall, since))
	madeUp := func(n int, skew time.Duration) []byte {
		return speaker(fmt.Sprintf("made-up-%d", n), "secret", true).frame(mac, wall.Add(skew))
	}
	for n := range maxGateways + 500 {
		err := s.handleAt(madeUp(n, time.Duration(n%2)*2*maxClockSkew), wall, since)
		require.Equal(t, n >= maxGateways-1, err != nil && err.Error() == "1000 other gateways are known already", "gateway %d: %v", n, err)
	}
	require.Equal(t, maxGateways, len(s.peers)+len(s.refusals))
	require.NoError(t, s.handleAt(honest.frame(mac, wall), wall, since), "a known gateway is still accepted")

	// The others fall silent.
	old := madeUp(0, 0)
	wall, since = wall.Add(forgetAfter+time.Second), since+forgetAfter+time.Second
	require.NoError(t, s.handleAt(speaker("new", "secret", true).frame(mac, wall), wall, since))
	require.Len(t, s.peers, 1)
	require.ErrorContains(t, s.handleAt(old, wall, since), "clock", "an old frame of a forgotten gateway is refused")
}

func TestARefusalIsLoggedOnceAndNamedUntilTheGatewayIsAccepted(t *testing.T) {
	var log strings.Builder
	s, now := listening("a"), time.Now()
	s.options.Log = slog.New(slog.NewTextHandler(&log, nil))
	b := speaker("b", "secret", true)
	off := now.Add(2 * maxClockSkew)
	for range 10 {
		s.logRefusal(s.handle(b.frame(mac, off), now))
	}
	require.Len(t, s.Refusals(), 1)
	require.Equal(t, "b", s.Refusals()[0].Gateway)
	require.Contains(t, s.Refusals()[0].Reason, "clock")
	require.Equal(t, 1, strings.Count(log.String(), "level=WARN"), log.String())
	s.logRefusal(s.handle(b.frame(mac, now), now))
	require.Empty(t, s.Refusals())
	s.logRefusal(s.handle(b.frame(mac, off), now))
	require.Empty(t, s.Refusals(), "it is heard, and the other frame is an old one")
	s.logRefusal(s.handle(speaker("c", "guess", true).frame(mac, off), now))
	require.Empty(t, s.Refusals(), "anybody may have sent it")
}

func TestAFrameThatArrivesByTwoInterfacesIsNoRefusal(t *testing.T) {
	s, now := listening("a"), time.Now()
	frame := speaker("b", "secret", true).frame(mac, now)
	require.NoError(t, s.handle(frame, now))
	require.ErrorContains(t, s.handle(frame, now), "is not new")
	require.Empty(t, s.Refusals())
}

func TestAnEpochOnlyGrowsWhateverHappensToItsFile(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	first, err := NextEpoch(dir, now)
	require.NoError(t, err)
	require.EqualValues(t, now.UnixNano(), first, "higher than the epochs of processes without the file")
	for _, text := range []string{"", "x", "-1", "18446744073709551615"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, epochFile), []byte(text), 0o600))
		next, err := NextEpoch(dir, now.Add(time.Second))
		require.NoError(t, err, text)
		require.Greater(t, next, first, text)
		require.Less(t, next, uint64(math.MaxInt64), text)
	}
	_, err = NextEpoch(filepath.Join(dir, epochFile), now)
	require.Error(t, err)
}

// Gateways of two versions run side by side during an upgrade.
func TestTheFormatOfFramesIsThatOfEarlierVersions(t *testing.T) {
	now := time.Unix(1700000000, 0)
	b := withoutLease("b", "secret", true, time.Second)
	b.options.Epoch = 1690000000000000000
	require.Equal(t, "036b7562656c02000000000188b5"+"0201"+"17979cfe362a0000"+"1774160bc6690000"+"0000000000000001"+"000000003b9aca00"+"0162", hex.EncodeToString(b.frame(mac, now)[:ethernetHeader+headerLength+1]))
}

// signed returns the frame with a valid signature.
func signed(frame []byte) []byte {
	if len(frame) < ethernetHeader+headerLength {
		return frame
	}
	end := min(ethernetHeader+headerLength+int(frame[ethernetHeader+headerLength-1]), len(frame))
	text := slices.Clone(frame[:end])
	return append(text, speaker("b", "secret", true).sign(text[ethernetHeader:])...)
}

// A frame without a signature changes nothing. A signed frame changes only what is known of the gateway that it names, and no time that it sets is in
// the future.
func FuzzFramesFromTheWire(f *testing.F) {
	whole := speaker("b", "secret", true).frame(mac, time.Now())
	for _, sign := range []bool{false, true} {
		f.Add(whole, sign)
		f.Add(whole[:ethernetHeader+headerLength], sign)
		f.Add(withoutLease("b", "secret", true, -1).frame(mac, time.Now()), sign)
		f.Add(withoutLease("b", "secret", true, math.MinInt64).frame(mac, time.Unix(0, math.MinInt64)), sign)
		f.Add([]byte{}, sign)
	}
	f.Fuzz(func(t *testing.T, frame []byte, sign bool) {
		if sign {
			frame = signed(frame)
		}
		s, at := listening("a"), time.Now()
		if sign && len(frame) >= ethernetHeader+headerLength {
			at = time.Unix(0, int64(binary.BigEndian.Uint64(frame[ethernetHeader+2:]))) // so that no frame is refused by its time
		}
		err := s.handle(frame, at)
		s.logRefusal(err)
		if err == nil && len(s.peers) > 0 {
			name := string(frame[ethernetHeader+headerLength:][:frame[ethernetHeader+headerLength-1]])
			require.Len(t, s.peers, 1)
			require.Contains(t, s.peers, name)
			require.LessOrEqual(t, s.peers[name].withoutLeaseSince, clock.Now())
			require.Error(t, s.handle(frame, at), "a frame counts once")
		}
		_, _ = s.PeerState(), s.Refusals()
	})
}

// Whatever the file holds, the next epoch is higher than the saved one and the clock, and is saved.
func FuzzEpochFile(f *testing.F) {
	for _, text := range []string{"", "1", "-1", "9223372036854775806", "9223372036854775807", "18446744073709551615", "1\n"} {
		f.Add([]byte(text), int64(1700000000000000000))
	}
	f.Add([]byte("1"), int64(-1))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte, now int64) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, epochFile), text, 0o600))
		first, err := NextEpoch(dir, time.Unix(0, now))
		require.NoError(t, err)
		require.GreaterOrEqual(t, int64(first), max(now, 1))
		if kept, err := strconv.ParseUint(string(text), 10, 64); err == nil && kept < math.MaxInt64 {
			require.Greater(t, first, kept)
		}
		if first < math.MaxInt64 {
			next, err := NextEpoch(dir, time.Unix(0, now))
			require.NoError(t, err)
			require.Greater(t, next, first)
		}
	})
}

func TestTheStateOfPeersIsUnknownUntilALinkWasListenedTo(t *testing.T) {
	s := listening("a")
	now := s.lastCheck
	s.setLink("one", true, now)
	require.Equal(t, Unknown, s.peerState(now+Silence), "the interface has just come up")
	s.setLink("one", true, now+Silence)
	require.Equal(t, NoPeer, s.peerState(now+Silence+1))
	s.setLink("two", true, now+Silence+1)
	require.Equal(t, Unknown, s.peerState(now+2*Silence), "another interface has just come up")
	s.setLink("two", false, now+2*Silence)
	require.Equal(t, NoPeer, s.peerState(now+2*Silence+2), "it is down again, and the first one is up")
	s.setLink("one", false, now+2*Silence+2)
	require.Equal(t, Unknown, s.peerState(now+2*Silence+3), "no interface is up")
}
