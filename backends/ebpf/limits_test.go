package ebpf

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
)

func TestLayoutsOfOtherVersionsAreRefusedOrGoneOnWith(t *testing.T) {
	for _, layout := range []uint32{0, oldestLayout, layoutVersion} {
		require.NoError(t, checkLayout(layout, "maps"))
	}
	require.ErrorContains(t, checkLayout(layoutVersion+1, "maps"), "maps was written by a later version")
	require.ErrorContains(t, checkLayout(oldestLayout-1, "maps"), "maps was written by an earlier version")
}

// limited applies the fixtures with limits on every frontend, which have no flows of before.
func (x *exchange) limited(atOnce, aSecond uint32) {
	x.age(30 * time.Hour)
	x.sweep()
	x.relimit(atOnce, aSecond)
}

// relimit changes them.
func (x *exchange) relimit(atOnce, aSecond uint32) {
	pools, frontends := fixtures()
	for i := range frontends {
		frontends[i].MaxConnections, frontends[i].MaxNewPerSecond = atOnce, aSecond
	}
	x.apply(pools, frontends...)
}

// other is another client's port.
func (x *exchange) other(n uint16) *exchange {
	out := x.exchange(x.v4, x.protocol)
	out.client = netip.AddrPortFrom(x.client.Addr(), x.client.Port()+1000*n)
	return out
}

// limitFixtures are about how many flows a frontend may have.
var limitFixtures = []fixture{
	{name: "a frontend has as many flows at once as it may, and others are not concerned", run: func(x *exchange) {
		x.limited(2, 0)
		x.begin(portPlain)
		x.other(1).begin(portPlain)
		for range 3 {
			x.mustDrop(x.other(2).ask(portPlain), "rate")
		}
		x.mustReachNode(x.goOn(portPlain, ack))
		x.other(2).begin(portSticky)
		x.relimit(3, 0)
		x.other(2).begin(portPlain)
		x.relimit(0, 0)
		for n := range uint16(5) {
			x.other(3 + n).begin(portPlain)
		}
	}},
	{name: "a connection that both sides have closed makes room for another one", only: tcp, run: func(x *exchange) {
		x.limited(1, 0)
		for n := range uint16(10) {
			y := x.other(n)
			s := y.begin(portPlain)
			x.mustDrop(x.other(20+n).ask(portPlain), "rate")
			y.mustReachNode(y.goOn(portPlain, fin|ack))
			y.mustReachClient(y.reply(s, fin|ack), portPlain)
		}
	}},
	{name: "a connection that the node has reset makes room for another one", only: tcp, run: func(x *exchange) {
		x.limited(1, 0)
		for n := range uint16(3) {
			y := x.other(n)
			y.mustReachClient(y.reply(y.begin(portPlain), rst), portPlain)
		}
	}},
	{name: "a connection that the client has reset makes room once nothing comes of it", only: tcp, run: func(x *exchange) {
		x.limited(1, 0)
		x.begin(portPlain)
		x.mustReachNode(x.goOn(portPlain, rst))
		x.sweep()
		x.mustDrop(x.other(1).ask(portPlain), "rate")
		x.age(4 * time.Second)
		x.sweep()
		x.other(1).begin(portPlain)
	}},
	{name: "a connection that nobody has answered makes room once nothing comes of it", only: tcp, run: func(x *exchange) {
		x.limited(1, 0)
		x.mustReachNode(x.ask(portPlain))
		x.sweep()
		x.mustDrop(x.other(1).ask(portPlain), "rate")
		x.age(4 * time.Second)
		x.sweep()
		x.other(1).begin(portPlain)
	}},
	{name: "a flow that is forgotten makes room for another one", run: func(x *exchange) {
		x.limited(1, 0)
		x.begin(portPlain)
		x.sweep()
		x.mustDrop(x.other(1).ask(portPlain), "rate")
		x.age(30 * time.Hour)
		x.sweep()
		x.other(1).begin(portPlain)
	}},
	{name: "a direct flow is one as well", run: func(x *exchange) {
		x.limited(1, 0)
		require.Equal(x, sent, x.fromClient(x.ask(portDirect)).verdict)
		x.mustDrop(x.other(1).ask(portDirect), "rate")
		require.Equal(x, sent, x.fromClient(x.goOn(portDirect, fin|ack)).verdict)
		if x.protocol == tcp {
			x.sweep()
			require.Equal(x, sent, x.fromClient(x.other(1).ask(portDirect)).verdict)
		}
	}},
	{name: "so many flows begin in a second as may", run: func(x *exchange) {
		x.limited(0, 5)
		served := 0
		for n := range uint16(30) {
			y := x.other(n)
			if y.fromClient(y.ask(portPlain)).verdict == sent {
				served++
			}
		}
		// One second may end meanwhile.
		require.GreaterOrEqual(x, served, 5)
		require.LessOrEqual(x, served, 10)
		x.mustReachNode(x.goOn(portPlain, ack))
	}},
	{name: "the limits of a frontend that is gone are no other one's", run: func(x *exchange) {
		x.limited(1, 1)
		x.begin(portPlain)
		pools, frontends := fixtures()
		key := model.FrontendKey{VIP: theVIP[x.v4], Protocol: model.Protocol(x.protocol), Port: portPlain}
		number := x.backend.state.frontends[key].number
		x.apply(pools, without(frontends, portPlain)...)
		var l limit
		require.Error(x, x.backend.kernel.objects.Limits.Lookup(number, &l))
	}},
}
