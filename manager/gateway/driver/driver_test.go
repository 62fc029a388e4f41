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

// board notes which addresses the dataplane holds, and whose they are.
type board struct {
	added   map[netip.Addr]bool
	tenants map[netip.Addr]string
}

func newBoard() *board { return &board{added: map[netip.Addr]bool{}, tenants: map[netip.Addr]string{}} }

func (b *board) SetTenant(address netip.Addr, tenant string) { b.tenants[address] = tenant }
func (b *board) Add(address netip.Addr)                      { b.added[address] = true }
func (b *board) Remove(address netip.Addr) {
	delete(b.added, address)
	b.tenants[address] = ""
}

// starts counts starts of the plugin.
type starts int

func (s *starts) Started()              { *s++ }
func (s *starts) Applied(time.Duration) {}

func noRedirect(netip.Addr) model.Handover { return model.Handover{} }

// onHost is a driver on a host, what it has of the model, and what it tells.
type onHost struct {
	*Driver
	*drivertest.Host
	t      *testing.T
	hub    *translate.Hub
	seen   uint64
	board  *board
	starts starts
	log    strings.Builder
	// looked is how many changes sent has returned.
	looked int
	// broken is why no plugin starts, brokenPath the name of a binary that does not.
	broken     error
	brokenPath string
}

// newOnHost is one whose plugins run in the test's own process.
func newOnHost(t *testing.T) *onHost {
	h := &onHost{Host: drivertest.NewHost(t), t: t}
	h.new(Options{Load: h.load})
	return h
}

// load starts a plugin in the test's own process.
func (h *onHost) load(o plugin.Options) (Process, error) {
	switch {
	case h.broken != nil:
		return nil, h.broken
	case filepath.Base(o.Path) == h.brokenPath:
		return nil, errors.New("there is no such binary")
	}
	return h.Start(), nil
}

// newWithPlugin is one whose plugins are processes.
func newWithPlugin(t *testing.T) *onHost {
	h := &onHost{Host: drivertest.NewHost(t), t: t}
	h.new(Options{})
	return h
}

func (h *onHost) new(o Options) {
	h.t.Helper()
	self, err := os.Executable()
	require.NoError(h.t, err)
	// A socket's path may have no more than 107 bytes.
	state, err := os.MkdirTemp("", "kubelb-")
	require.NoError(h.t, err)
	h.t.Cleanup(func() { require.NoError(h.t, os.RemoveAll(state)) })
	h.hub, h.board = translate.NewHub(), newBoard()
	o.Backend = Backend{Path: self, Config: dataplane.Config{Node: "g", StateDir: state, Options: drivertest.Options(h.Dir)}}
	o.Model, o.Addresses, o.Observer, o.Log = h.hub, h.board, &h.starts, slog.New(slog.NewTextHandler(&h.log, nil))
	if o.Redirect == nil {
		o.Redirect = noRedirect
	}
	h.Driver = New(o)
	h.runner.found.host = preflight.Host{Root: h.Dir}
	h.t.Cleanup(h.Driver.Stop)
}

// works has the driver do what it does for a change, or when it is time to try again, which it is.
func (h *onHost) works() *onHost {
	h.t.Helper()
	h.retryAt = time.Time{}
	h.sync()
	return h
}

// sync has the driver do what it does for a change.
func (h *onHost) sync() {
	h.t.Helper()
	h.Sync(h.t.Context(), h.hub.Flush().Model, h.seen)
	h.Recheck()
}

// requireWorking requires that the plugin runs, and that the dataplane holds the model.
func (h *onHost) requireWorking() {
	h.t.Helper()
	require.NoError(h.t, h.Problem())
	require.True(h.t, h.Running())
	require.False(h.t, h.Resyncing())
}

// lacks tells whether the host lacks something of that group.
func (h *onHost) lacks(group dataplane.Group) string {
	var lines []string
	for _, c := range dataplane.Lacking(append(h.Checks(), h.InstalledChecks()...)) {
		if c.Group == group {
			lines = append(lines, c.String())
		}
	}
	return strings.Join(lines, "\n")
}

// asks has a tenant ask for a LoadBalancer with so many ports, of which the hub says so in that version.
func (h *onHost) asks(tenant string, ports int32, version uint64, vips ...netip.Addr) {
	drivertest.Ask(h.hub, tenant, ports, vips...)
	h.seen = version
}
