package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// traffic is a client that keeps one long connection busy and opens new ones all the time.
type traffic struct {
	url         string
	long, fresh atomic.Int64 // requests
	broken      atomic.Int64 // long connections that others than the client ended
	mu          sync.Mutex   // guards failures
	failures    []string
	stop        context.CancelFunc
	done        sync.WaitGroup
}

func startTraffic(t *testing.T, ip string) *traffic {
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	tr := &traffic{url: "http://" + net.JoinHostPort(ip, "80") + "/hostname", stop: stop}
	long := http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 1, DialContext: tr.dialLong}}
	fresh := http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: lab.Client.DialContext}}
	run := func(what string, client *http.Client, count *atomic.Int64) {
		tr.done.Go(func() {
			defer client.CloseIdleConnections()
			for ctx.Err() == nil {
				if err := ask(client, tr.url); err != nil {
					tr.fail(what, err)
				}
				count.Add(1)
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	run("long connection", &long, &tr.long)
	run("new connection", &fresh, &tr.fresh)
	t.Cleanup(func() {
		stop()
		tr.done.Wait()
	})
	return tr
}

// portsOfLongConnections counts those that have been used: no port is used twice, by any test, also not for another address.
var portsOfLongConnections atomic.Int64

// dialLong connects from ports of its own, each once. When a pod ends it resets long connections, whose ports are free at once: another
// client would take one soon, as hundreds are opened each second, while connection tracking of the nodes leads it to that pod for ten
// seconds more (nf_conntrack_tcp_timeout_close). A connection that the client ends keeps its port for a minute (TIME_WAIT).
func (tr *traffic) dialLong(ctx context.Context, network, address string) (net.Conn, error) {
	const belowPortsOfTheKernel = 20000
	from := net.Dialer{LocalAddr: &net.TCPAddr{Port: belowPortsOfTheKernel + int(portsOfLongConnections.Add(1))}}
	c, err := lab.Client.Dial(ctx, from, network, address)
	if err != nil {
		return nil, err
	}
	return &longConnection{Conn: c, broken: &tr.broken}, nil
}

// longConnection counts its end, unless the client ended it: so net/http does without a need now and then, when it hears of an answer long
// before it hears that the request was written, as on a busy host.
type longConnection struct {
	net.Conn
	closed atomic.Bool
	broken *atomic.Int64
}

func (c *longConnection) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && c.closed.CompareAndSwap(false, true) {
		c.broken.Add(1)
	}
	return n, err
}

func (c *longConnection) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}

func ask(client *http.Client, url string) error {
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return err
}

func (tr *traffic) fail(what string, err error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.failures = append(tr.failures, fmt.Sprintf("%s %s: %v", time.Now().Format("15:04:05.000"), what, err))
}

// end returns when all requests have ended, and what failed.
func (tr *traffic) end() []string {
	tr.stop()
	tr.done.Wait()
	return tr.failures
}

// backendOf is the process of the manager's dataplane, 0 while there is none.
func backendOf(t *testing.T) int {
	t.Helper()
	children, err := lab.Manager.Children()
	require.NoError(t, err)
	for _, child := range children {
		if strings.Contains(child.Command, "kubelb-backend") {
			return child.PID
		}
	}
	return 0
}

func TestNothingIsLostWhenAPartIsKilled(t *testing.T) {
	apply(t, web("restart", 2)+service("restart", "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "service/restart", "deployment/restart")
	tenantWait(t, "deployment/restart", "--for=condition=Available")
	ips := externalIPs(t, "restart", 2)
	for _, ip := range ips {
		reachesPods(t, ip, 80, 2)
	}
	backend := func() int { return backendOf(t) }
	inSync := func(not int) {
		t.Helper()
		eventually(t, 20*time.Second, func() error {
			if pid := backend(); pid == 0 || pid == not {
				return fmt.Errorf("no new backend runs yet")
			}
			return nil
		})
		// A change must still come through.
		apply(t, service("probe", "ports: [{port: 80}]"))
		externalIPs(t, "probe", 2)
		kubectl(t, "delete", "service", "probe", "--timeout=30s")
	}
	for _, c := range []struct {
		what string
		kill func()
	}{
		{"the plugin", func() {
			pid := backend()
			require.NotZero(t, pid)
			require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
			inSync(pid)
		}},
		{"the manager", func() {
			pid := backend()
			lab.Manager.Kill()
			eventually(t, 2*time.Second, func() error {
				if syscall.Kill(pid, 0) == nil {
					if stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); !strings.Contains(string(stat), ") Z ") {
						return fmt.Errorf("the plugin lives on without its manager")
					}
				}
				return nil
			})
			time.Sleep(time.Second)
			require.NoError(t, lab.StartManager())
			inSync(pid)
		}},
		{"the ccm", func() {
			lab.CCM.Kill()
			time.Sleep(time.Second)
			require.NoError(t, lab.StartCCM(t.Context()))
			inSync(0)
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			four, six := startTraffic(t, ips[0]), startTraffic(t, ips[1])
			time.Sleep(500 * time.Millisecond)
			c.kill()
			time.Sleep(500 * time.Millisecond)
			for _, tr := range []*traffic{four, six} {
				require.Empty(t, tr.end())
				require.Zero(t, tr.broken.Load(), "the long connection goes on")
				t.Logf("%s: %d requests on a long connection, %d new connections, 0 failed", tr.url, tr.long.Load(), tr.fresh.Load())
			}
			require.Equal(t, ips, externalIPs(t, "restart", 2), "no address changed")
		})
	}
}

func TestTablesThatSomebodyRemovesComeBack(t *testing.T) {
	apply(t, web("removed", 1)+service("removed", "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "service/removed", "deployment/removed")
	tenantWait(t, "deployment/removed", "--for=condition=Available")
	ips := externalIPs(t, "removed", 2)
	for _, ip := range ips {
		reachesPods(t, ip, 80, 1)
	}
	_, err := lab.OnGateway(t.Context(), "nft", "flush", "ruleset")
	require.NoError(t, err)
	for _, ip := range ips {
		reachesPods(t, ip, 80, 1)
	}
}
