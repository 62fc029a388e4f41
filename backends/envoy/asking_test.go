package envoy

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

// asked is web of which another gateway may know connections; there is nobody who would answer.
func asked(t *testing.T, b *bench) model.Frontend {
	t.Helper()
	f := web(model.TCP, 80)
	f.Handover = model.Handover{Next: b.Front(true, 1), Asks: 1}
	return f
}

func TestNobodyElseIsAskedAboutAHandshakeByCookie(t *testing.T) {
	b := startPlugin(t)
	b.serve(t, 30080)
	require.NoError(t, b.Gateways[0].Do(func() error {
		// As under a flood of SYN segments: the kernel remembers none of them.
		return os.WriteFile("/proc/sys/net/ipv4/tcp_syncookies", []byte("2"), 0o644)
	}))
	b.apply(t, []model.Pool{pool("p", 0)}, asked(t, b))
	answers, err := b.A.AskTimes(20, "tcp", addrPort(web(model.TCP, 80)))
	require.NoError(t, err)
	require.Len(t, answers, 20)
	require.NoError(t, b.plugin.Close(t.Context(), true))
}

func TestAllInterfacesAreWatchedForConnectionsOfOthersOnceSomebodyIsAsked(t *testing.T) {
	b := startPlugin(t)
	b.serve(t, 30080)
	names, err := b.Gateways[0].Interfaces()
	require.NoError(t, err)
	require.Len(t, names, 2)
	require.Empty(t, b.watched(t))
	b.apply(t, []model.Pool{pool("p", 0)}, web(model.TCP, 80))
	require.Empty(t, b.watched(t), "nobody is to be asked")
	b.apply(t, nil, asked(t, b))
	require.Equal(t, names, b.watched(t))

	b.plugin.Stop()
	require.Equal(t, names, b.watched(t), "it goes on without its plugin")
	b.start(t)
	require.Equal(t, names, b.watched(t))
	_, err = b.A.Ask("tcp", addrPort(web(model.TCP, 80)), lab.From{})
	require.NoError(t, err)
	require.NoError(t, b.plugin.Close(t.Context(), true))
	require.Empty(t, b.watched(t))
}

func TestSomebodysOwnPlaceForFiltersIsUsedAndLeft(t *testing.T) {
	b := startPlugin(t)
	b.serve(t, 30080)
	names, err := b.Gateways[0].Interfaces()
	require.NoError(t, err)
	kinds := func() (kinds []string) {
		require.NoError(t, b.Gateways[0].Do(func() error {
			link, err := netlink.LinkByName(names[0])
			if err != nil {
				return err
			}
			list, err := netlink.QdiscList(link)
			for _, q := range list {
				kinds = append(kinds, q.Type())
			}
			return err
		}))
		return kinds
	}
	require.NoError(t, b.Gateways[0].Do(func() error {
		link, err := netlink.LinkByName(names[0])
		if err != nil {
			return err
		}
		return netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_INGRESS, Handle: netlink.MakeHandle(0xffff, 0)}})
	}))
	before := kinds()
	require.Contains(t, before, "ingress")
	b.apply(t, []model.Pool{pool("p", 0)}, asked(t, b))
	require.Equal(t, names, b.watched(t))
	require.NoError(t, b.plugin.Close(t.Context(), true))
	require.Empty(t, b.watched(t))
	require.Equal(t, before, kinds())
}

func TestAProgramThatSomebodyTakesAwayComesBack(t *testing.T) {
	b := startPlugin(t)
	b.serve(t, 30080)
	b.apply(t, []model.Pool{pool("p", 0)}, asked(t, b))
	names := b.watched(t)
	require.NotEmpty(t, names)
	require.NoError(t, b.Gateways[0].Do(func() error {
		link, err := netlink.LinkByName(names[0])
		if err != nil {
			return err
		}
		return netlink.QdiscDel(entrance(link.Attrs().Index))
	}))
	require.Equal(t, names[1:], b.watched(t))
	go func() { _ = b.plugin.Watch(t.Context(), func(dataplane.Fault) {}) }()
	require.Eventually(t, func() bool { return len(b.watched(t)) == len(names) }, patience, patience/50)
	require.NoError(t, b.plugin.Close(t.Context(), true))
}

func TestTheCapabilitiesThatTheChartGivesAreEnough(t *testing.T) {
	b := prepare(t)
	b.restrict(t, "net_admin", "net_raw", "net_bind_service", "bpf")
	b.start(t)
	b.serve(t, 30080)
	b.apply(t, []model.Pool{pool("p", 0)}, asked(t, b))
	_, err := b.A.Ask("tcp", addrPort(web(model.TCP, 80)), lab.From{})
	require.NoError(t, err)
	require.Len(t, b.watched(t), 2)
	require.NoError(t, b.plugin.Close(t.Context(), true))
	require.Empty(t, b.watched(t))
}

func TestWhatCannotBeWatchedIsServedAndSaid(t *testing.T) {
	b := prepare(t)
	b.restrict(t, "net_admin", "net_raw", "net_bind_service")
	b.start(t)
	b.serve(t, 30080)
	b.apply(t, []model.Pool{pool("p", 0)}, asked(t, b))
	_, err := b.A.Ask("tcp", addrPort(web(model.TCP, 80)), lab.From{})
	require.NoError(t, err)
	faults := make(chan dataplane.Fault, 10)
	go func() { _ = b.plugin.Watch(t.Context(), func(f dataplane.Fault) { faults <- f }) }()
	fault := <-faults
	require.Contains(t, fault.Message, "other gateways are not asked about connections that this one does not have")
	require.Contains(t, fault.Message, "CAP_BPF")
	require.NoError(t, b.plugin.Close(t.Context(), true))
}

// watched are the interfaces of the gateway where the program runs.
func (b *bench) watched(t *testing.T) []string {
	t.Helper()
	var names []string
	require.NoError(t, b.Gateways[0].Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			found, err := askingAt(l.Attrs().Index)
			if err != nil {
				return err
			}
			if found != nil {
				names = append(names, l.Attrs().Name)
			}
		}
		return nil
	}))
	return names
}
