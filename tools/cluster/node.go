package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
	"time"

	"kubelb.k8c.io/conformance/netlab"
)

// Node is one node of a cluster: containerd, kubelet and kube-proxy in a network namespace of their own.
type Node struct {
	Name      string
	Namespace *netlab.Namespace
	// Address4 and Address6 are the node's InternalIPs.
	Address4, Address6 string
	number             int
	// segment is the switch of the node, with the port of the node's name.
	segment    *netlab.Namespace
	dir        string
	cluster    *ControlPlane
	cgroup     string
	containerd *Process
	kubelet    *Process
	proxy      *Process
}

func (n *Node) pods4() string { return fmt.Sprintf("10.77.%d.0/24", n.number) }
func (n *Node) pods6() string { return fmt.Sprintf("2001:db8:77:%d::/64", n.number) }

var nodeFiles = map[string]*template.Template{
	"cni/10-bridge.conflist": template.Must(template.New("cni").Parse(`{"cniVersion":"0.4.0","name":"pods","plugins":[
{"type":"bridge","bridge":"cni0","isGateway":true,"hairpinMode":true,
 "ipam":{"type":"host-local","dataDir":"{{.Dir}}/ipam","ranges":[[{"subnet":"{{.Pods4}}"}],[{"subnet":"{{.Pods6}}"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}},
{"type":"portmap","capabilities":{"portMappings":true}}]}
`)),
	"containerd.toml": template.Must(template.New("containerd").Parse(`version = 2
root = "{{.Dir}}/root"
state = "{{.Dir}}/run"
[grpc]
  address = "{{.Dir}}/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + pauseImage + `"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{{.Dir}}/cni"
`)),
	"kubelet.yaml": template.Must(template.New("kubelet").Parse(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
cgroupRoot: /{{.Cgroup}}
cgroupsPerQOS: false
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
containerRuntimeEndpoint: unix://{{.Dir}}/c.sock
address: 0.0.0.0
healthzBindAddress: 127.0.0.1
podLogsDir: {{.Dir}}/logs
tlsCertFile: {{.Cert}}
tlsPrivateKeyFile: {{.Key}}
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: {{.CA}}}}
authorization: {mode: Webhook}
evictionHard: {"memory.available": "1Mi"}
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 5s
`)),
}

// start runs the node's programs, and waits until the node is ready.
func (n *Node) start(ctx context.Context, images []string) error {
	c := n.cluster
	n.dir = filepath.Join(c.dir, n.Name)
	if err := os.MkdirAll(filepath.Join(n.dir, "cni"), 0o700); err != nil {
		return err
	}
	if err := c.pki.issue(n.Name, "system:node:"+n.Name, []string{"system:nodes"}, []string{n.Address4, n.Address6}, n.Name); err != nil {
		return err
	}
	if err := c.writeKubeconfig(n.Name); err != nil {
		return err
	}
	values := map[string]string{"Dir": n.dir, "Pods4": n.pods4(), "Pods6": n.pods6(), "Cgroup": n.cgroup,
		"Cert": c.pki.file(n.Name + ".crt"), "Key": c.pki.file(n.Name + ".key"), "CA": c.pki.file("ca.crt")}
	for name, file := range nodeFiles {
		var text strings.Builder
		if err := file.Execute(&text, values); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(n.dir, name), []byte(text.String()), 0o600); err != nil {
			return err
		}
	}
	if err := n.startContainerd(ctx, images); err != nil {
		return err
	}
	return n.startKubelet(ctx)
}

// startContainerd runs containerd in a mount namespace of its own, so that the mounts of pods end with the node. In this namespace
// the node has its own /var/lib/kubelet, because only one of several kubelets could have the socket of device plugins there.
func (n *Node) startContainerd(ctx context.Context, images []string) (err error) {
	script := fmt.Sprintf("mkdir -p /var/lib/kubelet && mount -t tmpfs tmpfs /var/lib/kubelet && mount -t tmpfs tmpfs /run/netns && exec containerd -c %s/containerd.toml", n.dir)
	if n.containerd, err = Start(n.Namespace, n.dir, "containerd", "unshare", "-m", "--propagation", "slave", "sh", "-c", script); err != nil {
		return err
	}
	ctr := func(args ...string) error {
		_, err := run(ctx, n.Namespace, "", append([]string{"ctr", "-a", filepath.Join(n.dir, "c.sock")}, args...)...)
		return err
	}
	if err := await(ctx, n.Name+": containerd", time.Minute, func() bool { return ctr("version") == nil }, n.containerd); err != nil {
		return err
	}
	for _, archive := range images {
		if err := ctr("-n", "k8s.io", "images", "import", archive); err != nil {
			return err
		}
	}
	return nil
}

// startKubelet runs the kubelet in containerd's mount namespace, because both must see the same volumes of pods.
func (n *Node) startKubelet(ctx context.Context) (err error) {
	c := n.cluster
	n.kubelet, err = Start(n.Namespace, n.dir, "kubelet", "nsenter", "-t", strconv.Itoa(n.containerd.PID()), "-m", filepath.Join(c.bin, "kubelet"),
		"--config="+filepath.Join(n.dir, "kubelet.yaml"), "--kubeconfig="+c.kubeconfig(n.Name), "--hostname-override="+n.Name,
		"--node-ip="+n.Address4+","+n.Address6, "--root-dir="+filepath.Join(n.dir, "kubelet"), "--cert-dir="+n.dir)
	if err != nil {
		return err
	}
	ready := func() bool {
		status, err := c.Get(ctx, "", "node/"+n.Name, `{.status.conditions[?(@.type=="Ready")].status}`)
		return err == nil && status == "True"
	}
	if err := await(ctx, n.Name+": kubelet", 2*time.Minute, ready, n.containerd, n.kubelet); err != nil {
		return err
	}
	n.proxy, err = Start(n.Namespace, n.dir, "kube-proxy", filepath.Join(c.bin, "kube-proxy"), "--kubeconfig="+c.kubeconfig("proxy"), "--proxy-mode=nftables",
		"--hostname-override="+n.Name, "--cluster-cidr=10.77.0.0/16,2001:db8:77::/48", "--detect-local-mode=ClusterCIDR", "--conntrack-max-per-core=0",
		"--healthz-bind-address=0.0.0.0:10256", "--metrics-bind-address=127.0.0.1:10249")
	return err
}

func (n *Node) kill() {
	for _, p := range []*Process{n.proxy, n.kubelet, n.containerd} {
		if p != nil {
			p.Kill()
		}
	}
}

// Disconnect disconnects the node from the network, like a power loss. Its programs continue to run. It sets the port of the switch
// down, because a host whose own interface goes down loses its routes.
func (n *Node) Disconnect() error { return n.segment.SetLink(n.Name, false) }

// Reconnect connects the node to the network again.
func (n *Node) Reconnect() error { return n.segment.SetLink(n.Name, true) }
