package driver

import (
	"log/slog"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
)

func TestAnAddressWhoseFrontendsAreReplacedStaysOnlyIfTheDataplaneTakesTheNewOnes(t *testing.T) {
	address := netip.MustParseAddr("203.0.113.1")
	port := func(number uint16) model.Frontend {
		return model.Frontend{FrontendKey: model.FrontendKey{VIP: address, Protocol: model.TCP, Port: number}}
	}
	exchange := model.Delta{DeleteFrontends: []model.FrontendKey{port(80).FrontendKey}, UpsertFrontends: []model.Frontend{port(81)}}
	refused := []dataplane.RecordError{{Frontend: port(81).FrontendKey, Message: "no"}}
	for name, c := range map[string]struct {
		program  func(*Driver)
		answered bool
	}{
		"taken":                       {func(d *Driver) { d.updateFailures(exchange, nil) }, true},
		"refused":                     {func(d *Driver) { d.updateFailures(exchange, refused) }, false},
		"unknown, as the plugin ends": {func(*Driver) {}, true},
		"gone when the plugin is back": {func(d *Driver) {
			d.withdraw(model.Delta{DeleteFrontends: []model.FrontendKey{port(81).FrontendKey}})
			d.updateFailures(model.Delta{}, nil)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newAddressRecorder()
			d := New(Options{Model: translate.NewTranslator(), Addresses: b, Log: slog.New(slog.DiscardHandler)})
			d.updateFailures(model.Delta{UpsertFrontends: []model.Frontend{port(80)}}, nil)
			require.True(t, b.added[address])
			d.withdraw(exchange)
			require.True(t, b.added[address], "the new frontend is on its way")
			c.program(d)
			require.Equal(t, c.answered, b.added[address])
		})
	}
}

func TestTheTenantOfAnAddressIsSetBeforeItIsAnnounced(t *testing.T) {
	driver, _ := recordingDriver(t, acceptAll)
	is, address := driver.options.Addresses.(*addressRecorder).tenants, ports("a", 1, 1).UpsertFrontends[0].VIP
	for _, tenant := range []string{"a", "b"} {
		driver.enqueue(ports(tenant, 1, 2), 0)
		require.NoError(t, driver.sendBatch(t.Context()))
		require.Equal(t, map[netip.Addr]string{address: tenant}, is)
	}
	var gone model.Delta
	for _, f := range ports("b", 1, 2).UpsertFrontends {
		gone.DeleteFrontends = append(gone.DeleteFrontends, f.FrontendKey)
	}
	driver.withdraw(gone)
	require.Empty(t, is[address])
}
