package plugin

import (
	"testing"

	goplugin "github.com/hashicorp/go-plugin"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"kubelb.k8c.io/backends/dataplane"
	pb "kubelb.k8c.io/backends/plugin/dataplanepb"
)

func TestChecksCrossTheWireUnchanged(t *testing.T) {
	checks := []dataplane.Check{
		{Group: dataplane.GroupModules, Subject: "module nft_ct", State: dataplane.CheckMissing, Found: "not loaded", Command: "modprobe nft_ct", Advice: "on the host"},
		{Group: dataplane.GroupSysctls, Subject: "sysctl net.ipv4.ip_forward", State: dataplane.CheckOK, Found: "is 1"},
		{Group: dataplane.GroupClock, Subject: "clock", State: dataplane.CheckUnknown, Costs: "certificates", Found: "not known"},
	}
	d, _ := overTheWire(t, &dataplane.Fake{Checks: checks})
	got, err := d.Preflight(t.Context(), dataplane.Config{StateDir: "gw"})
	require.NoError(t, err)
	require.Equal(t, checks, got)
}

func TestAPluginWithoutPreflightHasNoChecks(t *testing.T) {
	connection, server := goplugin.TestGRPCConn(t, func(s *grpc.Server) { pb.RegisterDataplaneServer(s, pb.UnimplementedDataplaneServer{}) })
	t.Cleanup(func() {
		connection.Close()
		server.Stop()
	})
	checks, err := (&client{pb.NewDataplaneClient(connection)}).Preflight(t.Context(), dataplane.Config{})
	require.NoError(t, err)
	require.Empty(t, checks)
}
