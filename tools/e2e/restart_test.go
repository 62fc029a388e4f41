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

// traffic is a client that sends requests on one long connection, and on a new connection each.
type traffic struct {
	url string
	// keptRequests were sent on long connections, newConnections each on a new one.
	keptRequests, newConnections atomic.Int64
	// endedConnections are long connections that the client did not end.
	endedConnections atomic.Int64
	mu               sync.Mutex // guards failures
	failures         []string
	cancel           context.CancelFunc
	done             sync.WaitGroup
}

func startTraffic(t *testing.T, ip string) *traffic {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	tr := &traffic{url: "http://" + net.JoinHostPort(ip, "80") + "/hostname", cancel: cancel}
	long := http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 1, DialContext: tr.dialLong}}
	fresh := http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: lab.Client.DialContext}}
	run := func(what string, client *http.Client, count *atomic.Int64) {
		tr.done.Go(func() {
			defer client.CloseIdleConnections()
			for ctx.Err() == nil {
				if err := request(client, tr.url); err != nil {
					tr.addFailure(what, err)
				}
				count.Add(1)
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	run("long connection", &long, &tr.keptRequests)
	run("new connection", &fresh, &tr.newConnections)
	t.Cleanup(func() {
		cancel()
		tr.done.Wait()
	})
	return tr
}

// portsOfLongConnections counts the used ports. No test uses a port twice, not even for another address.
var portsOfLongConnections atomic.Int64

// dialLong uses each local port once. A pod that ends resets long connections, which frees their ports at once. A new connection would soon get one of them,
// since hundreds are opened each second, and connection tracking of the nodes would send it to the ended pod for ten more seconds
// (nf_conntrack_tcp_timeout_close). A connection that the client ends keeps its port for a minute (TIME_WAIT).
func (tr *traffic) dialLong(ctx context.Context, network, address string) (net.Conn, error) {
	const belowEphemeralPorts = 20000
	from := net.Dialer{LocalAddr: &net.TCPAddr{Port: belowEphemeralPorts + int(portsOfLongConnections.Add(1))}}
	c, err := lab.Client.Dial(ctx, from, network, address)
	if err != nil {
		return nil, err
	}
	return &longConnection{Conn: c, endedConnections: &tr.endedConnections}, nil
}

// longConnection counts its end, unless the client closes it. On a busy host net/http sometimes does, when it reads a response long before it knows that the
// request was written.
type longConnection struct {
	net.Conn
	closed           atomic.Bool
	endedConnections *atomic.Int64
}

func (c *longConnection) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && c.closed.CompareAndSwap(false, true) {
		c.endedConnections.Add(1)
	}
	return n, err
}

func (c *longConnection) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}

func request(client *http.Client, url string) error {
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return err
}

func (tr *traffic) addFailure(what string, err error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.failures = append(tr.failures, fmt.Sprintf("%s %s: %v", time.Now().Format("15:04:05.000"), what, err))
}

// stop waits until all requests have ended, and returns the failures.
func (tr *traffic) stop() []string {
	tr.cancel()
	tr.done.Wait()
	return tr.failures
}

// pluginPID is the process ID of the manager's plugin, 0 while it does not run.
func pluginPID(t *testing.T) int {
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

func TestNoConnectionIsLostWhenAProgramIsKilled(t *testing.T) {
	apply(t, web("restart", 2)+service("restart", "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "service/restart", "deployment/restart")
	tenantWait(t, "deployment/restart", "--for=condition=Available")
	ips := externalIPs(t, "restart", 2)
	for _, ip := range ips {
		reachesPods(t, ip, 80, 2)
	}
	plugin := func() int { return pluginPID(t) }
	waitUntilServing := func(formerPID int) {
		t.Helper()
		eventually(t, 20*time.Second, func() error {
			if pid := plugin(); pid == 0 || pid == formerPID {
				return fmt.Errorf("no new plugin runs yet")
			}
			return nil
		})
		// A change must reach the dataplane.
		apply(t, service("probe", "ports: [{port: 80}]"))
		externalIPs(t, "probe", 2)
		kubectl(t, "delete", "service", "probe", "--timeout=30s")
	}
	for _, c := range []struct {
		what string
		kill func()
	}{
		{"the plugin", func() {
			pid := plugin()
			require.NotZero(t, pid)
			require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
			waitUntilServing(pid)
		}},
		{"the manager", func() {
			pid := plugin()
			lab.Manager.Kill()
			eventually(t, 2*time.Second, func() error {
				if syscall.Kill(pid, 0) == nil {
					if stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); !strings.Contains(string(stat), ") Z ") {
						return fmt.Errorf("the plugin still runs without its manager")
					}
				}
				return nil
			})
			time.Sleep(time.Second)
			require.NoError(t, lab.StartManager())
			waitUntilServing(pid)
		}},
		{"the ccm", func() {
			lab.CCM.Kill()
			time.Sleep(time.Second)
			require.NoError(t, lab.StartCCM(t.Context()))
			waitUntilServing(0)
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			four, six := startTraffic(t, ips[0]), startTraffic(t, ips[1])
			time.Sleep(500 * time.Millisecond)
			c.kill()
			time.Sleep(500 * time.Millisecond)
			for _, tr := range []*traffic{four, six} {
				require.Empty(t, tr.stop())
				require.Zero(t, tr.endedConnections.Load(), "the long connection goes on")
				t.Logf("%s: %d requests on a long connection, %d new connections, 0 failed", tr.url, tr.keptRequests.Load(), tr.newConnections.Load())
			}
			require.Equal(t, ips, externalIPs(t, "restart", 2), "no address changed")
		})
	}
}

func TestRemovedTablesAreRestored(t *testing.T) {
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
