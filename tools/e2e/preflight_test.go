package e2e

import (
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// hostCondition returns the message of a condition about the gateway's host, empty if there is no such condition.
func hostCondition(t *testing.T, group string) string {
	t.Helper()
	return hubGet(t, "", "gateways.kubelb.k8c.io/gateway", `{.status.conditions[?(@.type=="Host`+group+`")].message}`)
}

// The command in the condition solves the problem. The test runs only its first part: the second one, which makes it permanent, would write to this host.
func TestProblemsOfAGatewaysHostAreReportedUntilTheyAreSolved(t *testing.T) {
	independentOfDataplane(t)
	const key = "net.ipv4.conf.clients.rp_filter"
	set := func(value string) {
		out, err := lab.OnGateway(t.Context(), "sysctl", "-w", key+"="+value)
		require.NoError(t, err, out)
	}
	before, err := lab.OnGateway(t.Context(), "sysctl", "-n", key)
	require.NoError(t, err)
	t.Cleanup(func() { _, _ = lab.OnGateway(t.Context(), "sysctl", "-w", key+"="+strings.TrimSpace(before)) })
	require.Empty(t, hostCondition(t, "Sysctls"))
	set("1")
	lab.Manager.Stop()
	require.NoError(t, lab.StartManager())
	eventually(t, 20*time.Second, func() error {
		if hostCondition(t, "Sysctls") == "" {
			return errors.New("the Gateway object has no condition HostSysctls")
		}
		return nil
	})
	command := regexp.MustCompile(`^sysctl ` + key + `: .* run: sysctl -w ` + key + `=(\d) && `).FindStringSubmatch(hostCondition(t, "Sysctls"))
	require.NotNil(t, command, hostCondition(t, "Sysctls"))
	page, _ := kubelb(t, "status")
	require.Contains(t, page, "warning: gateway gateway: HostSysctls: sysctl "+key)
	set(command[1])
	eventually(t, 45*time.Second, func() error {
		if message := hostCondition(t, "Sysctls"); message != "" {
			return errors.New(message)
		}
		return nil
	})
}
