package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/conformance/netlab"
)

// ControlPlane is the control plane of a cluster.
type ControlPlane struct {
	Name      string
	Namespace *netlab.Namespace
	// Kubeconfig is the path of the administrator's kubeconfig.
	Kubeconfig string
	address    string
	bin, dir   string
	pki        *pki
	reader     *reader
	processes  []*Process
}

const apiServerPort = "6443"

// startControlPlane runs etcd, the API server, the controller manager and the scheduler in the namespace, on its address.
func startControlPlane(ctx context.Context, ns *netlab.Namespace, name, address, bin, dir string) (*ControlPlane, error) {
	c := &ControlPlane{Name: name, Namespace: ns, address: address, bin: bin, dir: filepath.Join(dir, name)}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, err
	}
	if err := c.credentials(); err != nil {
		return nil, err
	}
	var err error
	if c.reader, err = c.newReader(); err != nil {
		return nil, err
	}
	etcd, err := c.start("etcd", "--data-dir", filepath.Join(c.dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379",
		"--listen-peer-urls", "http://127.0.0.1:2380", "--initial-advertise-peer-urls", "http://127.0.0.1:2380", "--initial-cluster", "default=http://127.0.0.1:2380")
	if err != nil {
		return nil, err
	}
	key := c.pki.file
	api, err := c.start("kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", "--bind-address="+address, "--secure-port="+apiServerPort, "--advertise-address="+address,
		"--tls-cert-file="+key("apiserver.crt"), "--tls-private-key-file="+key("apiserver.key"), "--client-ca-file="+key("ca.crt"), "--cert-dir="+c.dir,
		"--authorization-mode=Node,RBAC", "--service-cluster-ip-range=10.96.0.0/16,2001:db8:96::/112", "--allow-privileged=true",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+key("sa.key"), "--service-account-signing-key-file="+key("sa.key"),
		"--kubelet-client-certificate="+key("admin.crt"), "--kubelet-client-key="+key("admin.key"), "--kubelet-certificate-authority="+key("ca.crt"),
		"--kubelet-preferred-address-types=InternalIP")
	if err != nil {
		return nil, err
	}
	if err := await(ctx, name+": API server", time.Minute, c.ready, etcd, api); err != nil {
		return nil, err
	}
	// With the default API limits, the controller manager needs six more seconds to start.
	kcm, err := c.start("kube-controller-manager", "--kubeconfig="+c.kubeconfig("kcm"), "--authentication-kubeconfig="+c.kubeconfig("kcm"),
		"--authorization-kubeconfig="+c.kubeconfig("kcm"), "--bind-address=127.0.0.1", "--cert-dir="+c.dir, "--leader-elect=false", "--use-service-account-credentials",
		"--service-account-private-key-file="+key("sa.key"), "--root-ca-file="+key("ca.crt"), "--cluster-signing-cert-file="+key("ca.crt"), "--cluster-signing-key-file="+key("ca.key"),
		"--kube-api-qps=500", "--kube-api-burst=1000", "--node-monitor-grace-period=40s")
	if err != nil {
		return nil, err
	}
	scheduler, err := c.start("kube-scheduler", "--kubeconfig="+c.kubeconfig("scheduler"), "--leader-elect=false", "--bind-address=127.0.0.1", "--cert-dir="+c.dir)
	if err != nil {
		return nil, err
	}
	return c, await(ctx, name+": default service account", time.Minute, func() bool {
		_, err := c.Get(ctx, "default", "serviceaccount/default", "")
		return err == nil
	}, kcm, scheduler)
}

func (c *ControlPlane) start(name string, args ...string) (*Process, error) {
	p, err := Start(c.Namespace, c.dir, name, append([]string{filepath.Join(c.bin, name)}, args...)...)
	if err == nil {
		c.processes = append(c.processes, p)
	}
	return p, err
}

// FreezeAPI suspends the API server, or lets it continue.
func (c *ControlPlane) FreezeAPI(frozen bool) error {
	for _, p := range c.processes {
		switch {
		case p.Name != "kube-apiserver":
		case frozen:
			return p.Freeze()
		default:
			return p.Thaw()
		}
	}
	return errors.New("there is no API server")
}

