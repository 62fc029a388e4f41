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

func heart(name, key string, reaches bool) *Heart {
	return idle(name, key, reaches, 0)
}

// idle is a heart of a gateway that has had no lease for so long.
func idle(name, key string, reaches bool, since time.Duration) *Heart {
	h := New(Options{Name: name, Epoch: uint64(time.Now().UnixNano()), Reaches: func() bool { return reaches }, Idle: func() time.Duration { return since }, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	h.key = []byte(key)
	return h
}

// listened is a heart that has listened for long.
func listened(name string) *Heart {
	h := heart(name, "secret", false)
	h.since, h.looked = clock.Now()-time.Hour, clock.Now()
	return h
}

func TestTheSegmentTellsWhoReachesTheAPI(t *testing.T) {
	h := listened("a")
	require.Equal(t, Alone, h.Verdict())
	require.NoError(t, h.hear(heart("b", "secret", false).frame(mac, time.Now()), time.Now()))
	require.Equal(t, NoneReaches, h.Verdict())
	require.NoError(t, h.hear(heart("c", "secret", true).frame(mac, time.Now()), time.Now()))
	require.Equal(t, OneReaches, h.Verdict())
	begin := clock.Now()
	for at := begin; at < begin+Silence; at += Interval {
		h.verdict(at)
	}
	require.Equal(t, Alone, h.verdict(begin+Silence+1), "what was heard is over")
}

func TestAfterAPauseNothingIsSure(t *testing.T) {
	h := listened("a")
	require.NoError(t, h.hear(heart("b", "secret", false).frame(mac, time.Now()), time.Now()))
	awake := clock.Now() + time.Minute
	require.Equal(t, Unsure, h.verdict(awake))
	for at := awake; at <= awake+Silence; at += Interval {
		require.Equal(t, Unsure, h.verdict(at))
	}
	require.Equal(t, Alone, h.verdict(awake+Silence+1))
}

func TestTheSegmentTellsWhoseLeaseWasOverWhenOneStoodStill(t *testing.T) {
	h := listened("a")
	hear := func(from *Heart) { require.NoError(t, h.hear(from.frame(mac, time.Now()), time.Now())) }
	leased, missing := h.Since(clock.Now())
	require.False(t, leased || missing, "nobody is there")
	hear(idle("b", "secret", false, time.Minute))
	leased, missing = h.Since(clock.Now() - 30*time.Second)
	require.False(t, leased || missing)
	leased, _ = h.Since(clock.Now() - 2*time.Minute)
	require.True(t, leased, "its lease lasted longer than that")
	hear(idle("c", "secret", false, 0))
	leased, _ = h.Since(clock.Now() - 30*time.Second)
	require.True(t, leased, "another one has a lease")
	b, c := h.heard["b"], h.heard["c"]
	b.at, c.at = b.at-time.Minute, c.at-10*time.Second
	h.heard["b"], h.heard["c"] = b, c
	leased, missing = h.Since(clock.Now() - 5*time.Second)
	require.False(t, leased || missing, "they were gone before")
	leased, missing = h.Since(clock.Now() - 30*time.Second)
	require.False(t, leased, "what was heard once says nothing of now")
	require.True(t, missing)
}

func TestWhatProvesNothingIsNotHeard(t *testing.T) {
	now := time.Now()
	b := heart("b", "secret", true)
	good := b.frame(mac, now)
	changed := bytes.Clone(good)
	changed[ethernetHeader+1] ^= flagReaches
	for name, c := range map[string]struct {
		frame []byte
		says  string
	}{
		"another key":      {heart("b", "guess", true).frame(mac, now), "not signed"},
		"changed":          {changed, "not signed"},
		"cut short":        {good[:len(good)-1], "not signed"},
		"hardly there":     {good[:20], "too short"},
		"of another clock": {heart("b", "secret", true).frame(mac, now.Add(-2*clockSkew)), "clock"},
	} {
		t.Run(name, func(t *testing.T) {
			h := listened("a")
			require.ErrorContains(t, h.hear(c.frame, now), c.says)
			require.Equal(t, Alone, h.Verdict())
		})
	}
	h := listened("a")
	later := b.frame(mac, now)
	require.NoError(t, h.hear(later, now))
	require.ErrorContains(t, h.hear(good, now), "said that before")
	require.ErrorContains(t, h.hear(later, now), "said that before")
	require.NoError(t, listened("b").hear(good, now), "its own")
}

// begun is a heart of a process that begins at this time by its host's clock, with this state directory.
func begun(t *testing.T, name, dir string, at time.Time) *Heart {
	t.Helper()
	epoch, err := NextEpoch(dir, at)
	require.NoError(t, err)
	h := heart(name, "secret", true)
	h.options.Epoch = epoch
	return h
}

func TestAGatewayWhoseClockWasAheadIsHeardAfterARestart(t *testing.T) {
	h, dir, now := listened("a"), t.TempDir(), time.Now()
	require.NoError(t, h.hear(begun(t, "b", dir, now.Add(30*time.Second)).frame(mac, now.Add(30*time.Second)), now))
	later := now.Add(5 * time.Second) // its clock was put right, and its manager is started again
	require.NoError(t, h.hear(begun(t, "b", dir, later).frame(mac, later), later))
	require.Empty(t, h.Refused())
	again := later.Add(-time.Hour) // and again, when the clock is behind
	require.NoError(t, h.hear(begun(t, "b", dir, again).frame(mac, later.Add(time.Second)), later.Add(time.Second)))
}

func TestAGatewayThatHasLostItsStateIsHeardOnceItsClockIsPastWhatItSaid(t *testing.T) {
	h, now := listened("a"), time.Now()
	silent := clock.Now()
	ahead := now.Add(30 * time.Second)
	require.NoError(t, h.take(begun(t, "b", t.TempDir(), ahead).frame(mac, ahead), now, silent))
	anew := begun(t, "b", t.TempDir(), now)
	silent += 5 * time.Second
	require.ErrorContains(t, h.take(anew.frame(mac, now.Add(5*time.Second)), now.Add(5*time.Second), silent), "earlier run")
	silent += 30 * time.Second
	require.NoError(t, h.take(anew.frame(mac, now.Add(35*time.Second)), now.Add(35*time.Second), silent))
	require.NoError(t, h.take(anew.frame(mac, now.Add(36*time.Second)), now.Add(36*time.Second), silent))
}

// Gateways are started again, their clocks are put on and back, their state is lost, and all the time a host on the segment sends again
// whatever it has heard.
func TestNoOldFrameIsEverHeardAgain(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 7))
	for range 300 {
		h, b, wall, since := listened("a"), heart("b", "secret", true), time.Now(), clock.Now()
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
				epoch := epochAfter(b.options.Epoch, wall.Add(skew))
				b = heart("b", "secret", true)
				b.options.Epoch = epoch
			case 2:
				b = heart("b", "secret", true)
				b.options.Epoch = epochAfter(0, wall.Add(skew))
			}
			frame := b.frame(mac, wall.Add(skew))
			if h.take(frame, wall, since) == nil {
				heard++
			}
			old = append(old, frame)
			for range 5 {
				require.Error(t, h.take(old[random.IntN(len(old))], wall, since))
			}
		}
		require.Positive(t, heard)
	}
}

