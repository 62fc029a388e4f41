package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The manager is restarted with another --backend, and then with the first one.
func TestAChangeOfTheDataplaneLosesNoRequest(t *testing.T) {
	apply(t, web("change", 2)+service("change", "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "service/change", "deployment/change")
	tenantWait(t, "deployment/change", "--for=condition=Available")
	ips := externalIPs(t, "change", 2)
	for _, ip := range ips {
		reachesPods(t, ip, 80, 2)
	}
	file := filepath.Join(lab.Dir, "gateway", "backends.json")
	for _, to := range []string{otherBackend(), backendName()} {
		t.Run("to "+to, func(t *testing.T) {
			four, six := startTraffic(t, ips[0]), startTraffic(t, ips[1])
			time.Sleep(300 * time.Millisecond)
			lab.Manager.Stop()
			require.NoError(t, lab.StartManager("--backend="+to))
			eventually(t, 60*time.Second, func() error {
				text, err := os.ReadFile(file)
				if err != nil || strings.Count(string(text), "path") != 1 || !strings.Contains(string(text), to) {
					return fmt.Errorf("the former dataplane is not purged yet: %s", text)
				}
				return nil
			})
			eventually(t, 10*time.Second, func() error {
				if got := hubGet(t, "default", "gateway/gateway", "{.status.backend.name}"); got != to {
					return fmt.Errorf("status.backend.name of the Gateway is %q", got)
				}
				return nil
			})
			time.Sleep(300 * time.Millisecond)
			for _, tr := range []*traffic{four, six} {
				require.Empty(t, tr.stop())
				require.LessOrEqual(t, tr.endedConnections.Load(), int64(1), "the long connection ended at most once")
				t.Logf("%s: %d requests on long connections, of which %d ended, %d new connections, 0 failed", tr.url, tr.keptRequests.Load(), tr.endedConnections.Load(), tr.newConnections.Load())
			}
			require.Equal(t, ips, externalIPs(t, "change", 2), "no address changed")
		})
	}
}

func TestADataplaneThatCannotStartIsReportedAndNoConnectionIsLost(t *testing.T) {
	apply(t, web("kept", 1)+service("kept", "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "service/kept", "deployment/kept", "service/waits")
	tenantWait(t, "deployment/kept", "--for=condition=Available")
	ips := externalIPs(t, "kept", 2)
	reachesPods(t, ips[0], 80, 1)
	tr := startTraffic(t, ips[0])
	lab.Manager.Stop()
	require.NoError(t, lab.StartManager("--backend=envoy", "--backend-option=envoy-path=/nowhere/envoy"))
	apply(t, service("waits", "ports: [{port: 80}]"))
	eventually(t, 20*time.Second, func() error {
		if got := readyCondition(t, "waits"); !strings.Contains(got, "gateway gateway: this host lacks what the dataplane needs:\nprogram envoy: no Envoy in any of [/nowhere/envoy]; install one") {
			return fmt.Errorf("the condition of the waiting Service is %q", got)
		}
		return nil
	})
	lab.Manager.Stop()
	require.NoError(t, lab.StartManager())
	externalIPs(t, "waits", 2)
	require.Empty(t, tr.stop())
	require.Zero(t, tr.endedConnections.Load(), "the long connection goes on")
	require.Equal(t, ips, externalIPs(t, "kept", 2), "no address changed")
}

func TestAPortInUseOnTheGatewayFailsOnlyTheServiceThatNeedsIt(t *testing.T) {
	onlyWith(t, "envoy")
	var listener net.Listener
	require.NoError(t, lab.Gateway.Do(func() (err error) {
		listener, err = net.Listen("tcp", ":8444")
		return err
	}))
	defer listener.Close()
	apply(t, web("ports", 1)+service("ports", "ports: [{port: 80, targetPort: 8080}]")+service("taken", "selector: {app: ports}", "ports: [{port: 8444, targetPort: 8080}]"))
	cleanUp(t, "service/ports", "service/taken", "deployment/ports")
	tenantWait(t, "deployment/ports", "--for=condition=Available")
	for _, ip := range externalIPs(t, "ports", 2) {
		reachesPods(t, ip, 80, 1)
	}
	eventually(t, 20*time.Second, func() error {
		if got := readyCondition(t, "taken"); !strings.Contains(got, "Address already in use") || !strings.Contains(got, "TCP ") {
			return fmt.Errorf("the condition of the Service is %q", got)
		}
		return nil
	})
	waitForEvent(t, "taken", "Address already in use")
	require.NoError(t, listener.Close())
	// The gateway retries refused records.
	eventually(t, 40*time.Second, func() error {
		if got := readyCondition(t, "taken"); !strings.Contains(got, "True Ready") {
			return fmt.Errorf("the condition of the Service is %q", got)
		}
		return nil
	})
	for _, ip := range externalIPs(t, "taken", 2) {
		reachesPods(t, ip, 8444, 1)
	}
}

// backendName is the dataplane under test.
func backendName() string {
	if name := os.Getenv("KUBELB_BACKEND"); name != "" {
		return name
	}
	return "nftables"
}

// otherBackend is the dataplane to change to.
func otherBackend() string {
	return map[string]string{"nftables": "envoy", "envoy": "ebpf", "ebpf": "nftables"}[backendName()]
}

// onlyWith skips the test with other dataplanes.
func onlyWith(t *testing.T, backends ...string) {
	t.Helper()
	if !slices.Contains(backends, backendName()) {
		t.Skipf("tests only %s", strings.Join(backends, " and "))
	}
}

// independentOfDataplane runs a test whose result does not depend on the dataplane only with nftables.
func independentOfDataplane(t *testing.T) {
	t.Helper()
	if backendName() != "nftables" {
		t.Skip("runs only with nftables: the dataplane makes no difference")
	}
}
