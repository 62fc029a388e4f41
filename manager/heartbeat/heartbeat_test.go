package heartbeat

import (
	"bytes"
	"io"
	"log/slog"
	"net"
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
	h := New(Options{Name: name, Reaches: func() bool { return reaches }, Idle: func() time.Duration { return since }, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
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

func FuzzFramesFromTheWire(f *testing.F) {
	f.Add(heart("b", "secret", true).frame(mac, time.Now()))
	f.Add([]byte{})
	f.Fuzz(func(_ *testing.T, frame []byte) { _ = listened("a").hear(frame, time.Now()) })
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
