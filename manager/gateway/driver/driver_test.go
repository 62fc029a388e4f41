package driver

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
	"kubelb.k8c.io/backends/plugin"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/gateway/driver/drivertest"
)

// TestMain serves a dataplane where this binary is started as a plugin.
func TestMain(m *testing.M) {
	if os.Getenv("KUBELB_DATAPLANE") != "" {
		plugin.Serve(drivertest.New())
		return
	}
	os.Exit(m.Run())
}

// addressRecorder records the addresses that the dataplane holds, and their tenants.
type addressRecorder struct {
	added   map[netip.Addr]bool
	tenants map[netip.Addr]string
}

func newAddressRecorder() *addressRecorder {
	return &addressRecorder{added: map[netip.Addr]bool{}, tenants: map[netip.Addr]string{}}
}

func (b *addressRecorder) SetTenant(address netip.Addr, tenant string) { b.tenants[address] = tenant }
func (b *addressRecorder) Add(address netip.Addr)                      { b.added[address] = true }
func (b *addressRecorder) Remove(address netip.Addr) {
	delete(b.added, address)
	b.tenants[address] = ""
}

// startCounter counts starts of the plugin.
type startCounter int

func (s *startCounter) Started()              { *s++ }
func (s *startCounter) Applied(time.Duration) {}

func noRedirect(netip.Addr) model.Redirect { return model.Redirect{} }

// testDriver is a driver on a host, with its model and its log.
type testDriver struct {
	*Driver
	*drivertest.Host
	t        *testing.T
	hub      *translate.Translator
	seen     uint64
	recorder *addressRecorder
	starts   startCounter
	log      strings.Builder
	// sentCount is how many changes sent has returned.
	sentCount int
	// broken is the error of every start, brokenPath the name of a binary that does not start.
	broken     error
	brokenPath string
}

// newTestDriver returns a driver whose plugins run in the test's own process.
func newTestDriver(t *testing.T) *testDriver {
	h := &testDriver{Host: drivertest.NewHost(t), t: t}
	h.new(Options{Load: h.load})
	return h
}

// load starts a plugin in the test's own process.
func (h *testDriver) load(o plugin.Options) (Process, error) {
	switch {
	case h.broken != nil:
		return nil, h.broken
	case filepath.Base(o.Path) == h.brokenPath:
		return nil, errors.New("there is no such binary")
	}
	return h.Start(), nil
}

// newWithPlugin returns a driver whose plugins are processes.
func newWithPlugin(t *testing.T) *testDriver {
	h := &testDriver{Host: drivertest.NewHost(t), t: t}
	h.new(Options{})
	return h
}

func (h *testDriver) new(o Options) {
	h.t.Helper()
	self, err := os.Executable()
	require.NoError(h.t, err)
	// A socket's path may have no more than 107 bytes.
	state, err := os.MkdirTemp("", "kubelb-")
	require.NoError(h.t, err)
	h.t.Cleanup(func() { require.NoError(h.t, os.RemoveAll(state)) })
	h.hub, h.recorder = translate.NewTranslator(), newAddressRecorder()
	o.Plugin = Plugin{Path: self, Config: dataplane.Config{StateDir: state, Options: drivertest.Options(h.Dir)}}
	o.Model, o.Addresses, o.Observer, o.Log = h.hub, h.recorder, &h.starts, slog.New(slog.NewTextHandler(&h.log, nil))
	if o.Redirect == nil {
		o.Redirect = noRedirect
	}
	h.Driver = New(o)
	h.runner.result.host = preflight.Host{Root: h.Dir}
	h.t.Cleanup(h.Driver.Stop)
}

// retryAndSync syncs as if it was time for the next retry.
func (h *testDriver) retryAndSync() *testDriver {
	h.t.Helper()
	h.retryAt = time.Time{}
	h.sync()
	return h
}

// sync syncs the present model.
func (h *testDriver) sync() {
	h.t.Helper()
	h.Sync(h.t.Context(), h.hub.Flush().Model, h.seen)
	h.Recheck()
}

// requireWorking requires that the plugin runs, and that the dataplane holds the model.
func (h *testDriver) requireWorking() {
	h.t.Helper()
	require.NoError(h.t, h.Problem())
	require.True(h.t, h.Running())
	require.False(h.t, h.Resyncing())
}

// lacking returns what the host lacks of a group.
func (h *testDriver) lacking(group dataplane.Group) string {
	var lines []string
	for _, c := range dataplane.Lacking(append(h.Checks(), h.InstalledChecks()...)) {
		if c.Group == group {
			lines = append(lines, c.String())
		}
	}
	return strings.Join(lines, "\n")
}

// request makes a tenant request a LoadBalancer with so many ports, with the version as its resource version.
func (h *testDriver) request(tenant string, ports int32, version uint64, vips ...netip.Addr) {
	drivertest.RequestLoadBalancer(h.hub, tenant, ports, vips...)
	h.seen = version
}
