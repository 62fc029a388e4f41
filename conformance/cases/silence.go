package cases

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

// silenceTime is how long flows are silent. Every dataplane keeps answered UDP flows for half a minute. It is not longer on a slow machine,
// because the time of dataplanes is not.
const silenceTime = 20 * time.Second

// How many connections and UDP flows of each mode are silent. One that was forgotten meets its endpoint again with a probability of a quarter.
const silentStreams, silentFlows = 10, 12

func silence() Case {
	return Case{
		Name:  "silence",
		Shows: "connections, half-closed connections and answered UDP flows that are silent for 20 seconds continue with their endpoint and their addresses, in every forwarding mode, although other endpoints have joined the pool",
		Waits: true,
		Run: func(c *C) {
			frontends := c.inEachMode("all")
			c.Apply([]model.Pool{c.Pool("all", 0)}, frontends...)
			var streams []*lab.Stream
			halfClosed := make(chan error, len(frontends))
			for _, f := range frontends {
				if to := netip.AddrPortFrom(f.VIP, f.Port); f.Protocol == model.TCP {
					streams = append(streams, c.openStreamsTo(silentStreams, to)...)
					go func() { halfClosed <- c.Lab.A.UploadAndWait(to, 1000, silenceTime) }()
				}
			}
			// UDP flows are the last to begin and the first to be tested: they must not be silent for half a minute.
			var flows []silentFlow
			for _, f := range frontends {
				if f.Protocol == model.UDP {
					flows = append(flows, c.openSilentFlows(f)...)
				}
			}
			begin := time.Now()
			c.Apply([]model.Pool{c.Pool("all", 0, 1, 2, 3)}, frontends...)
			time.Sleep(silenceTime - time.Since(begin))
			for _, f := range flows {
				answer, err := lab.RequestAddresses(f.Conn, c.Patience)
				c.NoError(err, f.what)
				c.Equal(f.Answer, answer, f.what)
			}
			c.requireAlive(streams, nil)
			for range streams[:len(streams)/silentStreams] {
				c.NoError(<-halfClosed, "a half-closed connection")
			}
		},
	}
}

// silentFlow is a UDP flow with its first answer.
type silentFlow struct {
	net.Conn
	lab.Answer
	what string
}

func (c *C) openSilentFlows(f model.Frontend) []silentFlow {
	var out []silentFlow
	for range silentFlows {
		conn, err := c.Lab.A.Dial("udp", netip.AddrPortFrom(f.VIP, f.Port), lab.From{})
		c.NoError(err)
		c.Cleanup(func() { conn.Close() })
		answer, err := lab.RequestAddresses(conn, c.Patience)
		c.NoError(err)
		out = append(out, silentFlow{conn, answer, fmt.Sprintf("a silent UDP flow in mode %s", f.Forwarding)})
	}
	return out
}
