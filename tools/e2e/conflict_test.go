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

// conflict is what the gateway says of addresses that another host has, too; empty if there is none.
func conflict(t *testing.T) string {
	t.Helper()
	return hubKubectl(t, "get", "gateways.kubelb.k8c.io", "gateway", "-o", fmt.Sprintf("jsonpath={.status.conditions[?(@.type==%q)].message}", v1alpha1.ConditionAddressConflict))
}

// assign gives the client an address for its own, or takes it.
func assign(ctx context.Context, verb, address string) error {
	a := netip.MustParseAddr(address)
	argv := []string{"ip", "address", verb, fmt.Sprintf("%s/%d", a, a.BitLen()), "dev", "eth0"}
	if a.Is6() && verb == "add" {
		argv = append(argv, "nodad") // it would find out that the address is another host's
	}
	_, err := lab.FromClient(ctx, argv...)
	return err
}

func TestAHostThatHasAnAddressOfTheGatewayIsNamed(t *testing.T) {
	apply(t, web("claimed", 1)+service("claimed", "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "service/claimed", "deployment/claimed")
	addresses := externalIPs(t, "claimed", 2)
	for _, a := range addresses {
		reachesPods(t, a, 80, 1)
	}
	require.Empty(t, conflict(t))

	link, err := lab.FromClient(t.Context(), "ip", "-brief", "link", "show", "eth0")
	require.NoError(t, err)
	mac := strings.Fields(link)[2]
	assigned := map[string]bool{}
	t.Cleanup(func() {
		for a := range assigned {
			require.NoError(t, assign(contextAfter(t), "delete", a))
		}
	})
	for _, a := range addresses {
		require.NoError(t, assign(t.Context(), "add", a))
		assigned[a] = true
	}
	// It says nothing by itself, and answers who asks for the address.
	eventually(t, time.Minute, func() error {
		is := conflict(t)
		for _, a := range addresses {
			if !strings.Contains(is, a+" by "+mac) {
				return fmt.Errorf("the gateway says %q", is)
			}
		}
		return nil
	})
	recorded(t, "claimed", "AddressConflict: served, but: another host on the gateways' segment also answers for "+strings.Join(addresses, ", "))
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
		if is := conflict(t); is != "" {
			return fmt.Errorf("the gateway says still %q", is)
		}
		return nil
	})
	eventually(t, 10*time.Second, func() error {
		if is := readyCondition(t, "claimed"); strings.Contains(is, "AddressConflict") {
			return errors.New(is)
		}
		return nil
	})
	for _, a := range addresses {
		reachesPods(t, a, 80, 1)
	}
}
