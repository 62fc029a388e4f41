package envoy

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"

	cncf "github.com/cncf/xds/go/xds/core/v3"
	matcher "github.com/cncf/xds/go/xds/type/matcher/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	filterstate "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	originalsrc "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_src/v3"
	setfilterstate "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	udpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/udp/udp_proxy/v3"
	proxyprotocol "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	rawbuffer "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	envoytype "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"kubelb.k8c.io/core/model"
)

// Settings that replace defaults of Envoy.
const (
	connectTimeout    = time.Second
	connectAttempts   = 3
	keepaliveIdle     = 300      // seconds
	bufferLimit       = 32 << 10 // bytes for each direction of a connection
	largestDatagram   = 65535
	unlimited         = math.MaxUint32
	maglevSmall       = 1009 // rows of the Maglev table of a pool with up to ten endpoints
	maglevLarge       = 65537
	maxEndpointsSmall = 10
)

// resources are the resources of a frontend in Envoy. Cluster and listener have the frontend's name. Endpoints, target port and
// pool are only in the load assignment, so that their changes do not affect the listener.
type resources struct {
	cluster    *cluster.Cluster
	assignment *endpoint.ClusterLoadAssignment
	listener   *listener.Listener
}

// render returns the resources of a frontend.
func render(f model.Frontend, p model.Pool, t timeouts, leaving map[netip.AddrPort]time.Time) resources {
	name := f.FrontendKey.String()
	return resources{cluster: renderCluster(name, f, p), assignment: renderAssignment(f, p, leaving), listener: renderListener(name, f, t)}
}

// assignmentName returns a name that differs for different clusters of one frontend. Envoy requests an assignment by name, and
// only once: a changed cluster with the former name would never get it.
func assignmentName(f model.Frontend, p model.Pool) string {
	name := fmt.Sprintf("%s|%d", f.FrontendKey, rowsFor(p))
	if f.ProxyProtocol {
		name += "|proxy"
	}
	if f.AffinityTimeout > 0 {
		name += "|affinity"
	}
	if f.MaxConnections > 0 {
		name += fmt.Sprintf("|at most %d", f.MaxConnections)
	}
	return name
}

func rowsFor(p model.Pool) uint64 {
	if len(p.Endpoints) > maxEndpointsSmall {
		return maglevLarge
	}
	return maglevSmall
}

func renderCluster(name string, f model.Frontend, p model.Pool) *cluster.Cluster {
	// Each connection of a client, and each UDP flow, has one connection to an endpoint.
	connections := cmp.Or(f.MaxConnections, unlimited)
	everything := func(priority core.RoutingPriority) *cluster.CircuitBreakers_Thresholds {
		return &cluster.CircuitBreakers_Thresholds{Priority: priority, MaxConnections: number(connections), MaxPendingRequests: number(unlimited),
			MaxRequests: number(unlimited), MaxRetries: number(unlimited)}
	}
	out := &cluster.Cluster{
		TransportSocket:      transportSocket(f.ProxyProtocol),
		Name:                 name,
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_EDS},
		EdsClusterConfig: &cluster.Cluster_EdsClusterConfig{ServiceName: assignmentName(f, p), EdsConfig: &core.ConfigSource{
			// The former cluster serves until the assignment has arrived, however long that takes.
			InitialFetchTimeout: durationpb.New(0), ResourceApiVersion: core.ApiVersion_V3, ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}}}},
		ConnectTimeout:                durationpb.New(connectTimeout),
		PerConnectionBufferLimitBytes: number(bufferLimit),
		LbPolicy:                      cluster.Cluster_MAGLEV,
		LbConfig:                      &cluster.Cluster_MaglevLbConfig_{MaglevLbConfig: &cluster.Cluster_MaglevLbConfig{TableSize: wrapperspb.UInt64(rowsFor(p))}},
		// The model decides which endpoints to use. If all seem unhealthy, it makes all of them active.
		CommonLbConfig: &cluster.Cluster_CommonLbConfig{HealthyPanicThreshold: &envoytype.Percent{}},
		CircuitBreakers: &cluster.CircuitBreakers{Thresholds: []*cluster.CircuitBreakers_Thresholds{
			everything(core.RoutingPriority_DEFAULT), everything(core.RoutingPriority_HIGH)}},
		UpstreamConnectionOptions: &cluster.UpstreamConnectionOptions{TcpKeepalive: keepalive()},
	}
	if f.AffinityTimeout > 0 {
		out.LbPolicy, out.LbConfig, out.LoadBalancingPolicy = 0, nil, affinityPolicy(f.Protocol, rowsFor(p))
	}
	return out
}

// transportSocket returns the transport socket of a cluster, with or without a PROXY protocol header at the start of connections.
func transportSocket(proxyProtocol bool) *core.TransportSocket {
	raw := &core.TransportSocket{Name: "raw_buffer", ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: packed(&rawbuffer.RawBuffer{})}}
	if !proxyProtocol {
		return raw
	}
	return &core.TransportSocket{Name: "upstream_proxy_protocol", ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: packed(&proxyprotocol.ProxyProtocolUpstreamTransport{
		Config: &core.ProxyProtocolConfig{Version: core.ProxyProtocolConfig_V2}, TransportSocket: raw})}}
}

