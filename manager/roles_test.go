package manager

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/manager/announce"
	"kubelb.k8c.io/manager/gateway"
	"kubelb.k8c.io/manager/membership"
)

// kubeconfigOf writes a kubeconfig for a server.
func kubeconfigOf(t *testing.T, url string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"hub","contexts":[{"name":"hub","context":{"cluster":"hub","user":"u"}}],"clusters":[{"name":"hub","cluster":{"server":%q}}],"users":[{"name":"u","user":{}}]}`, url)
	require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
	return name
}

// hubWithoutRights is an API server that says which kinds it has, and refuses all else.
func hubWithoutRights(t *testing.T) string {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, errors.Join(corev1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)))
	answers := map[string]any{"/api": metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"}}}
	ours := metav1.GroupVersionForDiscovery{GroupVersion: v1alpha1.GroupVersion.String(), Version: v1alpha1.GroupVersion.Version}
	answers["/apis"] = metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"},
		Groups: []metav1.APIGroup{{Name: v1alpha1.GroupVersion.Group, Versions: []metav1.GroupVersionForDiscovery{ours}, PreferredVersion: ours}}}
	answers["/apis/"+v1alpha1.GroupVersion.Group] = metav1.APIGroup{TypeMeta: metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}, Name: v1alpha1.GroupVersion.Group, Versions: []metav1.GroupVersionForDiscovery{ours}, PreferredVersion: ours}
	for path, of := range map[string]schema.GroupVersion{"/api/v1": corev1.SchemeGroupVersion, "/apis/" + ours.GroupVersion: v1alpha1.GroupVersion} {
		list := metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: of.String()}
		for kind := range scheme.KnownTypes(of) {
			plural, _ := meta.UnsafeGuessKindToResource(of.WithKind(kind))
			list.APIResources = append(list.APIResources, metav1.APIResource{Name: plural.Resource, Kind: kind, Namespaced: kind != "Node"})
		}
		answers[path] = list
	}
	forbidden := metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Reason: metav1.StatusReasonForbidden, Code: http.StatusForbidden}
	hub := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		answer, found := answers[r.URL.Path]
		if !found {
			w.WriteHeader(http.StatusForbidden)
			answer = forbidden
		}
		_ = json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(hub.Close)
	return hub.URL
}

// run runs the program with flags that open no port, until ctx ends.
func run(ctx context.Context, t *testing.T, flags ...string) (logged string, err error) {
	t.Helper()
	var stderr bytes.Buffer
	err = Run(ctx, append([]string{"--gateway-name=g", "--metrics-addr=0", "--health-probe-bind-address=0", "--kubeconfig=" + kubeconfigOf(t, hubWithoutRights(t)), "--state-dir=" + t.TempDir()}, flags...), io.Discard, &stderr)
	return stderr.String(), err
}

func TestFlagsThatAreReadLateAreRefusedByNameToo(t *testing.T) {
	for says, flags := range map[string][]string{
		"--forbidden-cidrs: ":                               {"--forbidden-cidrs=10.0.0.0/8,pods"},
		"no-such-backend":                                   {"--controller=false", "--backend=no-such-backend"},
		"--try-every=1s: use 5s":                            {"--controller=false", "--backend=/bin/true", "--try-every=1s"},
		"--announce=arp: ":                                  {"--controller=false", "--backend=/bin/true", "--announce=arp"},
		"--announce-interfaces is":                          {"--controller=false", "--backend=/bin/true"},
		"CA for the tenants' kubeconfigs: open /no/such/ca": {"--gateway=false", "--enable-leader-election=false", "--api-server-ca=/no/such/ca"},
	} {
		_, err := run(t.Context(), t, flags...)
		require.ErrorContains(t, err, says, flags)
	}
}

func TestAnAccountThatCannotReadNodesIsToldWhatThatMeans(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	// A forbidden list must not look like a hub that does not answer.
	deadline, end := context.WithTimeout(t.Context(), 10*time.Second)
	defer end()
	logged, _ := run(deadline, t, "--controller=false", "--backend=no-such-backend")
	require.Contains(t, logged, "cannot read the management cluster's Nodes, so tenants may target them")
	require.Contains(t, logged, "--forbidden-cidrs")
	logged, err := run(ended, t, "--controller=false", "--gateway=false")
	require.NoError(t, err, "it ends with ctx")
	require.Contains(t, logged, "cannot check whether the management cluster's Nodes can be read")
}

func TestTheLogHasTheFormatAndLevelOfTheFlags(t *testing.T) {
	logged, _ := run(t.Context(), t, "--controller=false", "--backend=no-such-backend", "--log-format=json")
	require.Contains(t, logged, `"level":"WARN"`)
	logged, _ = run(t.Context(), t, "--controller=false", "--backend=no-such-backend", "--log-level=error")
	require.Empty(t, logged)
}

func TestWithoutAKubeconfigTheProgramHasToRunInAPod(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	err := Run(t.Context(), []string{"--gateway-name=g"}, io.Discard, io.Discard)
	require.ErrorContains(t, err, "management cluster: ")
	require.ErrorIs(t, err, rest.ErrNotInCluster)
}

// managerOf returns a manager that has not started.
func managerOf(t *testing.T) manager.Manager {
	t.Helper()
	mgr, err := ctrl.NewManager(&rest.Config{Host: "http://127.0.0.1:1"}, ctrl.Options{Metrics: server.Options{BindAddress: "0"}})
	require.NoError(t, err)
	return mgr
}

func TestEachWayToAnnounceBringsWhatItNeeds(t *testing.T) {
	gatewayWith := func(flags ...string) gateway.Options {
		g := gateway.Options{Log: slog.New(slog.DiscardHandler), Wake: gateway.NewWake()}
		g.HostChecks = func(context.Context) []dataplane.Check { return []dataplane.Check{works} }
		require.NoError(t, parsed(t, append(flags, "--gateway-name=g", "--state-dir="+t.TempDir())...).announcer(managerOf(t), &g))
		return g
	}
	g := gatewayWith("--announce=none")
	require.Equal(t, announce.None{}, g.Announcer)
	require.NotNil(t, g.LivenessLease, "it has a Lease, for the report")
	require.True(t, g.Member == nil && g.Right == nil && g.Speaker == nil && !g.Elects)

	g = gatewayWith("--announce=bgp", "--bgp-router-id=10.0.0.1")
	require.NotNil(t, g.Speaker)
	require.Same(t, g.Speaker, g.Announcer)
	require.True(t, g.Member != nil && g.Right != nil && g.Heartbeats != nil)
	require.False(t, g.Elects, "each gateway announces each address")

	g = gatewayWith("--announce=layer2", "--announce-interfaces=lo, p0")
	require.IsType(t, &announce.Layer2{}, g.Announcer)
	require.True(t, g.Elects && g.Member != nil && g.Right != nil && g.Heartbeats != nil)
	require.Equal(t, []string{"lo", "p0"}, g.CheckedInterfaces)
	require.NotNil(t, g.Conflicts)
	require.Contains(t, g.HostChecks(t.Context()), works, "the checks of the host stay")
	require.NotNil(t, g.Addresses)
}

func TestAGatewayHasTheOptionsOfItsFlags(t *testing.T) {
	o := parsed(t, "--gateway-name=g", "--backend=/bin/true", "--announce=none", "--gateway-label=rack=1", "--handover=3m", "--drain-timeout=20s", "--purge-on-exit", "--state-dir="+t.TempDir())
	g, err := o.newGateway(managerOf(t), []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}, true, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.NotNil(t, g)
	require.Error(t, g.Ready(nil), "it has not started")
}

func TestTheDefaultsOfFlagsAreValid(t *testing.T) {
	o := parsed(t, "--gateway-name=g")
	require.NoError(t, o.validate())
	require.True(t, o.controller && o.gateway && o.leaderElection)
	require.False(t, o.purge || o.router || o.prepareHost || o.stayOnExit)
	require.Equal(t, membership.DefaultDuration, o.lease)
	require.Equal(t, aloneKeep, o.whenAlone)
	require.Empty(t, o.backendOptions.String(), "help shows no default")
	for _, flags := range [][]string{{"--gateway-lease=10m"}, {"--tenant-token-lifetime=0"}, {"--tenant-token-lifetime=10m"}, {"--when-alone=withdraw"}, {"--gateway=false", "--gateway-name=NOT_A_NAME"}} {
		require.NoError(t, parsed(t, append([]string{"--gateway-name=g"}, flags...)...).validate(), flags)
	}
}

func TestALaterValueOfOneKeyReplacesTheEarlierOne(t *testing.T) {
	o := parsed(t, "--backend-option=xdp=native", "--backend-option=xdp=generic", "--backend-option=a=b=c", "--gateway-label=x=y")
	require.Equal(t, keyValues{"xdp": "generic", "a": "b=c"}, o.backendOptions)
	require.Equal(t, keyValues{"x": "y"}, o.labels)
}
