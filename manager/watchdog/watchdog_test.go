package watchdog

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/manager/connect/connecttest"
	"kubelb.k8c.io/manager/uplink/segment"
)

// testWriter writes what is logged to the test's log.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(string(bytes.TrimSpace(p)))
	return len(p), nil
}

// startWatchdog tries frontends until the test ends, ten times as fast as usual. latest returns the last report.
func startWatchdog(t *testing.T, frontends ...Frontend) (latest func() Report, end func()) {
	t.Helper()
	reports := make(chan Report, 1000)
	w := New(Options{Sources: []netip.Addr{client4, client6}, Interval: 200 * time.Millisecond, Frontends: func(context.Context) List { return List{Frontends: frontends} },
		OnReport: func(_ context.Context, r Report) { reports <- r }, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))})
	w.times = times{retryPause: 100 * time.Millisecond, repeatAfter: 150 * time.Millisecond, answerTimeout: 400 * time.Millisecond, holdTime: 250 * time.Millisecond, listInterval: 100 * time.Millisecond, connectTimeout: 300 * time.Millisecond, reopenPause: 300 * time.Millisecond, reportInterval: tick, countInterval: 100 * time.Millisecond}
	require.NoError(t, w.Open())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	end = func() {
		cancel()
		require.NoError(t, <-done)
	}
	var last Report
	return func() Report {
		for {
			select {
			case last = <-reports:
			default:
				return last
			}
		}
	}, end
}

// setUpHost gives the test's host the addresses of frontends.
func setUpHost(t *testing.T, s *segment.Segment) {
	s.IP("link set lo up")
	s.IP("address add " + vip4.String() + "/32 dev lo")
	s.IP("address add " + vip6.String() + "/128 dev lo nodad")
}

// serve accepts connections at an address until the test ends.
func serve(t *testing.T, at netip.AddrPort, then func(*net.TCPConn)) Frontend {
	t.Helper()
	at = connecttest.Serve(t, at, then)
	return Frontend{AddrPort: at, Tenant: "a", Endpoints: []netip.AddrPort{at}}
}

// nft changes the firewall of the test's host.
func nft(t *testing.T, command string) {
	t.Helper()
	out, err := exec.Command("nft", strings.Fields(command)...).CombinedOutput()
	require.NoError(t, err, "nft %s: %s", command, out)
}

// firewall applies rules to packets from the host's interface of the pair.
func firewall(t *testing.T, rules ...string) {
	t.Helper()
	nft(t, "add table inet fault")
	nft(t, "add chain inet fault in { type filter hook prerouting priority -300; }")
	for _, rule := range rules {
		nft(t, "add rule inet fault in iifname "+hostInterface+" "+rule)
	}
}

// removeFirewall removes the firewall.
func removeFirewall(t *testing.T) {
	t.Helper()
	nft(t, "delete table inet fault")
}

// keep keeps a connection until the client ends it. The reader prevents that the garbage collector closes it.
func keep(c *net.TCPConn) { go io.Copy(io.Discard, c) }

func greet(c *net.TCPConn) {
	_, _ = c.Write([]byte("220 smtp\r\n"))
	_ = c.Close()
}

func end(c *net.TCPConn) { _ = c.Close() }

// requireReport waits until the report has the expected values.
func requireReport(t *testing.T, latest func() Report, says string, answered int, failures ...Failure) {
	t.Helper()
	var is Report
	require.Eventually(t, func() bool {
		is = latest()
		if is.Answered != answered || len(is.Failures) != len(failures) {
			return false
		}
		for i, f := range failures {
			if is.Failures[i] != f {
				return false
			}
		}
		return true
	}, 20*time.Second, 20*time.Millisecond, "%s: %+v", says, &is)
}

