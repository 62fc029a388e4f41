package cluster

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"kubelb.k8c.io/api/crds"
	"kubelb.k8c.io/api/policies"
	"kubelb.k8c.io/conformance/netlab"
)

// The addresses of a lab:
//
//	clients' segment  192.0.2.0/24     2001:db8:c::/64   gateway .1, client .100, external addresses in between
//	nodes' segment    198.51.100.0/24  2001:db8:1::/64   gateway .1, hub .2, tenant's API .3, nodes .11 and .12; an additional tenant cluster with
//	                                                     number N has its API at .N0, and nodes .N1 and .N2
//	pods              10.77.N.0/24     2001:db8:77:N::/64 on node .N; the node of the hub, if there is one, has N = 9
const (
	Client4, Client6 = "192.0.2.100", "2001:db8:c::100"
	nodes4, nodes6   = "198.51.100.", "2001:db8:1::"
	// TenantName is the lab's tenant.
	TenantName = "a"
)

// PoolManifest and TenantManifest are the AddressPool and the Tenant of a lab's hub.
const (
	PoolManifest = `apiVersion: kubelb.k8c.io/v1alpha1
kind: AddressPool
metadata:
  name: public
spec:
  addresses: [192.0.2.200-192.0.2.249, "2001:db8:c::200-2001:db8:c::24f"]
`
	TenantManifest = `apiVersion: kubelb.k8c.io/v1alpha1
kind: Tenant
metadata:
  name: ` + TenantName + `
spec:
  backendCIDRs: [198.51.100.0/24, "2001:db8:1::/64"]
`
)

// Options are the options of a lab.
type Options struct {
	// Kubernetes and Products are the directories with the binaries of Kubernetes and of KubeLB.
	Kubernetes, Products string
	// Backend is the manager's --backend.
	Backend string
	// Progress gets a line for each step.
	Progress io.Writer
	// HubOnly leaves out the tenant cluster, for tests that add tenant clusters (AddTenant), or that write the objects of a tenant themselves.
	HubOnly bool
	// Images is the directory with the images of KubeLB, for programs that run as pods. If it is set, the gateway's host is a node of the hub, and
	// nothing of KubeLB is installed, not even the CRDs.
	Images string
}

// Lab is a hub, a tenant cluster with two nodes, a gateway with the manager, and a client.
type Lab struct {
	Dir         string
	Hub, Tenant *ControlPlane
	Nodes       []*Node
	// HubNode is the gateway's host as a node of the hub; nil without Images.
	HubNode         *Node
	Gateway, Client *netlab.Namespace
	// Manager and CCM are set by StartManager and StartCCM.
	Manager, CCM *Process

	tenants []*TenantCluster
	options Options
	net     *netlab.Lab
	// clientsSwitch and nodesSwitch are the switches of the clients' and of the nodes' segment.
	clientsSwitch, nodesSwitch *netlab.Namespace
	lock                       *os.File
	began                      time.Time
}