// URL returns the URL of the API server.
func (c *ControlPlane) URL() string { return "https://" + c.address + ":" + apiServerPort }

// credentials makes the certificate authority, the server's certificate, and a kubeconfig for each user.
func (c *ControlPlane) credentials() (err error) {
	if c.pki, err = newPKI(filepath.Join(c.dir, "pki"), c.Name+"-ca"); err != nil {
		return err
	}
	err = c.pki.issue("apiserver", "kube-apiserver", nil, []string{"127.0.0.1", c.address, "10.96.0.1"}, "kubernetes.default.svc", "localhost")
	if err != nil {
		return err
	}
	for _, u := range []struct {
		name, user string
		groups     []string
	}{
		{"admin", "admin", []string{"system:masters"}}, {"kcm", "system:kube-controller-manager", nil},
		{"scheduler", "system:kube-scheduler", nil}, {"proxy", "system:kube-proxy", nil},
	} {
		if err := c.pki.issue(u.name, u.user, u.groups, nil); err != nil {
			return err
		}
		if err := c.writeKubeconfig(u.name); err != nil {
			return err
		}
	}
	c.Kubeconfig = c.kubeconfig("admin")
	return nil
}

func (c *ControlPlane) kubeconfig(user string) string {
	return filepath.Join(c.dir, user+".kubeconfig")
}

func (c *ControlPlane) writeKubeconfig(user string) error {
	var data [3]string
	for i, file := range []string{"ca.crt", user + ".crt", user + ".key"} {
		content, err := os.ReadFile(c.pki.file(file))
		if err != nil {
			return err
		}
		data[i] = base64.StdEncoding.EncodeToString(content)
	}
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: %[1]s
contexts: [{name: %[1]s, context: {cluster: %[1]s, user: %[2]s}}]
clusters: [{name: %[1]s, cluster: {server: "%[3]s", certificate-authority-data: %[4]s}}]
users: [{name: %[2]s, user: {client-certificate-data: %[5]s, client-key-data: %[6]s}}]
`, c.Name, user, c.URL(), data[0], data[1], data[2])
	return os.WriteFile(c.kubeconfig(user), []byte(text), 0o600)
}

// ready reports whether /readyz of the API server says ok.
func (c *ControlPlane) ready() bool {
	pair, err := tls.LoadX509KeyPair(c.pki.file("admin.crt"), c.pki.file("admin.key"))
	if err != nil {
		return false
	}
	roots := x509.NewCertPool()
	roots.AddCert(c.pki.cert)
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: c.Namespace.DialContext,
		TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots}}}
	response, err := client.Get(c.URL() + "/readyz")
	if err != nil {
		return false
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode == http.StatusOK
}

// Client returns a client of the API server without rate limits, for the kinds of the scheme.
func (c *ControlPlane) Client(scheme *runtime.Scheme) (client.Client, error) {
	config, err := c.config()
	if err != nil {
		return nil, err
	}
	return client.New(config, client.Options{Scheme: scheme})
}

// config returns the administrator's access to the API server, without rate limits.
func (c *ControlPlane) config() (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return nil, err
	}
	config.Dial, config.QPS = c.Namespace.DialContext, -1
	return config, nil
}

// Kubectl runs kubectl as the administrator. stdin may have a manifest.
func (c *ControlPlane) Kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	return c.KubectlAs(ctx, c.Kubeconfig, stdin, args...)
}

// KubectlAs runs kubectl with a kubeconfig.
func (c *ControlPlane) KubectlAs(ctx context.Context, kubeconfig, stdin string, args ...string) (string, error) {
	return run(ctx, c.Namespace, stdin, append([]string{filepath.Join(c.bin, "kubectl"), "--kubeconfig", kubeconfig}, args...)...)
}

// Run runs a program on the control plane's host.
func (c *ControlPlane) Run(ctx context.Context, argv ...string) (string, error) {
	return run(ctx, c.Namespace, "", argv...)
}

// Stop kills the programs in reverse order of their start.
func (c *ControlPlane) Stop() {
	for i := range c.processes {
		c.processes[len(c.processes)-1-i].Kill()
	}
}