// keepalive finds connections whose peer is gone. Interval and number of probes are the kernel's (net.ipv4.tcp_keepalive_intvl and
// _probes), since each setting is one more system call for every connection.
func keepalive() *core.TcpKeepalive { return &core.TcpKeepalive{KeepaliveTime: number(keepaliveIdle)} }

// renderAssignment gives the first priority to the endpoints that get new flows. Draining endpoints are healthy, since their flows
// go on, but have a lower priority, so that they get no new flows. leaving are removed endpoints that Envoy keeps for a while. A
// UDP session with affinity stays with an unhealthy endpoint, and ends when its endpoint is removed. So for such frontends unhealthy
// and removed endpoints are left out.
func renderAssignment(f model.Frontend, p model.Pool, leaving map[netip.AddrPort]time.Time) *endpoint.ClusterLoadAssignment {
	out := &endpoint.ClusterLoadAssignment{ClusterName: assignmentName(f, p)}
	serving := servingState(p)
	var first, later []*endpoint.LbEndpoint
	for _, e := range p.Endpoints {
		lb := lbEndpoint(netip.AddrPortFrom(e.Address, f.TargetPort), uint32(e.Weight), core.HealthStatus_HEALTHY)
		lb.Metadata = hashKey(e.ID)
		switch {
		case e.State == serving:
			first = append(first, lb)
		case e.State == model.Unhealthy:
			lb.HealthStatus = core.HealthStatus_UNHEALTHY
			later = append(later, lb)
		default:
			later = append(later, lb)
		}
	}
	if f.AffinityTimeout > 0 && f.Protocol == model.UDP {
		later = slices.DeleteFunc(later, isUnhealthy)
		leaving = nil
	}
	for _, at := range slices.SortedFunc(maps.Keys(leaving), netip.AddrPort.Compare) {
		later = append(later, lbEndpoint(at, 1, core.HealthStatus_UNHEALTHY))
	}
	for priority, endpoints := range [][]*endpoint.LbEndpoint{first, later} {
		if len(endpoints) > 0 {
			out.Endpoints = append(out.Endpoints, &endpoint.LocalityLbEndpoints{LbEndpoints: endpoints, Priority: uint32(min(priority, len(out.Endpoints)))})
		}
	}
	return out
}

func isUnhealthy(e *endpoint.LbEndpoint) bool { return e.HealthStatus == core.HealthStatus_UNHEALTHY }

func lbEndpoint(at netip.AddrPort, weight uint32, health core.HealthStatus) *endpoint.LbEndpoint {
	return &endpoint.LbEndpoint{
		HostIdentifier:      &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: socketAddress(core.SocketAddress_TCP, at.Addr(), at.Port())}},
		LoadBalancingWeight: number(max(weight, 1)),
		HealthStatus:        health,
	}
}

// hashKey makes Envoy's Maglev table depend on the id of an endpoint, and not on its address and port.
func hashKey(id string) *core.Metadata {
	return &core.Metadata{FilterMetadata: map[string]*structpb.Struct{"envoy.lb": {Fields: map[string]*structpb.Value{"hash_key": structpb.NewStringValue(id)}}}}
}

// servingState returns the state of the endpoints that get new flows: active, or if there are none unhealthy, or if there are
// none of these draining.
func servingState(p model.Pool) model.EndpointState {
	for _, state := range []model.EndpointState{model.Active, model.Unhealthy, model.Draining} {
		for _, e := range p.Endpoints {
			if e.State == state {
				return state
			}
		}
	}
	return model.Active
}

func renderListener(name string, f model.Frontend, t timeouts) *listener.Listener {
	protocol := core.SocketAddress_TCP
	if f.Protocol == model.UDP {
		protocol = core.SocketAddress_UDP
	}
	out := &listener.Listener{
		Name:    name,
		Address: socketAddress(protocol, f.VIP, f.Port),
		// The VIP is on no interface: without this option a socket could not bind to it or send from it.
		Transparent:                   wrapperspb.Bool(true),
		PerConnectionBufferLimitBytes: number(bufferLimit),
	}
	if f.Protocol == model.UDP {
		out.SocketOptions = []*core.SocketOption{fragmenting(f.VIP)}
		out.UdpListenerConfig = &listener.UdpListenerConfig{DownstreamSocketConfig: datagrams()}
		out.ListenerFilters = []*listener.ListenerFilter{{Name: "udp_proxy", ConfigType: &listener.ListenerFilter_TypedConfig{TypedConfig: packed(renderUDPProxy(name, f, t))}}}
		return out
	}
	out.TcpKeepalive = keepalive()
	if f.Forwarding == model.Transparent {
		out.ListenerFilters = []*listener.ListenerFilter{{Name: "original_src", ConfigType: &listener.ListenerFilter_TypedConfig{TypedConfig: packed(&originalsrc.OriginalSrc{})}}}
	}
	out.FilterChains = []*listener.FilterChain{{Filters: tcpFilters(name, f, t)}}
	return out
}

