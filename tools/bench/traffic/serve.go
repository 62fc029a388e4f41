package traffic

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/tools/bench"
)

// startTarget starts the backend or the proxy of the gateway, if it has one.
func (g *gateway) startTarget(ctx context.Context, o Options) error {
	fmt.Fprintf(o.Progress, "starting %s\n", g.name)
	if g.start != nil {
		return g.start(g, o)
	}
	if g.backend == "" {
		return nil
	}
	return g.serve(ctx, g.backend, o)
}

// serve starts a backend, by name or path, which serves TCP and UDP on the gateway's VIP.
func (g *gateway) serve(ctx context.Context, backend string, o Options) (err error) {
	pool := model.Pool{ID: "t/nodes", Tenant: "t"}
	for _, n := range g.nodes {
		pool.Endpoints = append(pool.Endpoints, model.Endpoint{ID: n.String(), Address: n, Weight: 1})
	}
	s := model.Snapshot{Pools: []model.Pool{pool}}
	for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
		s.Frontends = append(s.Frontends, model.Frontend{FrontendKey: model.FrontendKey{VIP: g.vip, Protocol: protocol, Port: servedPort},
			Owner: model.ObjectName{Namespace: "tenant-t", Name: "s"}, Tenant: "t", Pool: pool.ID, TargetPort: nodePort, Forwarding: model.NAT})
	}
	g.process, err = bench.StartBackend(ctx, g.Namespace, backend, g.options, o.State, s, o.Log)
	return err
}

const haproxyConfig = `global
  nbthread 2
  maxconn 4000
defaults
  mode tcp
  timeout connect 5s
  timeout client 300s
  timeout server 300s
frontend vip
  bind %s
  default_backend nodes
backend nodes
  balance roundrobin
%s`

func startHAProxy(g *gateway, o Options) error {
	var servers strings.Builder
	for i, n := range g.nodes {
		fmt.Fprintf(&servers, "  server s%d %s:%d\n", i, n, nodePort)
	}
	return g.startProxy(o, "haproxy", fmt.Sprintf(haproxyConfig, g.to[0], servers.String()), "-db", "-f")
}

const nginxConfig = `load_module %[1]s/usr/lib/nginx/modules/ngx_stream_module.so;
worker_processes 2;
daemon off;
pid %[2]s/nginx.pid;
error_log stderr warn;
events { worker_connections 4000; }
stream {
  upstream tcp_nodes {
%[3]s  }
  upstream udp_nodes {
    hash $remote_addr:$remote_port;
%[3]s  }
  server { listen %[4]s reuseport; proxy_pass tcp_nodes; }
  server { listen %[4]s udp reuseport; proxy_pass udp_nodes; }
}
`

func startNginx(g *gateway, o Options) error {
	var servers strings.Builder
	for _, n := range g.nodes {
		fmt.Fprintf(&servers, "    server %s:%d;\n", n, nodePort)
	}
	return g.startProxy(o, "nginx", fmt.Sprintf(nginxConfig, o.Proxies, o.State, servers.String(), g.to[0]), "-e", "stderr", "-c")
}

// startProxy adds the VIP to the gateway's addresses, and runs a proxy on the gateway.
func (g *gateway) startProxy(o Options, name, config string, args ...string) error {
	file := filepath.Join(o.State, name+".cfg")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return err
	}
	libraries, err := filepath.Glob(filepath.Join(o.Proxies, "usr/lib/*-linux-gnu"))
	if err != nil || len(libraries) != 1 {
		return fmt.Errorf("want one directory with the libraries of %s in %s, found %v: %w", name, o.Proxies, libraries, err)
	}
	cmd := exec.Command(filepath.Join(o.Proxies, "usr/sbin", name), append(args, file)...)
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+libraries[0])
	cmd.Stdout, cmd.Stderr = o.Log, o.Log
	if err := g.Do(func() error { return errors.Join(g.addVIP(), cmd.Start()) }); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	g.endProxy = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
	}
	return g.awaitPort(ended)
}

// addVIP adds the VIP to the gateway's addresses.
func (g *gateway) addVIP() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.AddrAdd(lo, &netlink.Addr{IPNet: netlink.NewIPNet(g.vip.AsSlice())})
}

func (g *gateway) awaitPort(ended <-chan error) error {
	for range 100 {
		var c net.Conn
		err := g.Do(func() (err error) {
			c, err = net.Dial("tcp", g.to[0].String())
			return err
		})
		if err == nil {
			return c.Close()
		}
		select {
		case err := <-ended:
			g.endProxy = nil
			return fmt.Errorf("the proxy ended: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	return errors.New("the proxy does not listen")
}
