package conformance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/plugin"
	"kubelb.k8c.io/conformance/netlab"
	"kubelb.k8c.io/core/model"
)

// Address plan: client 192.0.2.100 and 2001:db8:c::100 behind the gateway's 192.0.2.1 and 2001:db8:c::1;
// nodes n0.. at 198.51.100.10+i/32 and 2001:db8:1::10+i, each on a link of its own; VIPs 203.0.113.0/24, 2001:db8:f::/64.
const labPrefix = "klconf"

// backendPath is the binary under test: what KUBELB_BACKEND names, or else the nftables backend built from source.
var backendPath string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	backendPath = os.Getenv("KUBELB_BACKEND")
	if backendPath == "" {
		dir, err := os.MkdirTemp("", "kubelb-conformance-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		backendPath = filepath.Join(dir, "backend")
		build := exec.Command("go", "build", "-o", backendPath, "./cmd/kubelb-backend-nftables")
		build.Dir = "../backends/nftables"
		if output, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build backend: %v\n%s", err, output)
			return 1
		}
	}
	return m.Run()
}

// rig is a lab with a gateway that runs the backend's binary.
type rig struct {
	t       *testing.T
	lab     *netlab.Lab
	client  *netlab.Namespace
	gateway *netlab.Namespace
	nodes   []*netlab.Namespace
	path    string
	state   string
	sockets string
	process *plugin.Process
	applied dataplane.Generation
}

func newRig(t *testing.T, nodes int) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	require.NoError(t, netlab.Sweep(labPrefix))
	r := &rig{t: t, lab: netlab.New(labPrefix), path: backendPath, state: t.TempDir()}
	t.Cleanup(func() { require.NoError(t, r.lab.Close()) })
	forward := []string{"net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1", "net/ipv4/conf/all/rp_filter=0", "net/ipv4/conf/default/rp_filter=0"}
	r.client, r.gateway = r.namespace("client"), r.namespace("gateway", forward...)
	r.link(netlab.Interface{Namespace: r.client, Name: "eth0", Addresses: []string{"192.0.2.100/24", "2001:db8:c::100/64"}},
		netlab.Interface{Namespace: r.gateway, Name: "uplink", Addresses: []string{"192.0.2.1/24", "2001:db8:c::1/64"}})
	require.NoError(t, r.client.Route("203.0.113.0/24", "192.0.2.1"))
	require.NoError(t, r.client.Route("2001:db8:f::/64", "2001:db8:c::1"))
	for i := range nodes {
		node := r.namespace(fmt.Sprintf("n%d", i))
		v4, v6 := nodeAddress(i, true), nodeAddress(i, false)
		r.link(netlab.Interface{Namespace: node, Name: "eth0", Addresses: []string{v4.String() + "/32", v6.String() + "/128", fmt.Sprintf("10.0.%d.2/24", i), fmt.Sprintf("2001:db8:e:%d::2/64", i)}},
			netlab.Interface{Namespace: r.gateway, Name: fmt.Sprintf("node%d", i), Addresses: []string{fmt.Sprintf("10.0.%d.1/24", i), fmt.Sprintf("2001:db8:e:%d::1/64", i)}})
		require.NoError(t, r.gateway.Route(v4.String()+"/32", fmt.Sprintf("10.0.%d.2", i)))
		require.NoError(t, r.gateway.Route(v6.String()+"/128", fmt.Sprintf("2001:db8:e:%d::2", i)))
		r.nodes = append(r.nodes, node)
	}
	r.start()
	return r
}

func (r *rig) namespace(name string, sysctls ...string) *netlab.Namespace {
	r.t.Helper()
	ns, err := r.lab.Namespace(name, sysctls...)
	require.NoError(r.t, err)
	return ns
}

func (r *rig) link(a, b netlab.Interface) {
	r.t.Helper()
	require.NoError(r.t, r.lab.Link(a, b))
}

func nodeAddress(i int, v4 bool) netip.Addr {
	if v4 {
		return netip.AddrFrom4([4]byte{198, 51, 100, byte(10 + i)})
	}
	return netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%x", 0x10+i))
}

// start runs the backend in the gateway, as the manager would, and applies nothing.
func (r *rig) start() {
	r.t.Helper()
	require.NoError(r.t, r.gateway.Do(func() error {
		var err error
		r.process, err = plugin.Load(plugin.Options{Path: r.path, SocketDir: r.socketDir(), Log: r.t.Output()})
		if err != nil {
			return err
		}
		return r.process.Configure(r.t.Context(), dataplane.Config{Node: "gateway", StateDir: r.state})
	}))
	r.t.Cleanup(r.process.Stop)
	r.applied = dataplane.Generation{}
}

// socketDir is short: the kernel allows a socket's path 107 bytes, and a test's own directory may have more.
func (r *rig) socketDir() string {
	dir, err := os.MkdirTemp("", "klsock")
	require.NoError(r.t, err)
	r.t.Cleanup(func() { os.RemoveAll(dir) })
	r.sockets = dir
	return dir
}

