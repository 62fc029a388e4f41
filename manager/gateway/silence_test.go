package gateway

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/manager/announce/announcetest"
	"kubelb.k8c.io/manager/gateway/drain"
	"kubelb.k8c.io/manager/gateway/driver/drivertest"
	"kubelb.k8c.io/manager/gateway/ownership"
	"kubelb.k8c.io/manager/gateway/report"
)

func TestASilentFamilyIsReportedWithTheReason(t *testing.T) {
	now := time.Now()
	with := func(m announcetest.SilentRecorder) *Gateway {
		g := New(Options{Name: "g", AnnounceOptions: AnnounceOptions{Announcer: m}, Log: slog.New(slog.DiscardHandler)}, nil, nil)
		g.served = true
		return g
	}
	g := with(announcetest.SilentRecorder{IsWorking: true, Reasons: map[ipam.Family]string{ipam.IPv6: "no IPv6 on eth1"}})
	require.Equal(t, []v1alpha1.GatewaySilence{{Family: corev1.IPv6Protocol, Message: "no IPv6 on eth1"}}, g.silent(now), "at once, since IPv4 is announced")

	g = with(announcetest.SilentRecorder{Reasons: map[ipam.Family]string{ipam.IPv4: "eth1 is down", ipam.IPv6: "eth1 is down"}})
	require.Empty(t, g.silent(now), "a gateway that has just started may announce in a moment")
	require.Equal(t, now.Add(report.SilentAfter), g.silence.Next(), "it checks again")
	require.Len(t, g.silent(now.Add(report.SilentAfter)), 2)

	g = with(announcetest.SilentRecorder{IsWorking: true})
	require.Empty(t, g.silent(now))
	g.drain.Request(true)
	g.drain.Update(now, g.ownership.IsReplaced)
	require.True(t, g.drain.Draining())
	require.Empty(t, g.silent(now), "its addresses are not withdrawn yet")
	require.Len(t, g.silent(now.Add(2*drain.WithdrawDelay)), 2, "it answers for no address")
}

// A gateway that may not answer announces nothing, even if its interfaces and routers work.
func TestAGatewayThatMayNotAnswerReportsThatItIsSilent(t *testing.T) {
	now, own := time.Now(), &fakeLease{}
	own.holds.Store(true)
	right := ownership.NewRight(ownership.RightOptions{Lease: own, Segment: own, Changed: func() {}, Log: slog.New(slog.DiscardHandler)})
	g := New(Options{Name: "g", AnnounceOptions: AnnounceOptions{Announcer: announcetest.SilentRecorder{IsWorking: true}}, PeerOptions: PeerOptions{Right: right}, Log: slog.New(slog.DiscardHandler)}, nil, nil)
	g.served = true
	g.elect(t.Context())
	require.True(t, g.ownership.MayAnswer())
	require.Empty(t, g.silent(now))
	own.holds.Store(false)
	require.Empty(t, g.silent(now), "it may have its Lease again in a moment")
	silent := g.silent(now.Add(report.SilentAfter))
	require.Len(t, silent, 2)
	require.Contains(t, silent[0].Message, "it has no Lease")
}

// After a restart of its host a gateway answers for nothing before its dataplane works, whatever its object says.
func TestAGatewayWithoutADataplaneReportsThatItIsSilent(t *testing.T) {
	h := newTestGatewayWith(t, Options{AnnounceOptions: AnnounceOptions{Announcer: announcetest.SilentRecorder{IsWorking: true}}})
	h.broken = errors.New("module nf_tables: not loaded")
	h.workOnce()
	now := time.Now()
	require.Empty(t, h.silent(now), "it may work in a moment")
	silent := h.silent(now.Add(report.SilentAfter))
	require.Len(t, silent, 2)
	require.Equal(t, "dataplane: module nf_tables: not loaded", silent[0].Message)
	h.broken = nil
	h.Add(drivertest.Module)
	h.workOnce()
	require.Empty(t, h.silent(now.Add(report.SilentAfter)))
	h.broken = errors.New("it does not start again")
	h.driver.Stop()
	h.workOnce()
	require.Error(t, h.Ready(nil))
	require.Empty(t, h.silent(now.Add(2*report.SilentAfter)), "the dataplane goes on with what it holds")
}
