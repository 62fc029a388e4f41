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

// redirected returns web with a redirect to a gateway that does not exist.
func redirected(t *testing.T, b *bench) model.Frontend {
	t.Helper()
	f := web(model.TCP, 80)
	f.Redirect = model.Redirect{Next: b.GatewayAddress(true, 1), Limit: 1}
	return f
}

func TestAHandshakeBySYNCookieIsNotRedirected(t *testing.T) {
	b := startPlugin(t)
	b.serve(t, 30080)
	require.NoError(t, b.Gateways[0].Do(func() error {
		// As under a flood of SYN segments: the kernel stores none of them.
		return os.WriteFile("/proc/sys/net/ipv4/tcp_syncookies", []byte("2"), 0o644)
	}))
	b.apply(t, []model.Pool{pool("p", 0)}, redirected(t, b))
	answers, err := b.A.RequestTimes(20, "tcp", addrPort(web(model.TCP, 80)))
	require.NoError(t, err)
	require.Len(t, answers, 20)
	require.NoError(t, b.plugin.Close(t.Context(), true))
}

func TestTheProgramIsAttachedToAllInterfacesOnceAFrontendHasARedirect(t *testing.T) {
	b := startPlugin(t)
	b.serve(t, 30080)
	names, err := b.Gateways[0].Interfaces()
	require.NoError(t, err)
	require.Len(t, names, 2)
	require.Empty(t, b.watched(t))
	b.apply(t, []model.Pool{pool("p", 0)}, web(model.TCP, 80))
	require.Empty(t, b.watched(t), "no frontend has a redirect")
	b.apply(t, nil, redirected(t, b))
	require.Equal(t, names, b.watched(t))

	b.plugin.Stop()
	require.Equal(t, names, b.watched(t), "it goes on without the plugin")
	b.start(t)
	require.Equal(t, names, b.watched(t))
	_, err = b.A.Request("tcp", addrPort(web(model.TCP, 80)), lab.From{})
	require.NoError(t, err)
	require.NoError(t, b.plugin.Close(t.Context(), true))
	require.Empty(t, b.watched(t))
}

func TestAnExistingQueueingDisciplineIsUsedAndKept(t *testing.T) {
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
	b.apply(t, []model.Pool{pool("p", 0)}, redirected(t, b))
	require.Equal(t, names, b.watched(t))
	require.NoError(t, b.plugin.Close(t.Context(), true))
	require.Empty(t, b.watched(t))
	require.Equal(t, before, kinds())
}

func TestARemovedProgramIsAttachedAgain(t *testing.T) {
	b := startPlugin(t)
	b.serve(t, 30080)
	b.apply(t, []model.Pool{pool("p", 0)}, redirected(t, b))
	names := b.watched(t)
	require.NotEmpty(t, names)
	require.NoError(t, b.Gateways[0].Do(func() error {
		link, err := netlink.LinkByName(names[0])
		if err != nil {
			return err
		}
		return netlink.QdiscDel(clsact(link.Attrs().Index))
	}))
	require.Equal(t, names[1:], b.watched(t))
	go func() { _ = b.plugin.Watch(t.Context(), func(dataplane.Fault) {}) }()
	require.Eventually(t, func() bool { return len(b.watched(t)) == len(names) }, answerTimeout, answerTimeout/50)
	require.NoError(t, b.plugin.Close(t.Context(), true))
}

func TestTheCapabilitiesOfTheChartAreEnough(t *testing.T) {
	b := prepare(t)
	b.restrict(t, "net_admin", "net_raw", "net_bind_service", "bpf")
	b.start(t)
	b.serve(t, 30080)
	b.apply(t, []model.Pool{pool("p", 0)}, redirected(t, b))
	_, err := b.A.Request("tcp", addrPort(web(model.TCP, 80)), lab.From{})
	require.NoError(t, err)
	require.Len(t, b.watched(t), 2)
	require.NoError(t, b.plugin.Close(t.Context(), true))
	require.Empty(t, b.watched(t))
}

func TestWithoutTheProgramFrontendsAreServedAndAFaultIsReported(t *testing.T) {
	b := prepare(t)
	b.restrict(t, "net_admin", "net_raw", "net_bind_service")
	b.start(t)
	b.serve(t, 30080)
	b.apply(t, []model.Pool{pool("p", 0)}, redirected(t, b))
	_, err := b.A.Request("tcp", addrPort(web(model.TCP, 80)), lab.From{})
	require.NoError(t, err)
	faults := make(chan dataplane.Fault, 10)
	go func() { _ = b.plugin.Watch(t.Context(), func(f dataplane.Fault) { faults <- f }) }()
	fault := <-faults
	require.Contains(t, fault.Message, "packets of unknown connections are not redirected to other gateways")
	require.Contains(t, fault.Message, "CAP_BPF")
	require.NoError(t, b.plugin.Close(t.Context(), true))
}

// watched returns the interfaces of the gateway to which the program is attached.
func (b *bench) watched(t *testing.T) []string {
	t.Helper()
	var names []string
	require.NoError(t, b.Gateways[0].Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			found, err := filterAt(l.Attrs().Index)
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