// apply brings the dataplane to the snapshot by sending the difference.
func (r *rig) apply(s model.Snapshot) dataplane.Change {
	r.t.Helper()
	result, change := r.tryApply(s)
	require.Empty(r.t, result.Failed)
	return change
}

func (r *rig) tryApply(s model.Snapshot) (dataplane.Result, dataplane.Change) {
	r.t.Helper()
	held, err := r.process.Applied(r.t.Context())
	require.NoError(r.t, err)
	change := dataplane.Change{Base: held.Generation, Next: dataplane.Generation{Epoch: "test", Number: held.Generation.Number + 1}, Delta: model.Difference(held.Digests, s)}
	result, err := r.process.Apply(r.t.Context(), change)
	require.NoError(r.t, err)
	return result, change
}

// server answers on a node, on every address: TCP with one line "node client" and then an echo, UDP with the same line.
func (r *rig) server(node int, port int) {
	r.t.Helper()
	require.NoError(r.t, r.nodes[node].Do(func() error {
		listener, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		r.t.Cleanup(func() { listener.Close() })
		go serveTCP(listener, node)
		// A wildcard UDP socket would answer from the address of the route, not from the one that was asked.
		for _, v4 := range []bool{true, false} {
			packets, err := net.ListenPacket("udp", net.JoinHostPort(nodeAddress(node, v4).String(), fmt.Sprint(port)))
			if err != nil {
				return err
			}
			r.t.Cleanup(func() { packets.Close() })
			go serveUDP(packets, node)
		}
		return nil
	}))
}

func serveTCP(listener net.Listener, node int) {
	for {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			fmt.Fprintf(c, "n%d %s\n", node, c.RemoteAddr())
			io.Copy(c, c)
		}()
	}
}

func serveUDP(packets net.PacketConn, node int) {
	buffer := make([]byte, 65536)
	for {
		_, from, err := packets.ReadFrom(buffer)
		if err != nil {
			return
		}
		packets.WriteTo(fmt.Appendf(nil, "n%d %s\n", node, from), from)
	}
}

// dial opens a connection from the client's host.
func (r *rig) dial(network, address string, localPort int) (net.Conn, error) {
	var c net.Conn
	err := r.client.Do(func() error {
		dialer := net.Dialer{Timeout: 2 * time.Second}
		if localPort != 0 && network == "udp" {
			dialer.LocalAddr = &net.UDPAddr{Port: localPort}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		var err error
		c, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// ask makes a new flow and returns which node answered it.
func (r *rig) ask(network, address string) (string, error) {
	return r.askFrom(network, address, 0)
}

func (r *rig) askFrom(network, address string, localPort int) (string, error) {
	c, err := r.dial(network, address, localPort)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	if network == "udp" {
		if _, err := c.Write([]byte("?")); err != nil {
			return "", err
		}
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	node, _, _ := strings.Cut(line, " ")
	return node, err
}

func (r *rig) mustAsk(network, address string) string {
	r.t.Helper()
	node, err := r.ask(network, address)
	require.NoError(r.t, err, "%s %s", network, address)
	return node
}

// spread counts the nodes that answer n new flows.
func (r *rig) spread(network, address string, n int) map[string]int {
	r.t.Helper()
	counts := map[string]int{}
	for range n {
		counts[r.mustAsk(network, address)]++
	}
	return counts
}

// refused reports whether a connection is answered by a reset or an ICMP error at once.
func (r *rig) refused(network, address string) bool {
	begin := time.Now()
	_, err := r.ask(network, address)
	var syscallError *os.SyscallError
	return err != nil && errors.As(err, &syscallError) && strings.Contains(err.Error(), "refused") && time.Since(begin) < time.Second
}

// ruleset is what nft lists in the gateway.
func (r *rig) ruleset() string {
	r.t.Helper()
	var output []byte
	require.NoError(r.t, r.gateway.Do(func() (err error) {
		output, err = exec.Command("nft", "list", "ruleset").CombinedOutput()
		return err
	}), string(output))
	return string(output)
}

// pool is one of tenant t with the given nodes.
func pool(id string, v4 bool, nodes ...int) model.Pool {
	p := model.Pool{ID: model.PoolID("t/" + id), Tenant: "t"}
	for _, i := range nodes {
		a := nodeAddress(i, v4)
		p.Endpoints = append(p.Endpoints, model.Endpoint{ID: a.String(), Address: a, Weight: 1})
	}
	return p
}

// frontend serves a VIP's port from a pool of tenant t.
func frontend(protocol model.Protocol, vip string, port, target uint16, poolID string) model.Frontend {
	return model.Frontend{
		FrontendKey: model.FrontendKey{VIP: netip.MustParseAddr(vip), Protocol: protocol, Port: port},
		Owner:       model.ObjectName{Namespace: "tenant-t", Name: "lb"}, Tenant: "t", Pool: model.PoolID("t/" + poolID), TargetPort: target,
	}
}
