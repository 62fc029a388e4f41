package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/api/v1alpha1"
)

// conflict is what the gateway says of addresses that another host has, too; empty if there is none.
func conflict(t *testing.T) string {
	t.Helper()
	out, err := lab.Hub.Kubectl(t.Context(), "", "get", "gateways.kubelb.k8c.io", "gateway", "-o",
		fmt.Sprintf("jsonpath={.status.conditions[?(@.type==%q)].message}", v1alpha1.ConditionAddressConflict))
	require.NoError(t, err)
	return out
}

func TestAHostThatHasAnAddressOfTheGatewayIsNamed(t *testing.T) {
	apply(t, web("claimed", 1)+service("claimed", "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "service/claimed", "deployment/claimed")
	address := externalIPs(t, "claimed", 2)[0]
	reachesPods(t, address, 80, 1)
	require.Empty(t, conflict(t))

	link, err := lab.FromClient(t.Context(), "ip", "-brief", "link", "show", "eth0")
	require.NoError(t, err)
	mac := strings.Fields(link)[2]
	_, err = lab.FromClient(t.Context(), "ip", "address", "add", address+"/32", "dev", "eth0")
	require.NoError(t, err)
	give := func(ctx context.Context) error {
		_, err := lab.FromClient(ctx, "ip", "address", "delete", address+"/32", "dev", "eth0")
		return err
	}
	given := false
	t.Cleanup(func() {
		if !given {
			require.NoError(t, give(context.Background()))
		}
	})
	// It asks for somebody who is not there, and says whom to tell.
	_, _ = lab.FromClient(t.Context(), "curl", "-s", "--max-time", "1", "--interface", address, "http://192.0.2.99/")
	eventually(t, 20*time.Second, func() error {
		if is := conflict(t); !strings.Contains(is, address+" by "+mac) {
			return fmt.Errorf("the gateway says %q", is)
		}
		return nil
	})
	eventually(t, 10*time.Second, func() error {
		out, err := lab.Tenant.Kubectl(t.Context(), "", "describe", "service", "claimed")
		if err != nil || !strings.Contains(out, "AddressConflict") || !strings.Contains(out, "answers for "+address+", too") {
			return fmt.Errorf("no event of the Service tells of it (%v):\n%s", err, out)
		}
		return nil
	})
	page, status := kubelb(t, "status")
	require.Equal(t, 1, status)
	require.Contains(t, page, "AnotherHostAnswers")

	given = true
	require.NoError(t, give(t.Context()))
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
	reachesPods(t, address, 80, 1)
}
