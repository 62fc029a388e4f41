package envoy

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

// networks maps the names of package net to protocols.
var networks = map[string]model.Protocol{"tcp": model.TCP, "udp": model.UDP}

// affinityFrontendOf returns a frontend with an affinity timeout of an hour.
func affinityFrontendOf(v4 bool, protocol model.Protocol, port uint16) model.Frontend {
	f := web(protocol, port)
	f.VIP, f.AffinityTimeout = lab.VIP(v4, 1), time.Hour
	return f
}

// poolOf returns a pool with the first endpoints of a family, with weights from 1 to 3.
func poolOf(v4 bool, id string, endpoints int) model.Pool {
	p := model.Pool{ID: model.PoolID("t/" + id), Tenant: "t"}
	for i := range endpoints {
		a := lab.EndpointAddress(v4, i)
		p.Endpoints = append(p.Endpoints, model.Endpoint{ID: a.String(), Address: a, Weight: uint16(1 + i%3)})
	}
	return p
}

// endpointsOf returns the endpoints that answer a new flow of each client.
func (b *bench) endpointsOf(t *testing.T, network string, to netip.AddrPort, clients []lab.From) (out []netip.Addr) {
	t.Helper()
	answers, err := b.A.RequestFromEach(network, to, clients)
	require.NoError(t, err)
	for _, a := range answers {
		out = append(out, a.Endpoint)
	}
	return out
}

// clientsOnDisk is the number of slots in the file that the plugin has written.
func (b *bench) clientsOnDisk(t *testing.T, v4 bool) int {
	t.Helper()
	family := map[bool]string{true: "ipv4", false: "ipv6"}[v4]
	info, err := os.Stat(filepath.Join(b.state, "envoy", "clients-"+family))
	require.NoError(t, err)
	return (int(info.Size()) - len(clientsFormat)) / entrySize
}

// While the plugin does not run, Envoy chooses endpoints alone: no client is refused or waits. A client that is not stored gets the same endpoint once
// the plugin runs again.
func TestNewClientsGetTheSameEndpointWithAndWithoutThePlugin(t *testing.T) {
	b := startPlugin(t)
	b.serve(t, 30080)
	for _, v4 := range []bool{true, false} {
		clients, err := b.Clients(v4, 60)
		require.NoError(t, err)
		for _, endpoints := range []int{3, maxEndpointsSmall + 2} {
			b.apply(t, []model.Pool{poolOf(v4, "p", endpoints)})
			for network, protocol := range networks {
				what := fmt.Sprintf("IPv4 %v, %s, %d endpoints", v4, network, endpoints)
				f := affinityFrontendOf(v4, protocol, 80)
				b.apply(t, nil, f)
				before := b.clientsOnDisk(t, v4)
				b.plugin.Stop()
				begin := time.Now()
				alone := b.endpointsOf(t, network, addrPort(f), clients)
				require.Less(t, time.Since(begin), 5*time.Second, "%s: no client waits for a plugin that does not run", what)
				require.Equal(t, before, b.clientsOnDisk(t, v4), what)
				b.start(t)
				require.Equal(t, alone, b.endpointsOf(t, network, addrPort(f), clients), what)
				require.Equal(t, len(clients), b.clientsOnDisk(t, v4), "%s: the plugin was asked", what)
				slices.SortFunc(alone, netip.Addr.Compare)
				require.Greater(t, len(slices.Compact(alone)), 2, what)
				// The next round begins with clients that are not stored.
				f.AffinityTimeout = 0
				b.apply(t, nil, f)
			}
		}
	}
	require.NoError(t, b.plugin.Close(t.Context(), true))
}