// New builds a lab and waits until its nodes are ready. It first removes the remains of former labs. The program must be isolated.
func New(ctx context.Context, o Options) (*Lab, error) {
	if err := sweep(); err != nil {
		return nil, fmt.Errorf("remove the remains of former labs: %w", err)
	}
	dir, lock, err := newScratch()
	if err != nil {
		return nil, err
	}
	l := &Lab{Dir: dir, options: o, net: netlab.New("lab"), lock: lock, began: time.Now()}
	if err := l.build(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// step prints a line of progress.
func (l *Lab) step(format string, args ...any) {
	fmt.Fprintf(l.options.Progress, "[%5.1f s] %s\n", time.Since(l.began).Seconds(), fmt.Sprintf(format, args...))
}

// Close ends all programs, and removes the lab.
func (l *Lab) Close() error {
	programs, planes := []*Process{l.CCM, l.Manager}, []*ControlPlane{l.Hub, l.Tenant}
	for _, t := range l.tenants {
		programs, planes = append(programs, t.ccm), append(planes, t.ControlPlane)
	}
	for _, p := range programs {
		if p != nil {
			p.Stop()
		}
	}
	for _, n := range l.allNodes() {
		n.kill()
	}
	for _, c := range planes {
		if c != nil {
			c.Stop()
		}
	}
	// Containers and their mounts end with the process namespace. If the directory cannot be removed now, the next start removes it.
	err := l.net.Close()
	l.lock.Close()
	if removeErr := os.RemoveAll(l.Dir); removeErr != nil {
		return err
	}
	return errors.Join(err, removeCgroups(filepath.Base(l.Dir)))
}

func (l *Lab) build(ctx context.Context) error {
	if err := l.network(); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	l.step("network: clients' segment, gateway, nodes' segment")
	if err := l.controlPlanes(ctx); err != nil {
		return err
	}
	l.step("control planes: etcd, kube-apiserver, kube-controller-manager, kube-scheduler")
	if l.options.Images == "" {
		if err := l.installCRDs(ctx); err != nil {
			return err
		}
	}
	if l.options.HubOnly {
		return nil
	}
	images, err := l.images(ctx)
	if err != nil {
		return fmt.Errorf("images: %w", err)
	}
	l.step("images: pause, agnhost")
	for _, n := range l.Nodes {
		n.cluster = l.Tenant
	}
	if l.HubNode != nil {
		l.HubNode.cluster = l.Hub
	}
	return l.startNodes(ctx, l.allNodes(), images)
}

func (l *Lab) startNodes(ctx context.Context, nodes []*Node, images []string) error {
	var starts errgroup.Group
	var names []string
	for _, n := range nodes {
		names = append(names, n.Name)
		starts.Go(func() error { return n.start(ctx, append(slices.Clone(images), l.productImages(n)...)) })
	}
	if err := starts.Wait(); err != nil {
		return err
	}
	l.step("nodes: %s ready (containerd, kubelet, kube-proxy)", strings.Join(names, ", "))
	return nil
}

// allNodes returns the nodes of all clusters.
func (l *Lab) allNodes() []*Node {
	all := slices.Clone(l.Nodes)
	if l.HubNode != nil {
		all = append(all, l.HubNode)
	}
	for _, t := range l.tenants {
		all = append(all, t.Nodes...)
	}
	return all
}

// productImages returns the archives of KubeLB's images that a node's cluster needs.
func (l *Lab) productImages(n *Node) []string {
	names := []string{"kubelb-ccm"}
	if n == l.HubNode {
		names = []string{"kubelb-manager", "kubelb-gateway", "kubelb-gateway-with-kubelb-backend-example"}
	}
	var out []string
	for _, name := range names {
		if l.options.Images != "" {
			out = append(out, filepath.Join(l.options.Images, name+".tar"))
		}
	}
	return out
}

// routerSysctls are the sysctls of a host that forwards packets.
var routerSysctls = []string{"net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1", "net/ipv4/conf/all/rp_filter=0", "net/ipv4/conf/default/rp_filter=0"}

func (l *Lab) network() (err error) {
	clients, err := l.net.Switch("clients")
	if err != nil {
		return err
	}
	nodes, err := l.net.Switch("nodes")
	if err != nil {
		return err
	}
	host := func(name string, sysctls ...string) *netlab.Namespace {
		ns, hostErr := l.net.Namespace(name, sysctls...)
		err = errors.Join(err, hostErr)
		return ns
	}
	plug := func(sw, ns *netlab.Namespace, port, device, v4, v6 string) {
		if err == nil {
			err = l.net.Plug(sw, port, netlab.Interface{Namespace: ns, Name: device, Addresses: []string{v4 + "/24", v6 + "/64"}})
		}
	}
	l.Client, l.Gateway = host("client"), host("gateway", routerSysctls...)
	if err == nil {
		err = l.Gateway.MountBPF()
	}
	plug(clients, l.Client, "client", "eth0", Client4, Client6)
	plug(clients, l.Gateway, "gateway", "clients", "192.0.2.1", "2001:db8:c::1")
	l.clientsSwitch, l.nodesSwitch = clients, nodes
	plug(nodes, l.Gateway, "gateway", "nodes", nodes4+"1", nodes6+"1")
	l.Hub, l.Tenant = &ControlPlane{Namespace: host("hub")}, &ControlPlane{Namespace: host("tenant")}
	plug(nodes, l.Hub.Namespace, "hub", "eth0", nodes4+"2", nodes6+"2")
	plug(nodes, l.Tenant.Namespace, "tenant", "eth0", nodes4+"3", nodes6+"3")
	for i := 1; i <= 2; i++ {
		n := l.newNode(fmt.Sprintf("node%d", i), i, 10+i)
		n.Namespace = host(n.Name, routerSysctls...)
		plug(nodes, n.Namespace, n.Name, "eth0", n.Address4, n.Address6)
		l.Nodes = append(l.Nodes, n)
	}
	if l.options.Images != "" {
		l.HubNode = l.newNode("gateway", 9, 1)
		l.HubNode.Namespace = l.Gateway
	}
	if err != nil {
		return err
	}
	return l.routes()
}

// newNode returns a node. number selects the networks of its pods, address is the last byte of its addresses.
func (l *Lab) newNode(name string, number, address int) *Node {
	return &Node{Name: name, number: number, segment: l.nodesSwitch, Address4: fmt.Sprintf("%s%d", nodes4, address), Address6: fmt.Sprintf("%s%d", nodes6, address), cgroup: filepath.Base(l.Dir)}
}

// routes adds the routes: nodes reach each other's pods directly, and everything else by the gateway. API servers reach the
// pods, too.
func (l *Lab) routes() error {
	errs := []error{routesOf(l.Nodes)}
	for _, n := range l.Nodes {
		errs = append(errs, l.Tenant.Namespace.Route(n.pods4(), n.Address4))
	}
	if l.HubNode != nil {
		// kube-proxy only translates packets that have a route, so a host without a default route would reach no Service.
		errs = append(errs, l.Gateway.Route("0.0.0.0/0", nodes4+"2"), l.Gateway.Route("::/0", nodes6+"2"))
	}
	// Pods of both clusters connect to the hub's API server.
	for _, n := range l.allNodes() {
		errs = append(errs, l.Hub.Namespace.Route(n.pods4(), n.Address4))
	}
	return errors.Join(errs...)
}

func routesOf(nodes []*Node) error {
	var errs []error
	for _, n := range nodes {
		errs = append(errs, n.Namespace.Route("0.0.0.0/0", nodes4+"1"), n.Namespace.Route("::/0", nodes6+"1"))
		for _, other := range nodes {
			if other != n {
				errs = append(errs, n.Namespace.Route(other.pods4(), other.Address4), n.Namespace.Route(other.pods6(), other.Address6))
			}
		}
	}
	return errors.Join(errs...)
}

// AddHost adds a host on the nodes' segment, with addresses in CIDR notation.
func (l *Lab) AddHost(name string, addresses ...string) (*netlab.Namespace, error) {
	ns, err := l.net.Namespace(name)
	if err != nil {
		return nil, err
	}
	return ns, l.net.Plug(l.nodesSwitch, name, netlab.Interface{Namespace: ns, Name: "eth0", Addresses: addresses})
}

// BlockPort makes the switch of the clients' segment drop all frames from and to a port, or forward them again. The link of the port stays up.
func (l *Lab) BlockPort(ctx context.Context, port string, blocked bool) error {
	state := map[bool]string{true: "0", false: "3"}[blocked] // BR_STATE_DISABLED and BR_STATE_FORWARDING of linux/if_bridge.h
	_, err := run(ctx, l.clientsSwitch, "", "bridge", "link", "set", "dev", port, "state", state)
	return err
}

// plugIntoNodes connects a host to the nodes' segment. number is the last byte of its addresses.
func (l *Lab) plugIntoNodes(host *netlab.Namespace, name string, number int) error {
	return l.net.Plug(l.nodesSwitch, name, netlab.Interface{Namespace: host, Name: "eth0", Addresses: []string{fmt.Sprintf("%s%d/24", nodes4, number), fmt.Sprintf("%s%d/64", nodes6, number)}})
}

// plugIntoClients connects a host of the nodes' segment to the clients' segment, too. There it does not answer ARP requests for addresses of
// other interfaces, and does not use them as senders of ARP requests, because other hosts would learn them from that (ip-sysctl.rst).
func (l *Lab) plugIntoClients(host *netlab.Namespace, name string, number int) error {
	addresses := []string{fmt.Sprintf("192.0.2.%d/24", number), fmt.Sprintf("2001:db8:c::%d/64", number)}
	if err := l.net.Plug(l.clientsSwitch, name, netlab.Interface{Namespace: host, Name: "eth1", Addresses: addresses}); err != nil {
		return err
	}
	return host.Do(func() error {
		const of = "/proc/sys/net/ipv4/conf/all/"
		return errors.Join(os.WriteFile(of+"arp_ignore", []byte("1"), 0o644), os.WriteFile(of+"arp_announce", []byte("2"), 0o644))
	})
}

func (l *Lab) images(ctx context.Context) ([]string, error) {
	pause, agnhost := filepath.Join(l.Dir, "pause.tar"), filepath.Join(l.Dir, "agnhost.tar")
	return []string{pause, agnhost}, errors.Join(
		writeImage(pause, pauseImage, filepath.Join(l.options.Products, "pause")),
		writeImage(agnhost, AgnhostImage, filepath.Join(l.options.Kubernetes, "agnhost")))
}

func (l *Lab) controlPlanes(ctx context.Context) error {
	var starts errgroup.Group
	start := func(c **ControlPlane, name, address string) {
		starts.Go(func() error {
			started, err := startControlPlane(ctx, (*c).Namespace, name, address, l.options.Kubernetes, l.Dir)
			if started != nil {
				*c = started
			}
			return err
		})
	}
	start(&l.Hub, "hub", nodes4+"2")
	if !l.options.HubOnly {
		start(&l.Tenant, "tenant", nodes4+"3")
	}
	return starts.Wait()
}

func (l *Lab) installCRDs(ctx context.Context) error {
	var all strings.Builder
	for _, files := range []fs.ReadFileFS{crds.Files, policies.Files} {
		names, err := fs.Glob(files, "*.yaml")
		if err != nil {
			return err
		}
		for _, name := range names {
			content, err := files.ReadFile(name)
			if err != nil {
				return err
			}
			all.WriteString("---\n" + string(content))
		}
	}
	if _, err := l.Hub.Kubectl(ctx, all.String(), "apply", "--server-side", "-f", "-"); err != nil {
		return fmt.Errorf("install CRDs: %w", err)
	}
	if _, err := l.Hub.Kubectl(ctx, "", "wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"); err != nil {
		return err
	}
	_, err := l.Hub.Kubectl(ctx, "", "create", "namespace", "kubelb")
	return err
}

// StartManager runs the manager with both roles on the gateway. extra flags override the default ones.
func (l *Lab) StartManager(extra ...string) (err error) {
	l.Manager, err = l.startManager(l.Gateway, "kubelb-manager", append(l.gatewayFlags("gateway"), extra...))
	return err
}

func (l *Lab) startManager(on *netlab.Namespace, name string, flags []string) (*Process, error) {
	return Start(on, l.Dir, name, append([]string{filepath.Join(l.options.Products, "kubelb-manager"), "--kubeconfig=" + l.Hub.Kubeconfig,
		"--enable-leader-election=false", "--metrics-addr=127.0.0.1:9443", "--log-level=debug"}, flags...)...)
}

func (l *Lab) gatewayFlags(name string) []string {
	return []string{"--backend=" + cmp.Or(l.options.Backend, "nftables"), "--state-dir=" + filepath.Join(l.Dir, name), "--gateway-name=" + name, "--announce-interfaces=clients"}
}

// StartController runs the controllers alone, on the host of the hub's API server.
func (l *Lab) StartController(extra ...string) (err error) {
	l.Manager, err = l.startManager(l.Hub.Namespace, "kubelb-controller", append([]string{"--gateway=false", "--api-server=" + l.Hub.URL()}, extra...))
	return err
}

// AddGateway adds a host on both segments. number is the last byte of its addresses. Its ports of the switches have its name.
func (l *Lab) AddGateway(name string, number int) (*netlab.Namespace, error) {
	ns, err := l.net.Namespace(name, routerSysctls...)
	if err != nil {
		return nil, err
	}
	return ns, errors.Join(ns.MountBPF(),
		l.net.Plug(l.clientsSwitch, name, netlab.Interface{Namespace: ns, Name: "clients", Addresses: []string{fmt.Sprintf("192.0.2.%d/24", number), fmt.Sprintf("2001:db8:c::%d/64", number)}}),
		l.net.Plug(l.nodesSwitch, name, netlab.Interface{Namespace: ns, Name: "nodes", Addresses: []string{fmt.Sprintf("%s%d/24", nodes4, number), fmt.Sprintf("%s%d/64", nodes6, number)}}))
}

// StartGateway runs the gateway role alone on a host.
func (l *Lab) StartGateway(on *netlab.Namespace, name string, extra ...string) (*Process, error) {
	return l.startManager(on, name, append(append(l.gatewayFlags(name), "--controller=false"), extra...))
}

// SetClientsLink sets the link of a gateway on the clients' segment down, as if its cable were pulled, or up.
func (l *Lab) SetClientsLink(name string, up bool) error { return l.clientsSwitch.SetLink(name, up) }

// On runs a program on a host.
func (l *Lab) On(ctx context.Context, host *netlab.Namespace, argv ...string) (string, error) {
	return run(ctx, host, "", argv...)
}

// StartCCM waits for the tenant's credentials, and runs the CCM with them on the host of the tenant's API server.
func (l *Lab) StartCCM(ctx context.Context, extra ...string) (err error) {
	l.CCM, err = l.startCCM(ctx, TenantName, l.Tenant, extra...)
	return err
}

func (l *Lab) startCCM(ctx context.Context, tenant string, c *ControlPlane, extra ...string) (*Process, error) {
	kubeconfig := filepath.Join(c.dir, "ccm-hub.kubeconfig")
	if err := l.TenantKubeconfig(ctx, tenant, kubeconfig); err != nil {
		return nil, err
	}
	return Start(c.Namespace, c.dir, "kubelb-ccm", append([]string{filepath.Join(l.options.Products, "kubelb-ccm"),
		"--cluster-name=" + tenant, "--kubelb-kubeconfig=" + kubeconfig, "--kubeconfig=" + c.Kubeconfig,
		"--enable-leader-election=false", "--metrics-addr=127.0.0.1:9445", "--log-level=debug"}, extra...)...)
}

// TenantKubeconfig waits until the manager has made credentials for a tenant, and writes them to a file.
func (l *Lab) TenantKubeconfig(ctx context.Context, tenant, file string) error {
	var encoded string
	err := await(ctx, "credentials of tenant "+tenant, 30*time.Second, func() bool {
		var err error
		encoded, err = l.Hub.Get(ctx, "tenant-"+tenant, "secret/kubelb-ccm-kubeconfig", "{.data.kubelb}")
		return err == nil && encoded != ""
	}, l.Manager)
	if err != nil {
		return err
	}
	content, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return err
	}
	return os.WriteFile(file, content, 0o600)
}

// FromClient runs a program on the client's host.
func (l *Lab) FromClient(ctx context.Context, argv ...string) (string, error) {
	return run(ctx, l.Client, "", argv...)
}

// OnNode runs a program on a node.
func (l *Lab) OnNode(ctx context.Context, n *Node, argv ...string) (string, error) {
	return run(ctx, n.Namespace, "", argv...)
}

// OnGateway runs a program on the gateway.
func (l *Lab) OnGateway(ctx context.Context, argv ...string) (string, error) {
	return l.On(ctx, l.Gateway, argv...)
}

// requiredPrograms returns the programs of the distribution that a lab needs.
func requiredPrograms() []string {
	return []string{"containerd", "runc", "unshare", "nsenter", "mount", "ip", "nft", "curl"}
}

// Missing returns the required programs that the machine lacks.
func Missing() []string {
	var missing []string
	for _, program := range requiredPrograms() {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, program)
		}
	}
	return missing
}