func TestAFrontendIsTriedAndTheOutcomeIsReported(t *testing.T) {
	t.Parallel()
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		setUpHost(t, s)
		var all []Frontend
		for _, a := range []netip.Addr{vip4, vip6} {
			all = append(all, serve(t, netip.AddrPortFrom(a, 80), keep), serve(t, netip.AddrPortFrom(a, 81), greet))
		}
		// A proxy accepts connections, and ends them as it reaches no endpoint.
		reset, ended := serve(t, netip.AddrPortFrom(vip4, 82), connecttest.Reset), serve(t, netip.AddrPortFrom(vip4, 84), end)
		reset.Endpoints, ended.Endpoints = all[0].Endpoints, []netip.AddrPort{netip.AddrPortFrom(vip4, 9)}
		// These endpoints do so themselves.
		rude := []Frontend{serve(t, netip.AddrPortFrom(vip4, 85), connecttest.Reset), serve(t, netip.AddrPortFrom(vip4, 86), end)}
		closed := Frontend{AddrPort: netip.AddrPortFrom(vip4, 83), Tenant: "a", Endpoints: []netip.AddrPort{netip.AddrPortFrom(vip4, 83)}}
		latest, end := startWatchdog(t, append(append(all, rude...), reset, closed, ended)...)
		broken := []Failure{
			{AddrPort: reset.AddrPort, Message: "connections are accepted, and then reset; its nodes answer the gateway itself, so the reason is the gateway's dataplane, or a firewall of the gateway's host", NodesAnswer: true},
			{AddrPort: closed.AddrPort, Message: "connections are refused; its nodes refuse the gateway itself, too, as they do if the Service has no ready pod"},
			{AddrPort: ended.AddrPort, Message: "connections are accepted, and then ended; its nodes refuse the gateway itself, too, as they do if the Service has no ready pod"}}
		requireReport(t, latest, "at first", 4, broken...)

		firewall(t, "tcp dport 80 drop", "ip daddr 203.0.113.1 tcp dport 81 reject with icmp admin-prohibited")
		unanswered := "connections get no answer; its nodes answer the gateway itself, so the reason is the gateway's dataplane, or a firewall of the gateway's host"
		requireReport(t, latest, "behind a firewall", 1, Failure{AddrPort: all[0].AddrPort, Message: unanswered, NodesAnswer: true}, Failure{AddrPort: all[1].AddrPort, Message: "connections get an ICMP error; its nodes answer the gateway itself, so the reason is the gateway's dataplane, or a firewall of the gateway's host", NodesAnswer: true}, broken[0], broken[1], broken[2], Failure{AddrPort: all[2].AddrPort, Message: unanswered, NodesAnswer: true})

		removeFirewall(t)
		requireReport(t, latest, "without it again", 4, broken...)

		end()
		_, err := netlink.LinkByName(hostInterface)
		require.ErrorAs(t, err, &netlink.LinkNotFoundError{})
	})
}

func TestWithoutAnyAnsweredTryFailuresAreNotReported(t *testing.T) {
	t.Parallel()
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		setUpHost(t, s)
		firewall(t, "drop")
		served := serve(t, netip.AddrPortFrom(vip4, 80), keep)
		other := serve(t, netip.AddrPortFrom(vip4, 81), keep)
		other.KeepsClientAddress = true
		latest, end := startWatchdog(t, served, other)
		defer end()
		require.Eventually(t, func() bool { return latest().Untried == 2 }, 10*time.Second, 20*time.Millisecond)
		time.Sleep(3 * time.Second) // time for failsAt tries of both
		require.Equal(t, Report{Untried: 2}, latest(), "the endpoints answer, and it is not known why tries do not arrive")

		removeFirewall(t)
		requireReport(t, latest, "without the firewall", 2)
		firewall(t, "drop")
		unanswered := "connections get no answer; its nodes answer the gateway itself, so the reason is the gateway's dataplane, or a firewall of the gateway's host"
		requireReport(t, latest, "with it again", 0, Failure{AddrPort: served.AddrPort, Message: unanswered, NodesAnswer: true}, Failure{AddrPort: other.AddrPort, Message: unanswered, NodesAnswer: true})
	})
}

func TestATryOfOneFamilySaysNothingAboutTheOther(t *testing.T) {
	t.Parallel()
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		setUpHost(t, s)
		firewall(t, "meta nfproto ipv6 drop")
		latest, end := startWatchdog(t, serve(t, netip.AddrPortFrom(vip4, 80), keep), serve(t, netip.AddrPortFrom(vip6, 80), keep))
		defer end()
		requireReport(t, latest, "the IPv4 frontend", 1)
		time.Sleep(3 * time.Second) // time for failsAt tries of both
		require.Equal(t, Report{Answered: 1, Untried: 1}, latest(), "the endpoint answers, and a firewall may drop only tries")
	})
}

func TestChangedInterfacesAreCreatedAgain(t *testing.T) {
	t.Parallel()
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		setUpHost(t, s)
		latest, end := startWatchdog(t, serve(t, netip.AddrPortFrom(vip4, 80), keep), serve(t, netip.AddrPortFrom(vip6, 80), keep))
		defer end()
		for change, problem := range map[string]string{"link delete " + hostInterface: "", "link set " + hostInterface + " down": "is down", "route delete " + client4.String() + "/32": "no route leads to 192.0.0.6",
			"-6 route delete " + client6.String() + "/128": "no route leads to fd4b:7562:654c::6", "link set " + hostInterface + " address 02:00:00:00:00:09": "has the MAC address 02:00:00:00:00:09"} {
			requireReport(t, latest, "before "+change, 2)
			s.IP(change)
			require.Eventually(t, func() bool {
				is := latest()
				return is.Problem != "" && strings.Contains(is.Problem, problem)
			}, 10*time.Second, 20*time.Millisecond, "no problem is reported after %s", change)
		}
		requireReport(t, latest, "anew", 2)
	})
}