func TestTheServerMaySpeakFirst(t *testing.T) {
	b := startPlugin(t)
	require.NoError(t, b.Nodes[0].Do(func() error {
		l, err := net.Listen("tcp", ":30080")
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = c.Write([]byte("hello"))
				defer c.Close()
			}
		}()
		return nil
	}))
	f := affinityFrontendOf(true, model.TCP, 80)
	b.apply(t, []model.Pool{pool("p", 0)}, f)
	c, err := b.A.Dial("tcp", addrPort(f), lab.From{})
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(2*time.Second)))
	received := make([]byte, 5)
	_, err = c.Read(received)
	require.NoError(t, err)
	require.Equal(t, "hello", string(received))
	require.NoError(t, b.plugin.Close(t.Context(), true))
}

func TestTheFirstDatagramsWaitForTheAnswer(t *testing.T) {
	b := startPlugin(t)
	b.serve(t, 30080)
	f := affinityFrontendOf(true, model.UDP, 80)
	b.apply(t, []model.Pool{pool("p", 0, 1, 2, 3)}, f)
	for _, size := range []int{1, 1400, 65000} {
		c, err := b.A.Dial("udp", addrPort(f), lab.From{})
		require.NoError(t, err)
		require.NoError(t, c.SetDeadline(time.Now().Add(3*time.Second)))
		sent := slices.Repeat([]byte{'x'}, size)
		for range 2 {
			_, err = c.Write(sent)
			require.NoError(t, err)
		}
		echoed := make([]byte, 1<<16)
		for range 2 {
			n, err := c.Read(echoed)
			require.NoError(t, err, "%d bytes", size)
			require.Equal(t, sent, echoed[:n])
		}
		require.NoError(t, c.Close())
	}
	require.NoError(t, b.plugin.Close(t.Context(), true))
}

// A UDP client does not notice that its endpoint has been removed.
func TestAUDPSessionLeavesAnUnhealthyOrRemovedEndpoint(t *testing.T) {
	b := startPlugin(t)
	b.serve(t, 30080)
	f := affinityFrontendOf(true, model.UDP, 80)
	b.apply(t, []model.Pool{pool("p", 0)}, f)
	c, err := b.A.Dial("udp", addrPort(f), lab.From{})
	require.NoError(t, err)
	defer c.Close()
	meets := func(endpoint int) {
		t.Helper()
		answer, err := lab.RequestAddresses(c, 1)
		require.NoError(t, err)
		require.Equal(t, lab.EndpointAddress(true, endpoint), answer.Endpoint)
	}
	meets(0)
	both := pool("p", 0, 1)
	b.apply(t, []model.Pool{both})
	meets(0)
	both.Endpoints[0].State = model.Draining
	b.apply(t, []model.Pool{both})
	meets(0)
	both.Endpoints[0].State = model.Unhealthy
	b.apply(t, []model.Pool{both})
	meets(1)
	both.Endpoints[0].State = model.Active
	b.apply(t, []model.Pool{both})
	meets(1)
	b.apply(t, []model.Pool{pool("p", 0)})
	meets(0)
	require.NoError(t, b.plugin.Close(t.Context(), true))
}

func TestAClientGetsAnotherEndpointIfItsOwnRefuses(t *testing.T) {
	b := startPlugin(t)
	servers := map[int]*lab.Server{}
	for i := range 3 {
		var err error
		servers[i], err = b.Nodes[i].Serve(30080)
		require.NoError(t, err)
		t.Cleanup(func() { servers[i].Close() })
	}
	f := affinityFrontendOf(true, model.TCP, 80)
	clients, err := b.Clients(true, 20)
	require.NoError(t, err)
	b.apply(t, []model.Pool{pool("p", 0)}, f)
	for _, at := range b.endpointsOf(t, "tcp", addrPort(f), clients) {
		require.Equal(t, lab.EndpointAddress(true, 0), at)
	}
	b.apply(t, []model.Pool{pool("p", 0, 1, 2)})
	require.NoError(t, servers[0].Close())
	answered := 0
	for _, from := range clients {
		if answer, err := b.A.Request("tcp", addrPort(f), from); err == nil {
			require.NotEqual(t, lab.EndpointAddress(true, 0), answer.Endpoint)
			answered++
		}
	}
	// A client whose hash leads to the dead endpoint waits until health checks fail.
	require.Greater(t, answered, 5)
	require.NoError(t, b.plugin.Close(t.Context(), true))
}

