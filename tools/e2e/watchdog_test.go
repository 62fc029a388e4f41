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

// noticedWithin is how long it takes at most until a fault is said, and until it is not said any more.
const noticedWithin = time.Minute

// fault is something that goes wrong behind an address, beyond what a gateway knows from its own dataplane.
type fault struct {
	name string
	// with is the dataplane that it is tried with, where others make no difference; all if empty.
	with        string
	begin, mend func(ctx context.Context) error
	// says is what explain says then.
	says string
}

// faults are of the Service at the node port.
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
		{name: "a firewall on the nodes", says: "the gateway itself does not reach",
			begin: onNodes("nft add table inet fault", "nft add chain inet fault in { type filter hook prerouting priority -500 ; }", "nft add rule inet fault in tcp dport "+nodePort+" drop"),
			mend:  onNodes("nft delete table inet fault")},
		{name: "nodes whose way back leads elsewhere", with: "nftables", says: "the gateway itself does not reach",
			begin: onNodes("ip route add blackhole 192.0.2.1/32", "ip route add blackhole 198.51.100.1/32", "ip -6 route add blackhole 2001:db8:1::1/128"),
			mend:  onNodes("ip route del blackhole 192.0.2.1/32", "ip route del blackhole 198.51.100.1/32", "ip -6 route del blackhole 2001:db8:1::1/128")},
		{name: "a switch that takes nothing from the gateway", with: "nftables", says: "SegmentSilent",
			begin: func(ctx context.Context) error { return lab.BlockPort(ctx, "gateway", true) },
			mend:  func(ctx context.Context) error { return lab.BlockPort(ctx, "gateway", false) }},
		{name: "a proxy that hangs", with: "envoy", says: "DataplaneSilent",
			begin: func(context.Context) error { return signalEnvoy(syscall.SIGSTOP) },
			mend:  func(context.Context) error { return signalEnvoy(syscall.SIGCONT) }},
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

// explained is what kubelb explain says of the Service.
func explained(t *testing.T, name string) (string, int) {
	t.Helper()
	return kubelb(t, "explain", "default/"+name, "--tenant="+cluster.TenantName)
}

// checked is what kubelb check says of the Service, on a host that clients' packets can come from.
func checked(t *testing.T, operator *netlab.Namespace, name string) (string, int) {
	t.Helper()
	return kubelbOn(t, operator, "check", "default/"+name, "--tenant="+cluster.TenantName)
}

func TestWhatFailsBehindAnAddressIsSaidWithinAMinute(t *testing.T) {
	lab.Manager.Stop()
	require.NoError(t, lab.StartManager("--try-every=5s"))
	t.Cleanup(func() {
		lab.Manager.Stop()
		require.NoError(t, lab.StartManager())
	})
	ips := serve(t, "watched")
	operator, err := lab.AddGateway("operator", 101)
	require.NoError(t, err)
	nodePort := tenantGet(t, "service/watched", "{.spec.ports[0].nodePort}")
	well := func() error {
		says, status := explained(t, "watched")
		if status != 0 {
			return fmt.Errorf("explain ends with %d:\n%s", status, says)
		}
		if ready := readyCondition(t, "watched"); !strings.HasPrefix(ready, "True Ready") {
			return fmt.Errorf("the Service's condition is %s", ready)
		}
		return nil
	}
	eventually(t, noticedWithin, well)
	says, status := checked(t, operator, "watched")
	require.Zero(t, status, says)
	require.Equal(t, 2, strings.Count(says, "answered"), says)
	for _, f := range faults(nodePort) {
		if f.with != "" && f.with != backendName() {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			mended := false
			t.Cleanup(func() {
				if !mended {
					require.NoError(t, f.mend(contextAfter(t)))
				}
			})
			began := time.Now()
			require.NoError(t, f.begin(t.Context()))
			eventually(t, noticedWithin, func() error {
				says, status := explained(t, "watched")
				if status != 1 || !strings.Contains(says, f.says) {
					return fmt.Errorf("explain ends with %d:\n%s", status, says)
				}
				return nil
			})
			says, _ := explained(t, "watched")
			t.Logf("said after %s:\n%s\nthe Service: %s", time.Since(began).Round(time.Second), says, readyCondition(t, "watched"))
			require.Equal(t, ips, externalIPs(t, "watched", len(ips)), "it keeps its addresses")
			says, status := checked(t, operator, "watched")
			require.Equal(t, 1, status, says)
			require.NoError(t, f.mend(t.Context()))
			mended, began = true, time.Now()
			eventually(t, noticedWithin, well)
			t.Logf("not said any more after %s", time.Since(began).Round(time.Second))
		})
	}
}

// Nobody has to see it: the dataplane notices by itself.
func TestADataplaneThatIsEmptiedByHandIsFilledAgain(t *testing.T) {
	onlyWith(t, "nftables")
	ips := serve(t, "emptied")
	for _, family := range []string{"ip", "ip6"} {
		_, err := lab.OnGateway(t.Context(), "nft", "flush", "table", family, "kubelb")
		require.NoError(t, err)
		_, err = lab.OnGateway(t.Context(), "nft", "delete", "table", family, "kubelb")
		require.NoError(t, err)
	}
	began := time.Now()
	for _, ip := range ips {
		reachesPods(t, ip, 80, 1)
	}
	t.Logf("served again within %s", time.Since(began).Round(time.Millisecond))
}
