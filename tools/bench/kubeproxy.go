package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/tools/cluster"
)

// kubeProxyLimit is how long kube-proxy may take until it serves. The time of its first transaction grows faster than the number of
// Services.
const kubeProxyLimit = 20 * time.Minute

// apiServer is an API server for kube-proxy, in a cluster without changes: it has fixed lists, and its watches send nothing.
type apiServer map[string][]byte

// newAPIServer returns an API server with a Service for each frontend. The Service has an external address, and an EndpointSlice with the
// pool's endpoints and the frontend's target port.
func newAPIServer(s model.Snapshot, node string) (apiServer, error) {
	services, slices := corev1.ServiceList{}, discoveryv1.EndpointSliceList{}
	endpoints := map[model.PoolID][]discoveryv1.Endpoint{}
	for _, p := range s.Pools {
		for _, e := range p.Endpoints {
			endpoints[p.ID] = append(endpoints[p.ID], discoveryv1.Endpoint{Addresses: []string{e.Address.String()}})
		}
	}
	clusterIP := netip.MustParseAddr("10.96.0.1")
	for i, f := range s.Frontends {
		meta := metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("s%d", i)}
		protocol := corev1.Protocol(f.Protocol.String())
		services.Items = append(services.Items, corev1.Service{ObjectMeta: meta,
			Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, ClusterIP: clusterIP.String(), ClusterIPs: []string{clusterIP.String()},
				IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, Ports: []corev1.ServicePort{{Protocol: protocol, Port: int32(f.Port)}}},
			Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: f.VIP.String()}}}}})
		clusterIP = clusterIP.Next()
		target := int32(f.TargetPort)
		meta.Labels = map[string]string{discoveryv1.LabelServiceName: meta.Name}
		slices.Items = append(slices.Items, discoveryv1.EndpointSlice{ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints: endpoints[f.Pool], Ports: []discoveryv1.EndpointPort{{Name: new(string), Protocol: &protocol, Port: &target}}})
	}
	host := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}}}
	a := apiServer{}
	for path, list := range map[string]any{
		"/api/v1/services":                         &services,
		"/api/v1/nodes":                            &corev1.NodeList{Items: []corev1.Node{host}},
		"/api/v1/nodes/" + node:                    &host,
		"/apis/discovery.k8s.io/v1/endpointslices": &slices,
		"/apis/networking.k8s.io/v1/servicecidrs":  &networkingv1.ServiceCIDRList{},
	} {
		text, err := json.Marshal(list)
		if err != nil {
			return nil, err
		}
		a[path] = text
	}
	return a, nil
}

func (a apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	text, found := a[r.URL.Path]
	query := r.URL.Query()
	switch {
	case query.Get("sendInitialEvents") != "":
		// After this error, the client requests the list.
		http.Error(w, "lists are not streamed", http.StatusUnprocessableEntity)
	case query.Get("watch") != "":
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	case found:
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(text)
	default: // events of kube-proxy
		http.NotFound(w, r)
	}
}

// startKubeProxy runs kube-proxy in nftables mode on the gateway until the gateway is closed.
func (g *gateway) startKubeProxy(ctx context.Context, binary, dir string, want model.Snapshot) (err error) {
	api, err := newAPIServer(want, "gateway")
	if err != nil {
		return err
	}
	var listener net.Listener
	if err := g.Do(func() (err error) {
		listener, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	}); err != nil {
		return err
	}
	server := &http.Server{Handler: api}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	g.stop = append(g.stop, func() error { return errors.Join(server.Close(), ignoreClosed(<-served)) })
	process, err := cluster.Start(g.Namespace, filepath.Join(dir, g.Name), "kube-proxy", binary, "--master=http://"+listener.Addr().String(), "--proxy-mode=nftables",
		"--hostname-override=gateway", "--cluster-cidr=10.244.0.0/16", "--detect-local-mode=ClusterCIDR", "--conntrack-max-per-core=0",
		"--healthz-bind-address=127.0.0.1:10256", "--metrics-bind-address=127.0.0.1:10249")
	if err != nil {
		return err
	}
	g.stop = append(g.stop, func() error { process.Stop(); return nil })
	for deadline := time.Now().Add(kubeProxyLimit); ; {
		if served, err := g.serves(); err != nil || served {
			return err
		}
		if process.Exited() || time.Now().After(deadline) {
			return fmt.Errorf("kube-proxy does not serve:\n%s", process.Tail())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// ignoreClosed returns the error of a server, or nil if the server was closed.
func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// serves reports whether a datagram for the VIP reaches a node.
func (g *gateway) serves() (result bool, err error) {
	err = g.Do(func() error {
		before, err := g.arrived()
		if err != nil {
			return err
		}
		p := path{gateway: g, frame: frame(g.front.HardwareAddr, netip.AddrPortFrom(vip, servedPort)), flows: 1, result: xdpPass}
		generator, close, err := p.generator()
		if err != nil {
			return err
		}
		defer close()
		if _, err := generator.run(g.front.Index, p.frame, 1); err != nil {
			return err
		}
		after, err := g.arrived()
		result = after > before
		return err
	})
	return result, err
}

// reduceEndpoints gives all frontends but those of the VIP a pool with one endpoint. kube-proxy has rules for each endpoint of each Service, and
// 50,000 Services with 100 endpoints each would be unrealistic.
func reduceEndpoints(s model.Snapshot) model.Snapshot {
	few := s.Pools[0]
	few.ID, few.Endpoints = "t/few", few.Endpoints[:1]
	s.Pools = append(s.Pools, few)
	for i := range s.Frontends {
		if s.Frontends[i].VIP != vip {
			s.Frontends[i].Pool = few.ID
		}
	}
	return s
}