func TestAFlowWaitsASecondForAPluginThatHangs(t *testing.T) {
	b := startPlugin(t)
	b.serve(t, 30080)
	tcp, udp := affinityFrontendOf(true, model.TCP, 80), affinityFrontendOf(true, model.UDP, 80)
	b.apply(t, []model.Pool{pool("p", 0)}, tcp, udp)
	for network := range networks {
		_, err := b.A.Request(network, addrPort(tcp), lab.From{})
		require.NoError(t, err)
	}
	pid := processOf(t, string(b.binary))
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	// The other threads run on until the first one has handled the signal. The plugin is stopped when all of them are.
	require.NoError(t, unix.Waitid(unix.P_PID, pid, nil, unix.WSTOPPED|unix.WNOWAIT, nil))
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
	for network := range networks {
		begin := time.Now()
		_, err := b.A.Request(network, addrPort(tcp), lab.From{})
		require.NoError(t, err)
		waited := time.Since(begin)
		require.Greater(t, waited, affinityRequestTimeout/2, network)
		require.Less(t, waited, 3*affinityRequestTimeout, network)
	}
	require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
	require.NoError(t, b.plugin.Close(t.Context(), true))
}

// processOf returns the id of the process that runs the binary.
func processOf(t *testing.T, binary string) int {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/exe")
	require.NoError(t, err)
	for _, path := range found {
		if runs, err := os.Readlink(path); err == nil && runs == binary {
			var pid int
			_, err := fmt.Sscanf(path, "/proc/%d/exe", &pid)
			require.NoError(t, err)
			return pid
		}
	}
	require.Fail(t, "no process runs "+binary)
	return 0
}

func TestAffinityWorksWithOtherSettings(t *testing.T) {
	b := startPlugin(t)
	b.serve(t, 30080)
	require.NoError(t, b.RouteNodesVia(0))
	for i := range b.Nodes {
		server, err := b.Nodes[i].ServeProxied(30081)
		require.NoError(t, err)
		t.Cleanup(func() { server.Close() })
	}
	clients, err := b.Clients(true, 10)
	require.NoError(t, err)
	for name, change := range map[string]func(*model.Frontend){
		"transparent":    func(f *model.Frontend) { f.Forwarding = model.Transparent },
		"PROXY protocol": func(f *model.Frontend) { f.ProxyProtocol, f.TargetPort = true, 30081 },
		// Envoy may still count a connection that its client has ended.
		"bounded":      func(f *model.Frontend) { f.MaxConnections = uint32(len(clients)) },
		"idle timeout": func(f *model.Frontend) { f.IdleTimeout = time.Minute },
	} {
		for network, protocol := range networks {
			f := affinityFrontendOf(true, protocol, 90)
			change(&f)
			if f.ProxyProtocol && protocol == model.UDP || f.MaxConnections > 0 && protocol == model.UDP {
				continue
			}
			b.apply(t, []model.Pool{pool("p", 3)}, f)
			for _, endpoints := range [][]int{{3}, {0, 1, 2, 3}} {
				b.apply(t, []model.Pool{pool("p", endpoints...)})
				answers, err := b.A.RequestFromEach(network, addrPort(f), clients)
				require.NoError(t, err, "%s %s", name, network)
				for i, answer := range answers {
					require.Equal(t, lab.EndpointAddress(true, 3), answer.Endpoint, "%s %s", name, network)
					if f.ProxyProtocol || f.Forwarding == model.Transparent {
						require.Equal(t, clients[i].Address, answer.Client.Addr(), "%s %s", name, network)
					}
				}
			}
			if protocol == model.TCP && !f.ProxyProtocol {
				require.NoError(t, b.A.Transfer(addrPort(f), 1<<20), "%s: bytes that a client sends at once wait for the answer", name)
			}
			f.AffinityTimeout = 0
			b.apply(t, nil, f)
		}
	}
	require.NoError(t, b.plugin.Close(t.Context(), true))
}