// A gateway that somebody else has taken over makes up others.
func TestNoMoreThanAThousandGatewaysAreKnown(t *testing.T) {
	h, wall, since := listened("a"), time.Now(), clock.Now()
	honest := heart("honest", "secret", true)
	require.NoError(t, h.take(honest.frame(mac, wall), wall, since))
	madeUp := func(n int, skew time.Duration) []byte {
		return heart(fmt.Sprintf("made-up-%d", n), "secret", true).frame(mac, wall.Add(skew))
	}
	for n := range mostGateways + 500 {
		err := h.take(madeUp(n, time.Duration(n%2)*2*clockSkew), wall, since)
		require.Equal(t, n >= mostGateways-1, err != nil && err.Error() == "1000 other gateways are heard already", "gateway %d: %v", n, err)
	}
	require.Equal(t, mostGateways, len(h.heard)+len(h.refused))
	require.NoError(t, h.take(honest.frame(mac, wall), wall, since), "a gateway that is known is heard on")

	// The others fall silent.
	old := madeUp(0, 0)
	wall, since = wall.Add(forgottenAfter+time.Second), since+forgottenAfter+time.Second
	require.NoError(t, h.take(heart("new", "secret", true).frame(mac, wall), wall, since))
	require.Len(t, h.heard, 1)
	require.ErrorContains(t, h.take(old, wall, since), "clock", "an old frame of a forgotten gateway")
}

