package gateway

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
	"kubelb.k8c.io/backends/plugin"
)

// TestMain serves needy where this binary is started as a backend's.
func TestMain(m *testing.M) {
	if os.Getenv("KUBELB_DATAPLANE") != "" {
		plugin.Serve(&needy{})
		return
	}
	os.Exit(m.Run())
}

// needy is a dataplane whose host has a module, and a sysctl, if their files are in the directory that its options name. It cannot tell with a
// file mute.
type needy struct {
	dataplane.Fake
	config dataplane.Config
}

const hostOption = "host"

// Files of needy's host.
const (
	moduleFile, sysctlFile, muteFile = "module", "proc/sys/it", "mute"
)

func has(config dataplane.Config, file string) bool {
	_, err := os.Stat(filepath.Join(config.Options[hostOption], file))
	return err == nil
}

func (n *needy) Preflight(_ context.Context, config dataplane.Config) ([]dataplane.Check, error) {
	n.hang(config, "Preflight")
	if has(config, muteFile) {
		return nil, errors.New("netlink dump interrupted")
	}
	checks := []dataplane.Check{
		{Group: dataplane.GroupModules, Subject: "module", Found: "not loaded", Command: "modprobe it"},
		{Group: dataplane.GroupSysctls, Subject: "sysctl it", Found: "is 0", Command: "sysctl -w it=1", Costs: "forwarding: direct"},
	}
	for i, file := range []string{moduleFile, sysctlFile} {
		checks[i].State = dataplane.CheckMissing
		if has(config, file) {
			checks[i].State, checks[i].Found = dataplane.CheckOK, "it is there"
		}
	}
	return checks, nil
}

// Configure fails as a kernel does that lacks the module.
func (n *needy) Configure(ctx context.Context, config dataplane.Config) error {
	if !has(config, moduleFile) {
		return errors.New("conn.Receive: netlink receive: no such file or directory")
	}
	n.config = config
	n.hang(config, "Configure")
	return n.Fake.Configure(ctx, config)
}

// onHost is a gateway with needy as its backend, and what it logs.
type onHost struct {
	*Gateway
	t   *testing.T
	dir string
	log strings.Builder
}

func newOnHost(t *testing.T) *onHost {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	scheme := runtime.NewScheme()
	require.NoError(t, v1alpha1.AddToScheme(scheme))
	hub := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.Gateway{}).Build()
	h := &onHost{t: t, dir: t.TempDir()}
	// A socket's path may have no more than 107 bytes.
	state, err := os.MkdirTemp("", "kubelb-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(state)) })
	h.Gateway = New(Options{Name: "g", Announcer: board{}, Log: slog.New(slog.NewTextHandler(&h.log, nil)), Backend: BackendOptions{Path: self,
		Config: dataplane.Config{Node: "g", StateDir: state, Options: map[string]string{hostOption: h.dir}}}}, nil, hub)
	h.metrics, err = newMetrics(nil)
	require.NoError(t, err)
	h.host = &host{options: h.options.Backend, holders: h.holders, limits: defaultLimits(), log: h.Gateway.log, metrics: h.metrics, epoch: "test", ended: make(chan *plugin.Process, 4),
		found: findings{host: preflight.Host{Root: h.dir}}}
	h.apply = h.host.apply
	t.Cleanup(h.host.stop)
	return h
}

// has the host have something from now on.
func (h *onHost) has(file string) {
	path := filepath.Join(h.dir, file)
	require.NoError(h.t, os.MkdirAll(filepath.Dir(path), 0o700))
	require.NoError(h.t, os.WriteFile(path, nil, 0o600))
}

func (h *onHost) hasNoMore(file string) {
	require.NoError(h.t, os.Remove(filepath.Join(h.dir, file)))
}

// passes has the last question to the backend be so long ago.
func (h *onHost) passes(d time.Duration) { h.host.found.asked = time.Now().Add(-d) }

// answered are the conditions after the backend has been asked again, which it is to be now.
func (h *onHost) answered() []metav1.Condition {
	h.t.Helper()
	h.conditions()
	ctx, end := context.WithCancel(h.t.Context())
	ended := make(chan error)
	go func() { ended <- h.askAgain(ctx) }()
	select {
	case e := <-h.events:
		e(h.Gateway)
	case <-time.After(10 * time.Second):
		require.Fail(h.t, "the backend was not asked")
	}
	end()
	require.NoError(h.t, <-ended)
	return h.conditions()
}

// conditions returns the Gateway object's conditions after the gateway has tried to start its backend, or to go on.
func (h *onHost) conditions() []metav1.Condition {
	h.t.Helper()
	h.retryAt = time.Time{}
	h.work(h.t.Context())
	require.NoError(h.t, h.write(h.t.Context(), <-h.status))
	var object v1alpha1.Gateway
	require.NoError(h.t, h.client.Get(h.t.Context(), types.NamespacedName{Name: "g"}, &object))
	return object.Status.Conditions
}

