package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/conformance/netlab"
	"kubelb.k8c.io/tools/cluster"
)

// detectionLimit is the longest time until a fault is reported, and until its end is.
const detectionLimit = time.Minute

// fault is a failure that a gateway cannot detect in its own dataplane.
type fault struct {
	name string
	// backend is the only dataplane with which the fault is tested. Empty is all.
	backend       string
	cause, repair func(ctx context.Context) error
	// want is a part of the output of kubelb explain during the fault.
	want string
}

// faults returns the faults of a Service with this node port.
func faults(nodePort string) []fault {
	onNodes := func(argv ...string) func(context.Context) error {
		return func(ctx context.Context) error {
			for _, n := range lab.Nodes {
				for _, command := range argv {
					if _, err := lab.OnNode(ctx, n, strings.Fields(command)...); err != nil {
						return err
					}
				}
			}
			return nil
		}
	}
	return []fault{
		{name: "a firewall on the nodes", want: "the gateway itself does not reach",
			cause:  onNodes("nft add table inet fault", "nft add chain inet fault in { type filter hook prerouting priority -500 ; }", "nft add rule inet fault in tcp dport "+nodePort+" drop"),
			repair: onNodes("nft delete table inet fault")},
		{name: "nodes with another route back to the gateway", backend: "nftables", want: "the gateway itself does not reach",
			cause:  onNodes("ip route add blackhole 192.0.2.1/32", "ip route add blackhole 198.51.100.1/32", "ip -6 route add blackhole 2001:db8:1::1/128"),
			repair: onNodes("ip route del blackhole 192.0.2.1/32", "ip route del blackhole 198.51.100.1/32", "ip -6 route del blackhole 2001:db8:1::1/128")},
		{name: "a switch that drops frames from the gateway", backend: "nftables", want: "SegmentSilent",
			cause:  func(ctx context.Context) error { return lab.BlockPort(ctx, "gateway", true) },
			repair: func(ctx context.Context) error { return lab.BlockPort(ctx, "gateway", false) }},
		{name: "a proxy that hangs", backend: "envoy", want: "DataplaneSilent",
			cause:  func(context.Context) error { return signalEnvoy(syscall.SIGSTOP) },
			repair: func(context.Context) error { return signalEnvoy(syscall.SIGCONT) }},
	}
}

// signalEnvoy sends a signal to the gateway's Envoy, which is in the same network namespace as its manager.
func signalEnvoy(signal syscall.Signal) error {
	namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", lab.Manager.PID()))
	if err != nil {
		return err
	}
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return err
	}
	for _, file := range names {
		name, _ := os.ReadFile(file) // it may have ended
		in, _ := os.Readlink(filepath.Join(filepath.Dir(file), "ns/net"))
		if strings.TrimSpace(string(name)) != "envoy" || in != namespace {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return err
		}
		return syscall.Kill(pid, signal)
	}
	return errors.New("the gateway has no Envoy")
}

// explain runs kubelb explain for the Service.
func explain(t *testing.T, name string) (string, int) {
	t.Helper()
	return kubelb(t, "explain", "default/"+name, "--tenant="+cluster.TenantName)
}

// check runs kubelb check for the Service, on a host of the clients' segment.
func check(t *testing.T, operator *netlab.Namespace, name string) (string, int) {
	t.Helper()
	return kubelbOn(t, operator, "check", "default/"+name, "--tenant="+cluster.TenantName)
}

func TestFaultsBehindAnAddressAreReportedWithinAMinute(t *testing.T) {
	lab.Manager.Stop()
	require.NoError(t, lab.StartManager("--try-every=5s"))
	t.Cleanup(func() {
		lab.Manager.Stop()
		require.NoError(t, lab.StartManager())
	})
	ips := createService(t, "watched")
	operator, err := lab.AddGateway("operator", 101)
	require.NoError(t, err)
	nodePort := tenantGet(t, "service/watched", "{.spec.ports[0].nodePort}")
	healthy := func() error {
		out, status := explain(t, "watched")
		if status != 0 {
			return fmt.Errorf("explain exits with %d:\n%s", status, out)
		}
		if ready := readyCondition(t, "watched"); !strings.HasPrefix(ready, "True Ready") {
			return fmt.Errorf("the Service's condition is %s", ready)
		}
		return nil
	}
	eventually(t, detectionLimit, healthy)
	out, status := check(t, operator, "watched")
	require.Zero(t, status, out)
	require.Equal(t, 2, strings.Count(out, "answered"), out)
	for _, f := range faults(nodePort) {
		if f.backend != "" && f.backend != backendName() {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			repaired := false
			t.Cleanup(func() {
				if !repaired {
					require.NoError(t, f.repair(cleanUpContext(t)))
				}
			})
			start := time.Now()
			require.NoError(t, f.cause(t.Context()))
			eventually(t, detectionLimit, func() error {
				out, status := explain(t, "watched")
				if status != 1 || !strings.Contains(out, f.want) {
					return fmt.Errorf("explain exits with %d:\n%s", status, out)
				}
				return nil
			})
			out, _ := explain(t, "watched")
			t.Logf("reported after %s:\n%s\nthe Service: %s", time.Since(start).Round(time.Second), out, readyCondition(t, "watched"))
			require.Equal(t, ips, externalIPs(t, "watched", len(ips)), "the Service keeps its addresses")
			out, status := check(t, operator, "watched")
			require.Equal(t, 1, status, out)
			require.NoError(t, f.repair(t.Context()))
			repaired, start = true, time.Now()
			eventually(t, detectionLimit, healthy)
			t.Logf("not reported any more after %s", time.Since(start).Round(time.Second))
		})
	}
}

// The plugin detects the change itself.
func TestADataplaneThatIsEmptiedIsRestored(t *testing.T) {
	onlyWith(t, "nftables")
	ips := createService(t, "emptied")
	for _, family := range []string{"ip", "ip6"} {
		_, err := lab.OnGateway(t.Context(), "nft", "flush", "table", family, "kubelb")
		require.NoError(t, err)
		_, err = lab.OnGateway(t.Context(), "nft", "delete", "table", family, "kubelb")
		require.NoError(t, err)
	}
	start := time.Now()
	for _, ip := range ips {
		reachesPods(t, ip, 80, 1)
	}
	t.Logf("served again within %s", time.Since(start).Round(time.Millisecond))
}
