package manager

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"

	"kubelb.k8c.io/backends/dataplane"
)

var (
	works   = dataplane.Check{Group: dataplane.GroupModules, Subject: "module nft_ct", State: dataplane.CheckOK, Found: "is loaded"}
	missing = dataplane.Check{Group: dataplane.GroupKernel, Subject: "kernel", State: dataplane.CheckMissing, Found: "is too old", Advice: "install a newer one"}
	limited = dataplane.Check{Group: dataplane.GroupModules, Subject: "module veth", State: dataplane.CheckMissing, Costs: "tries", Found: "is missing", Command: "modprobe veth"}
	unknown = dataplane.Check{Group: dataplane.GroupClock, Subject: "clock", State: dataplane.CheckUnknown, Found: "no permission"}
	perhaps = dataplane.Check{Group: dataplane.GroupClock, Subject: "skew", State: dataplane.CheckUnknown, Costs: "certificates", Found: "no route"}
)

func TestTheReportHasALineForEachCheckAndTheFixBelowIt(t *testing.T) {
	var out bytes.Buffer
	report(&out, []dataplane.Check{unknown, limited, works, missing})
	require.Equal(t, `MISSING  Kernel       kernel         is too old
         install a newer one
LIMITED  Modules      module veth    is missing; does not work: tries
         run: modprobe veth
ok       Modules      module nft_ct  is loaded
unknown  Clock        clock          no permission

1 ok, 1 MISSING, 1 LIMITED, 1 unknown
`, out.String(), "groups that others depend on come first")
}

func TestTheExitStatusSaysWhetherAGatewayWouldWork(t *testing.T) {
	for says, c := range map[string]struct {
		checks []dataplane.Check
		err    error
		want   ExitStatus
	}{
		"all is there":                     {[]dataplane.Check{works}, nil, 0},
		"a feature does not work":          {[]dataplane.Check{works, limited, perhaps}, nil, 0},
		"something essential is missing":   {[]dataplane.Check{unknown, missing}, nil, ExitMissing},
		"something essential is unknown":   {[]dataplane.Check{works, unknown}, nil, ExitUnknown},
		"the dataplane could not be asked": {[]dataplane.Check{works}, errors.New("no plugin"), ExitUnknown},
		"and something is missing":         {[]dataplane.Check{missing}, errors.New("no plugin"), ExitMissing},
	} {
		require.Equal(t, c.want, exitStatus(c.checks, c.err), says)
	}
	require.EqualError(t, ExitUnknown, "exit status 2")
}

func TestPreflightRefusesFlagsThatCannotBe(t *testing.T) {
	var stdout, stderr bytes.Buffer
	require.NoError(t, Run(t.Context(), []string{preflightCommand, "--help"}, &stdout, &stderr))
	require.Contains(t, stdout.String(), "Exit status: 1 if a line says MISSING.")
	require.ErrorIs(t, preflight(t.Context(), []string{"--no-such-flag"}, io.Discard, io.Discard), ExitUnknown)
	require.Equal(t, ExitUnknown, preflight(t.Context(), []string{"--announce=smoke"}, io.Discard, &stderr))
	require.Contains(t, stderr.String(), "--announce=smoke: use layer2, bgp or none")
}

// The gateway's own checks do not need the plugin.
func TestWithoutThePluginThatIsSaidAndTheRestOfTheHostIsChecked(t *testing.T) {
	args := []string{"--backend=no-such-backend", "--announce=none", "--try-every=0", "--metrics-addr=0", "--health-probe-bind-address=0", "--state-dir=" + t.TempDir()}
	var stdout, stderr bytes.Buffer
	require.Equal(t, ExitUnknown, preflight(t.Context(), args, &stdout, &stderr))
	require.Contains(t, stderr.String(), "cannot run the checks of the dataplane: ")
	require.Contains(t, stdout.String(), "can be written")
	require.NoError(t, preflight(t.Context(), append(args, "--report-only"), io.Discard, io.Discard), "an init container does not block the gateway")
}

func TestAKubeconfigThatCannotBeReadLeavesTheClockUnknown(t *testing.T) {
	o := parsed(t, "--backend=no-such-backend", "--announce=none", "--try-every=0", "--metrics-addr=0", "--health-probe-bind-address=0", "--state-dir=", "--kubeconfig="+filepath.Join(t.TempDir(), "none"))
	checks, err := o.checks(t.Context())
	require.Error(t, err, "there is no such backend")
	last := checks[len(checks)-1]
	require.Equal(t, "clock compared with the management cluster's", last.Subject)
	require.Equal(t, dataplane.CheckUnknown, last.State)
	require.Contains(t, last.Found, "management cluster: ")
}

func TestTheTimeOfTheHubIsThatOfAnyAnswer(t *testing.T) {
	then := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	hub := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/prefix/version" {
			w.Header().Set("Date", "yesterday")
		} else {
			w.Header().Set("Date", then.Format(http.TimeFormat))
		}
		w.WriteHeader(http.StatusForbidden) // also an account without rights learns it
	}))
	defer hub.Close()
	got, err := hubTime(&rest.Config{Host: hub.URL + "/prefix"})(t.Context())
	require.NoError(t, err)
	require.Equal(t, then, got)
	_, err = hubTime(&rest.Config{Host: hub.URL})(t.Context())
	require.Error(t, err, "a time that is none")

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for says, config := range map[string]*rest.Config{"no answer": {Host: hub.URL}, "an address that is none": {Host: "http://hub:port"}, "a certificate that is none": {TLSClientConfig: rest.TLSClientConfig{CAFile: "/no/such/file"}}} {
		_, err := hubTime(config)(ended)
		require.ErrorContains(t, err, "management cluster: ", says)
	}
}