func TestTheGatewaySaysWhatItsHostLacksAndHowToMendItUntilItIsMended(t *testing.T) {
	h := newOnHost(t)
	for range 3 {
		conditions := h.conditions()
		ready := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady)
		require.Equal(t, metav1.ConditionFalse, ready.Status)
		require.Equal(t, "BackendFailed", ready.Reason)
		require.Equal(t, "this host lacks what the dataplane needs:\nmodule: not loaded; run: modprobe it\n"+
			"configure backend fake: conn.Receive: netlink receive: no such file or directory", ready.Message)
		modules := meta.FindStatusCondition(conditions, "HostModules")
		require.Equal(t, metav1.ConditionFalse, modules.Status)
		require.Equal(t, v1alpha1.ReasonHostLacks, modules.Reason)
		require.Equal(t, "module: not loaded; run: modprobe it", modules.Message)
	}
	require.Equal(t, 1, strings.Count(h.log.String(), "level=ERROR"), "what each retry says is logged once: %s", h.log.String())

	h.has(moduleFile)
	conditions := h.conditions()
	require.True(t, meta.IsStatusConditionTrue(conditions, v1alpha1.ConditionReady))
	require.Nil(t, meta.FindStatusCondition(conditions, "HostModules"))
	limits := meta.FindStatusCondition(conditions, "HostSysctls")
	require.Equal(t, v1alpha1.ReasonHostLimits, limits.Reason)
	require.Equal(t, "sysctl it: is 0; does not work: forwarding: direct; run: sysctl -w it=1", limits.Message)

	h.has(sysctlFile)
	require.NotNil(t, meta.FindStatusCondition(h.conditions(), "HostSysctls"), "the backend is asked now and then alone")
	h.passes(recheckSeldom)
	conditions = h.answered()
	require.Len(t, conditions, 1)
	require.True(t, meta.IsStatusConditionTrue(conditions, v1alpha1.ConditionReady))
}

func TestABackendThatStartsInSpiteOfACheckIsNotKeptFromIt(t *testing.T) {
	h := newOnHost(t)
	h.has(moduleFile)
	h.host.found.checks = []dataplane.Check{{Group: dataplane.GroupModules, Subject: "module", State: dataplane.CheckMissing}}
	require.True(t, meta.IsStatusConditionTrue(h.conditions(), v1alpha1.ConditionReady))
}

func TestWhatTheGatewayItselfNeedsIsWatchedToo(t *testing.T) {
	h := newOnHost(t)
	h.has(moduleFile)
	h.has(sysctlFile)
	down := dataplane.Check{Group: dataplane.GroupInterfaces, Subject: "interface eth0", State: dataplane.CheckMissing, Found: "is down", Command: "ip link set dev eth0 up"}
	h.options.HostChecks = func(context.Context) []dataplane.Check { return []dataplane.Check{down} }
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- h.watchHost(ctx) }()
	(<-h.events)(h.Gateway)
	end()
	require.NoError(t, <-ended)
	conditions := h.conditions()
	require.Equal(t, "interface eth0: is down; run: ip link set dev eth0 up", meta.FindStatusCondition(conditions, "HostInterfaces").Message)
	require.True(t, meta.IsStatusConditionTrue(conditions, v1alpha1.ConditionReady), "the dataplane works")
	h.hostChecks = nil
	require.Nil(t, meta.FindStatusCondition(h.conditions(), "HostInterfaces"))
}

func TestEachGroupWithSomethingMissingHasOneCondition(t *testing.T) {
	missing := func(group dataplane.Group, subject, costs string) dataplane.Check {
		return dataplane.Check{Group: group, Subject: subject, State: dataplane.CheckMissing, Found: "gone", Costs: costs}
	}
	conditions := hostConditions(dataplane.Lacking([]dataplane.Check{
		missing(dataplane.GroupSysctls, "a", "something"), missing(dataplane.GroupModules, "b", "something"), missing(dataplane.GroupModules, "c", ""),
		missing("Moons", "d", ""), {Group: dataplane.GroupClock, State: dataplane.CheckUnknown}, {Group: dataplane.GroupPorts, State: dataplane.CheckOK}}))
	var said []string
	for _, c := range conditions {
		said = append(said, c.Type+" "+c.Reason+" "+c.Message)
	}
	require.Equal(t, []string{
		"HostKernel Missing d: gone", // of a group that this manager does not know
		"HostModules Missing c: gone\nb: gone; does not work: something",
		"HostSysctls Limited a: gone; does not work: something",
	}, said)
}
