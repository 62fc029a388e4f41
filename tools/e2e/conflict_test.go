package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/tools/cluster"
)

// conflictMessage is the message of the gateway's condition about addresses that another host has, too. Empty if there is none.
func conflictMessage(t *testing.T) string {
	t.Helper()
	return hubGet(t, "", "gateways.kubelb.k8c.io/gateway", fmt.Sprintf("{.status.conditions[?(@.type==%q)].message}", v1alpha1.ConditionAddressConflict))
}

// assign adds an address to the client's interface, or deletes it.
func assign(ctx context.Context, verb, address string) error {
	a := netip.MustParseAddr(address)
	argv := []string{"ip", "address", verb, fmt.Sprintf("%s/%d", a, a.BitLen()), "dev", "eth0"}
	if a.Is6() && verb == "add" {
		argv = append(argv, "nodad") // duplicate address detection would find the gateway
	}
	_, err := lab.FromClient(ctx, argv...)
	return err
}

func TestAHostThatHasAnAddressOfTheGatewayIsReported(t *testing.T) {
	apply(t, web("claimed", 1)+service("claimed", "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "service/claimed", "deployment/claimed")
	addresses := externalIPs(t, "claimed", 2)
	for _, a := range addresses {
		reachesPods(t, a, 80, 1)
	}
	require.Empty(t, conflictMessage(t))

	link, err := lab.FromClient(t.Context(), "ip", "-brief", "link", "show", "eth0")
	require.NoError(t, err)
	mac := strings.Fields(link)[2]
	assigned := map[string]bool{}
	t.Cleanup(func() {
		for a := range assigned {
			require.NoError(t, assign(cleanUpContext(t), "delete", a))
		}
	})
	for _, a := range addresses {
		require.NoError(t, assign(t.Context(), "add", a))
		assigned[a] = true
	}
	// The host does not announce the address, it only answers for it.
	eventually(t, time.Minute, func() error {
		message := conflictMessage(t)
		for _, a := range addresses {
			if !strings.Contains(message, a+" by "+mac) {
				return fmt.Errorf("the message is %q", message)
			}
		}
		return nil
	})
	waitForEvent(t, "claimed", "AddressConflict: served, but: another host on the gateways' segment also answers for "+strings.Join(addresses, ", "))
	page, status := kubelb(t, "explain", "default/claimed", "--tenant="+cluster.TenantName)
	require.Equal(t, 1, status, page)
	require.Regexp(t, "NO +connections to it are answered +AddressConflict", page)
	page, status = kubelb(t, "status")
	require.Equal(t, 1, status)
	require.Contains(t, page, "AnotherHostAnswers")

	for _, a := range addresses {
		require.NoError(t, assign(t.Context(), "delete", a))
		delete(assigned, a)
	}
	eventually(t, 40*time.Second, func() error {
		if message := conflictMessage(t); message != "" {
			return fmt.Errorf("the message is still %q", message)
		}
		return nil
	})
	eventually(t, 10*time.Second, func() error {
		if condition := readyCondition(t, "claimed"); strings.Contains(condition, "AddressConflict") {
			return errors.New(condition)
		}
		return nil
	})
	for _, a := range addresses {
		reachesPods(t, a, 80, 1)
	}
}
