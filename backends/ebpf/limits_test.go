package ebpf

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
)

func TestOnlyMapsOfSupportedLayoutsAreAdopted(t *testing.T) {
	for _, layout := range []uint32{0, oldestLayout, layoutVersion} {
		require.NoError(t, checkLayout(layout, "maps"))
	}
	require.ErrorContains(t, checkLayout(layoutVersion+1, "maps"), "maps was written by a later version")
	require.ErrorContains(t, checkLayout(oldestLayout-1, "maps"), "maps was written by an earlier version")
}

// applyLimits deletes all flows, and applies the fixtures with limits on every frontend.
func (x *exchange) applyLimits(atOnce, aSecond uint32) {
	x.advance(30 * time.Hour)
	x.sweepTwice()
	x.setLimits(atOnce, aSecond)
}

// setLimits applies the fixtures with limits on every frontend.
func (x *exchange) setLimits(atOnce, aSecond uint32) {
	pools, frontends := fixtures()
	for i := range frontends {
		frontends[i].MaxConnections, frontends[i].MaxNewPerSecond = atOnce, aSecond
	}
	x.apply(pools, frontends...)
}

// sweepTwice lets two sweeps agree on the number of flows.
func (x *exchange) sweepTwice() {
	x.sweep()
	x.sweep()
}

// otherClient returns a client with another port.
func (x *exchange) otherClient(n uint16) *exchange {
	out := x.exchange(x.v4, x.protocol)
	out.client = netip.AddrPortFrom(x.client.Addr(), x.client.Port()+1000*n)
	return out
}

// limitFixtures test limits of a frontend's flows.
var limitFixtures = []fixture{
	{name: "a limit of concurrent flows holds for one frontend", run: func(x *exchange) {
		x.applyLimits(2, 0)
		x.open(portPlain)
		x.otherClient(1).open(portPlain)
		for range 3 {
			x.mustDrop(x.otherClient(2).firstFrame(portPlain), "rate")
		}
		x.mustReachNode(x.nextFrame(portPlain, ack))
		x.otherClient(2).open(portSticky)
		x.setLimits(3, 0)
		x.otherClient(2).open(portPlain)
		x.mustDrop(x.otherClient(3).firstFrame(portPlain), "rate") // the flows from before the change count
		x.setLimits(0, 0)
		for n := range uint16(5) {
			x.otherClient(3 + n).open(portPlain)
		}
	}},
	{name: "a closed connection does not count for the limit", only: tcp, run: func(x *exchange) {
		x.applyLimits(1, 0)
		for n := range uint16(10) {
			y := x.otherClient(n)
			s := y.open(portPlain)
			x.mustDrop(x.otherClient(20+n).firstFrame(portPlain), "rate")
			y.mustReachNode(y.nextFrame(portPlain, fin|ack))
			y.mustReachClient(y.reply(s, fin|ack), portPlain)
		}
	}},
	{name: "a connection that the node has reset does not count for the limit", only: tcp, run: func(x *exchange) {
		x.applyLimits(1, 0)
		for n := range uint16(3) {
			y := x.otherClient(n)
			y.mustReachClient(y.reply(y.open(portPlain), rst), portPlain)
		}
	}},
	{name: "a connection that the client has reset does not count for the limit once the client is silent", only: tcp, run: func(x *exchange) {
		x.applyLimits(1, 0)
		x.open(portPlain)
		x.mustReachNode(x.nextFrame(portPlain, rst))
		x.sweep()
		x.mustDrop(x.otherClient(1).firstFrame(portPlain), "rate")
		x.advance(4 * time.Second)
		x.sweepTwice()
		x.otherClient(1).open(portPlain)
	}},
	{name: "an unanswered connection does not count for the limit once the client is silent", only: tcp, run: func(x *exchange) {
		x.applyLimits(1, 0)
		x.mustReachNode(x.firstFrame(portPlain))
		x.sweep()
		x.mustDrop(x.otherClient(1).firstFrame(portPlain), "rate")
		x.advance(4 * time.Second)
		x.sweepTwice()
		x.otherClient(1).open(portPlain)
	}},
	{name: "an expired flow does not count for the limit", run: func(x *exchange) {
		x.applyLimits(1, 0)
		x.open(portPlain)
		x.sweep()
		x.mustDrop(x.otherClient(1).firstFrame(portPlain), "rate")
		x.advance(30 * time.Hour)
		x.sweepTwice()
		x.otherClient(1).open(portPlain)
	}},
	{name: "a direct flow counts for the limit", run: func(x *exchange) {
		x.applyLimits(1, 0)
		require.Equal(x, sent, x.fromClient(x.firstFrame(portDirect)).verdict)
		x.mustDrop(x.otherClient(1).firstFrame(portDirect), "rate")
		require.Equal(x, sent, x.fromClient(x.nextFrame(portDirect, fin|ack)).verdict)
		if x.protocol == tcp {
			x.sweepTwice()
			require.Equal(x, sent, x.fromClient(x.otherClient(1).firstFrame(portDirect)).verdict)
		}
	}},
	{name: "a limit of new flows in a second holds", run: func(x *exchange) {
		x.applyLimits(0, 5)
		served := 0
		for n := range uint16(30) {
			y := x.otherClient(n)
			if y.fromClient(y.firstFrame(portPlain)).verdict == sent {
				served++
			}
		}
		// A second may end in between.
		require.GreaterOrEqual(x, served, 5)
		require.LessOrEqual(x, served, 10)
		x.mustReachNode(x.nextFrame(portPlain, ack))
	}},
	{name: "the limits of a deleted frontend are removed", run: func(x *exchange) {
		x.applyLimits(1, 1)
		x.open(portPlain)
		pools, frontends := fixtures()
		key := model.FrontendKey{VIP: theVIP[x.v4], Protocol: model.Protocol(x.protocol), Port: portPlain}
		number := x.backend.state.frontends[key].number
		x.apply(pools, without(frontends, portPlain)...)
		var l limit
		require.Error(x, x.backend.kernel.objects.Limits.Lookup(number, &l))
	}},
}
