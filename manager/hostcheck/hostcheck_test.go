package hostcheck

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
)

func TestAPortInUseNamesTheProgramThatHasIt(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	port := Port{Network: "tcp", Address: listener.Addr().String(), For: "metrics", Flag: "--metrics-addr"}
	check := port.check()
	require.Equal(t, dataplane.CheckMissing, check.State)
	require.Contains(t, check.Found, fmt.Sprintf("(process %d)", os.Getpid()))
	require.Equal(t, "end that program, or choose another port by --metrics-addr", check.Fix())
	require.NoError(t, listener.Close())
	require.Equal(t, dataplane.CheckOK, port.check().State)
	require.Equal(t, dataplane.CheckOK, port.check().State, "the check itself leaves nothing")

	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer conn.Close()
	check = Port{Network: "udp", Address: conn.LocalAddr().String(), For: "BFD", Costs: "BFD with routers"}.check()
	require.Equal(t, dataplane.CheckMissing, check.State)
	require.Equal(t, "end that program", check.Fix())
	require.False(t, check.Required())
}

func TestAnAddressOfAnotherHostIsReported(t *testing.T) {
	check := Port{Network: "tcp", Address: "192.0.2.1:9443", For: "metrics", Flag: "--metrics-addr"}.check()
	require.Equal(t, dataplane.CheckMissing, check.State)
	require.Equal(t, "choose another port by --metrics-addr", check.Fix())
}

func TestAClockSkewIsReported(t *testing.T) {
	skewOf := func(hub func(context.Context) (time.Time, error)) dataplane.Check {
		checks := clockCheck(t.Context(), hub)
		require.Len(t, checks, 2)
		return checks[1]
	}
	later := func(d time.Duration) func(context.Context) (time.Time, error) {
		return func(context.Context) (time.Time, error) { return time.Now().Add(d).Truncate(time.Second), nil }
	}
	require.Equal(t, dataplane.CheckOK, skewOf(later(0)).State)
	require.Equal(t, dataplane.CheckOK, skewOf(later(4*time.Second)).State)
	for _, d := range []time.Duration{time.Hour, -time.Hour} {
		check := skewOf(later(d))
		require.Equal(t, dataplane.CheckMissing, check.State)
		require.Equal(t, "about 1h0m0s apart", check.Found)
		require.Equal(t, "run: timedatectl set-ntp true     # needs chrony or systemd-timesyncd", check.Fix())
	}
	check := skewOf(func(context.Context) (time.Time, error) { return time.Time{}, errors.New("no route") })
	require.Equal(t, dataplane.CheckUnknown, check.State)
	require.Equal(t, "no route", check.Found)
	require.Len(t, clockCheck(t.Context(), nil), 1, "there is no cluster to ask")
}

func TestTriesNeedVirtualInterfaces(t *testing.T) {
	subjects := func(n Needs) (all []string) {
		for _, c := range n.Checks(t.Context()) {
			all = append(all, c.Subject)
		}
		return all
	}
	require.Contains(t, subjects(Needs{Tries: true}), "module veth")
	require.NotContains(t, subjects(Needs{}), "module veth")
	check := Needs{Tries: true}.Checks(t.Context())[0]
	require.Equal(t, dataplane.CheckOK, check.State, "other tests make such pairs here")
	require.False(t, check.Required(), "the gateway serves without them")
}

func TestWithoutTheCapabilityVirtualInterfacesAreUnknown(t *testing.T) {
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(root+"/proc", 0o700))
	require.NoError(t, os.WriteFile(root+"/proc/modules", []byte("veth 32768 0 - Live 0\n"), 0o600))
	modules := preflight.Host{Root: root, Release: "6.1.0"}.Modules()
	check := pairCheckAfter(modules, unix.EPERM)
	require.Equal(t, dataplane.CheckUnknown, check.State)
	require.Equal(t, "cannot be checked without the capability NET_ADMIN", check.Found)
	require.Empty(t, check.Fix())
	require.Equal(t, dataplane.CheckOK, pairCheckAfter(modules, nil).State)
	require.Equal(t, dataplane.CheckMissing, pairCheckAfter(modules, unix.EOPNOTSUPP).State)
}
