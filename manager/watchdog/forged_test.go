package watchdog

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/manager/uplink/segment"
)

// forgedSegment returns a segment from a frontend to the client, in a frame that another host on the segment sends to this host.
func forgedSegment(from netip.AddrPort, port uint16, flags byte) []byte {
	s := tcpSegment{flow: flow{from, netip.AddrPortFrom(client4, port)}, seq: 1, ack: 1, flags: flags}
	return s.frame([]byte{2, 0, 0, 0, 0, 2}, nearMAC)
}

func TestAHostCannotEndTriesWithForgedSegments(t *testing.T) {
	t.Parallel()
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		s.IP("link set lo up")
		s.Plug("uplink", nearMAC.String())
		s.Plug("stranger", "02:00:00:00:00:02")
		s.IP("address add 198.51.100.1/24 dev uplink")
		s.IP("route add default via 198.51.100.254")
		require.NoError(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644))
		nft(t, "add table ip dataplane")
		nft(t, "add chain ip dataplane nat { type nat hook prerouting priority -100; }")
		nft(t, "add rule ip dataplane nat ip daddr 203.0.113.1 tcp dport 80 dnat to 198.51.100.1:8080")
		frontend := serve(t, netip.MustParseAddrPort("198.51.100.1:8080"), keep)
		frontend.AddrPort = netip.AddrPortFrom(vip4, 80)
		latest, end := startWatchdog(t, frontend)
		defer end()
		requireReport(t, latest, "at first", 1)
		attacker := s.Tap("stranger")
		for range 10 {
			for port := range uint16(portCount) {
				attacker.Send(forgedSegment(frontend.AddrPort, firstPort+port, flagRST))
			}
		}
		is := latest()
		require.Equal(t, 1, is.Answered, "the frontend answers all the time")
		require.Empty(t, is.Failures)
	})
}

func TestAnAnswerHasTheSequenceNumbersOfItsTry(t *testing.T) {
	f, now := flows()[0], time.Now()
	for says, c := range map[string]struct {
		answer
		opened, ends bool
	}{
		"a reset of another SYN":               {answer: answer{flags: flagRST | flagACK, ack: 7}},
		"a reset that acknowledges nothing":    {answer: answer{flags: flagRST, seq: 7}},
		"a reset of the SYN":                   {answer: answer{flags: flagRST | flagACK, ack: 8}, ends: true},
		"a reset beside the window":            {answer: answer{flags: flagRST, seq: 100}, opened: true},
		"a reset":                              {answer: answer{flags: flagRST, seq: 101}, opened: true, ends: true},
		"an end of another connection":         {answer: answer{flags: flagFIN | flagACK, seq: 101, ack: 7}, opened: true},
		"data of another connection":           {answer: answer{flags: flagACK, seq: 101, ack: 7, data: true}, opened: true},
		"an agreement to another SYN":          {answer: answer{flags: flagSYN | flagACK, seq: 100, ack: 7}},
		"an error about another SYN":           {answer: answer{unreachable: true, seq: 6}},
		"an error about the SYN":               {answer: answer{unreachable: true, seq: 7}, ends: true},
		"an error about what followed the SYN": {answer: answer{unreachable: true, seq: 8}, opened: true, ends: true},
	} {
		w := New(Options{Interval: time.Second})
		state := &frontendState{Frontend: Frontend{AddrPort: f.frontend}}
		w.frontends[state.AddrPort] = state
		w.tries[f] = &try{flow: f, frontendState: state, seq: 7, started: now}
		if c.opened {
			w.tries[f].openedAt, w.tries[f].frontendSeq = now, 101
		}
		c.flow = f
		w.handleAnswer(c.answer, now)
		require.Equal(t, c.ends, len(w.tries) == 0, says)
		require.Equal(t, c.ends, len(state.history.last) == 1, says)
	}
}