func TestARefusalIsSaidOnceAndIsNamedUntilTheGatewayIsHeard(t *testing.T) {
	var log strings.Builder
	h, now := listened("a"), time.Now()
	h.options.Log = slog.New(slog.NewTextHandler(&log, nil))
	b := heart("b", "secret", true)
	off := now.Add(2 * clockSkew)
	for range 10 {
		h.note(h.hear(b.frame(mac, off), now))
	}
	require.Len(t, h.Refused(), 1)
	require.Equal(t, "b", h.Refused()[0].Gateway)
	require.Contains(t, h.Refused()[0].Reason, "clock")
	require.Equal(t, 1, strings.Count(log.String(), "level=WARN"), log.String())
	h.note(h.hear(b.frame(mac, now), now))
	require.Empty(t, h.Refused())
	h.note(h.hear(b.frame(mac, off), now))
	require.Empty(t, h.Refused(), "it is heard; that is something old")
	h.note(h.hear(heart("c", "guess", true).frame(mac, off), now))
	require.Empty(t, h.Refused(), "it may be of nobody")
}

func TestOneFrameByTwoInterfacesIsNoRefusal(t *testing.T) {
	h, now := listened("a"), time.Now()
	frame := heart("b", "secret", true).frame(mac, now)
	require.NoError(t, h.hear(frame, now))
	require.ErrorContains(t, h.hear(frame, now), "said that before")
	require.Empty(t, h.Refused())
}

func TestAnEpochOnlyGrowsWhateverBecomesOfItsFile(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	first, err := NextEpoch(dir, now)
	require.NoError(t, err)
	require.EqualValues(t, now.UnixNano(), first, "it is higher than those of a process that had no file")
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

// Gateways of two versions run beside each other while they are upgraded.
func TestFramesAreThoseThatEarlierVersionsKnow(t *testing.T) {
	now := time.Unix(1700000000, 0)
	b := idle("b", "secret", true, time.Second)
	b.options.Epoch = 1690000000000000000
	require.Equal(t, "036b7562656c02000000000188b5"+"0201"+"17979cfe362a0000"+"1774160bc6690000"+"0000000000000001"+"000000003b9aca00"+"0162", hex.EncodeToString(b.frame(mac, now)[:ethernetHeader+fixed+1]))
}

// signed is the frame with the right key, whatever else it says.
func signed(frame []byte) []byte {
	if len(frame) < ethernetHeader+fixed {
		return frame
	}
	end := min(ethernetHeader+fixed+int(frame[ethernetHeader+fixed-1]), len(frame))
	text := slices.Clone(frame[:end])
	return append(text, heart("b", "secret", true).sign(text[ethernetHeader:])...)
}

// A frame that is not signed changes nothing. One that is changes what is known of the gateway that it names alone, and says nothing of later
// than it came.
func FuzzFramesFromTheWire(f *testing.F) {
	whole := heart("b", "secret", true).frame(mac, time.Now())
	for _, sign := range []bool{false, true} {
		f.Add(whole, sign)
		f.Add(whole[:ethernetHeader+fixed], sign)
		f.Add(idle("b", "secret", true, -1).frame(mac, time.Now()), sign)
		f.Add(idle("b", "secret", true, math.MinInt64).frame(mac, time.Unix(0, math.MinInt64)), sign)
		f.Add([]byte{}, sign)
	}
	f.Fuzz(func(t *testing.T, frame []byte, sign bool) {
		if sign {
			frame = signed(frame)
		}
		h, at := listened("a"), time.Now()
		if sign && len(frame) >= ethernetHeader+fixed {
			at = time.Unix(0, int64(binary.BigEndian.Uint64(frame[ethernetHeader+2:]))) // nothing is refused for the clock
		}
		err := h.hear(frame, at)
		h.note(err)
		if err == nil && len(h.heard) > 0 {
			name := string(frame[ethernetHeader+fixed:][:frame[ethernetHeader+fixed-1]])
			require.Len(t, h.heard, 1)
			require.Contains(t, h.heard, name)
			require.LessOrEqual(t, h.heard[name].free, clock.Now())
			require.Error(t, h.hear(frame, at), "once")
		}
		_, _ = h.Verdict(), h.Refused()
	})
}

// Whatever the file says, an epoch is later than what it says and than the clock, and is kept.
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

func TestNothingIsSureUntilALinkHasBeenListenedTo(t *testing.T) {
	h := listened("a")
	now := h.looked
	h.link("one", true, now)
	require.Equal(t, Unsure, h.verdict(now+Silence), "it has come up")
	h.link("one", true, now+Silence)
	require.Equal(t, Alone, h.verdict(now+Silence+1))
	h.link("two", true, now+Silence+1)
	require.Equal(t, Unsure, h.verdict(now+2*Silence), "another one has")
	h.link("two", false, now+2*Silence)
	require.Equal(t, Alone, h.verdict(now+2*Silence+2), "and is gone; the first is there still")
	h.link("one", false, now+2*Silence+2)
	require.Equal(t, Unsure, h.verdict(now+2*Silence+3), "there is none")
}