// flowKey is the filter state by whose hash a connection without affinity chooses its endpoint.
const flowKey = "kubelb.flow"

func tcpFilters(name string, f model.Frontend, t timeouts) []*listener.Filter {
	proxy := &tcpproxy.TcpProxy{
		StatPrefix:         name,
		ClusterSpecifier:   &tcpproxy.TcpProxy_Cluster{Cluster: name},
		IdleTimeout:        durationpb.New(cmp.Or(f.IdleTimeout, t.idle)),
		MaxConnectAttempts: number(connectAttempts),
	}
	if f.AffinityTimeout > 0 {
		proxy.HashPolicy = []*envoytype.HashPolicy{{PolicySpecifier: &envoytype.HashPolicy_SourceIp_{SourceIp: &envoytype.HashPolicy_SourceIp{}}}}
		return []*listener.Filter{filter(connectionFilterName, connectionAffinityFilter(name)), filter("tcp_proxy", proxy)}
	}
	proxy.HashPolicy = []*envoytype.HashPolicy{{PolicySpecifier: &envoytype.HashPolicy_FilterState_{FilterState: &envoytype.HashPolicy_FilterState{Key: flowKey}}}}
	flow := &setfilterstate.Config{OnNewConnection: []*filterstate.FilterStateValue{{
		Key:        &filterstate.FilterStateValue_ObjectKey{ObjectKey: flowKey},
		FactoryKey: "envoy.hashable_string",
		Value: &filterstate.FilterStateValue_FormatString{FormatString: &core.SubstitutionFormatString{
			Format: &core.SubstitutionFormatString_TextFormatSource{TextFormatSource: &core.DataSource{
				Specifier: &core.DataSource_InlineString{InlineString: "%DOWNSTREAM_REMOTE_ADDRESS%"}}}}},
	}}}
	return []*listener.Filter{filter("set_filter_state", flow), filter("tcp_proxy", proxy)}
}

func filter(name string, config proto.Message) *listener.Filter {
	return &listener.Filter{Name: name, ConfigType: &listener.Filter_TypedConfig{TypedConfig: packed(config)}}
}

func renderUDPProxy(name string, f model.Frontend, t timeouts) *udpproxy.UdpProxyConfig {
	out := &udpproxy.UdpProxyConfig{
		StatPrefix: name,
		RouteSpecifier: &udpproxy.UdpProxyConfig_Matcher{Matcher: &matcher.Matcher{OnNoMatch: &matcher.Matcher_OnMatch{
			OnMatch: &matcher.Matcher_OnMatch_Action{Action: &cncf.TypedExtensionConfig{Name: "route", TypedConfig: packed(&udpproxy.Route{Cluster: name})}}}}},
		IdleTimeout:          durationpb.New(cmp.Or(f.IdleTimeout, t.udpIdle)),
		UpstreamSocketConfig: datagrams(),
		UseOriginalSrcIp:     f.Forwarding == model.Transparent,
	}
	if f.AffinityTimeout > 0 {
		out.HashPolicies = []*udpproxy.UdpProxyConfig_HashPolicy{{PolicySpecifier: &udpproxy.UdpProxyConfig_HashPolicy_SourceIp{SourceIp: true}}}
		out.SessionFilters = []*udpproxy.UdpProxyConfig_SessionFilter{{Name: sessionFilterName, ConfigType: &udpproxy.UdpProxyConfig_SessionFilter_TypedConfig{TypedConfig: packed(sessionAffinityFilter(name))}}}
	}
	return out
}

// fragmenting lets the kernel fragment answers that are larger than the path MTU, which Envoy forbids for listeners (for QUIC).
func fragmenting(vip netip.Addr) *core.SocketOption {
	out := &core.SocketOption{Description: "IPV6_MTU_DISCOVER", Level: unix.IPPROTO_IPV6, Name: unix.IPV6_MTU_DISCOVER, State: core.SocketOption_STATE_BOUND,
		Value: &core.SocketOption_IntValue{IntValue: unix.IPV6_PMTUDISC_WANT}}
	if vip.Is4() {
		out.Description, out.Level, out.Name = "IP_MTU_DISCOVER", unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
		out.Value = &core.SocketOption_IntValue{IntValue: unix.IP_PMTUDISC_WANT}
	}
	return out
}

func datagrams() *core.UdpSocketConfig {
	return &core.UdpSocketConfig{MaxRxDatagramSize: wrapperspb.UInt64(largestDatagram), PreferGro: wrapperspb.Bool(false)}
}

func socketAddress(protocol core.SocketAddress_Protocol, address netip.Addr, port uint16) *core.Address {
	return &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
		Protocol: protocol, Address: address.String(), PortSpecifier: &core.SocketAddress_PortValue{PortValue: uint32(port)}}}}
}

func number(n uint32) *wrapperspb.UInt32Value { return wrapperspb.UInt32(n) }

// packed returns the message as a typed extension. Marshalling is deterministic, so that an unchanged message stays the same.
func packed(m proto.Message) *anypb.Any {
	var out anypb.Any
	if err := anypb.MarshalFrom(&out, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		panic(err) // a message of this package that is not valid UTF-8
	}
	return &out
}
