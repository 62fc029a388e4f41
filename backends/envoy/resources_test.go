package envoy

import (
	"fmt"
	"math"
	"net/netip"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	connectionfilter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/ratelimit/v3"
	setfilterstate "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	sessionfilter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/udp/udp_proxy/session/ext_authz/v3"
	udpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/udp/udp_proxy/v3"
	hashing "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/maglev/v3"
	override "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/override_host/v3"
	proxyprotocol "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"kubelb.k8c.io/core/model"
)

// unpacked returns the content of a typed extension.
func unpacked[M proto.Message](t *testing.T, any *anypb.Any, into M) M {
	t.Helper()
	require.NoError(t, any.UnmarshalTo(into))
	return into
}

// rendered returns the resources of a frontend with a pool of one endpoint.
func rendered(f model.Frontend, change ...func(*model.Frontend)) resources {
	for _, c := range change {
		c(&f)
	}
	return render(f, activePool(f.Pool, 11), defaults().timeouts, nil)
}

func tcp() model.Frontend { return frontend(model.TCP, "203.0.113.1", 80, "a/p") }
func udp() model.Frontend { return frontend(model.UDP, "203.0.113.1", 53, "a/p") }

func withAffinity(f *model.Frontend) { f.AffinityTimeout = time.Minute }

// filters returns the names of the filters for connections.
func (r resources) filters() (names []string) {
	for _, chain := range r.listener.FilterChains {
		for _, f := range chain.Filters {
			names = append(names, f.Name)
		}
	}
	return names
}

// tcpProxy returns the last filter for connections.
func (r resources) tcpProxy(t *testing.T) *tcpproxy.TcpProxy {
	t.Helper()
	all := r.listener.FilterChains[0].Filters
	return unpacked(t, all[len(all)-1].GetTypedConfig(), &tcpproxy.TcpProxy{})
}

func (r resources) udpProxy(t *testing.T) *udpproxy.UdpProxyConfig {
	t.Helper()
	require.Len(t, r.listener.ListenerFilters, 1)
	return unpacked(t, r.listener.ListenerFilters[0].GetTypedConfig(), &udpproxy.UdpProxyConfig{})
}

func TestAListenerHasTheAddressOfItsFrontend(t *testing.T) {
	for _, f := range []model.Frontend{tcp(), udp(), frontend(model.TCP, "2001:db8:f::1", 443, "a/p"), frontend(model.UDP, "2001:db8:f::1", 443, "a/p")} {
		r := rendered(f)
		at := r.listener.Address.GetSocketAddress()
		require.Equal(t, f.VIP.String(), at.Address)
		require.EqualValues(t, f.Port, at.GetPortValue())
		require.Equal(t, f.Protocol == model.UDP, at.Protocol == core.SocketAddress_UDP)
		require.True(t, r.listener.Transparent.GetValue(), "the VIP is on no interface")
		require.Equal(t, f.FrontendKey.String(), r.listener.Name)
		require.Equal(t, r.listener.Name, r.cluster.Name)
	}
}

func TestAConnectionChoosesItsEndpointByItsAddressAndPort(t *testing.T) {
	r := rendered(tcp())
	require.Equal(t, []string{"set_filter_state", "tcp_proxy"}, r.filters())
	set := unpacked(t, r.listener.FilterChains[0].Filters[0].GetTypedConfig(), &setfilterstate.Config{}).OnNewConnection
	require.Len(t, set, 1)
	require.Equal(t, "%DOWNSTREAM_REMOTE_ADDRESS%", set[0].GetFormatString().GetTextFormatSource().GetInlineString(), "with the port")
	hash := r.tcpProxy(t).HashPolicy
	require.Len(t, hash, 1)
	require.Equal(t, set[0].GetObjectKey(), hash[0].GetFilterState().GetKey(), "it hashes what the filter sets")
	require.Equal(t, cluster.Cluster_MAGLEV, r.cluster.LbPolicy)
	require.Equal(t, r.cluster.Name, r.tcpProxy(t).GetCluster())
}

func TestAConnectionWithAffinityAsksThePluginAndElseHashesItsAddress(t *testing.T) {
	r := rendered(tcp(), withAffinity)
	require.Equal(t, []string{connectionFilterName, "tcp_proxy"}, r.filters())
	ask := unpacked(t, r.listener.FilterChains[0].Filters[0].GetTypedConfig(), &connectionfilter.RateLimit{})
	require.False(t, ask.FailureModeDeny, "without the plugin connections are served")
	require.Equal(t, affinityCluster, ask.RateLimitService.GrpcService.GetEnvoyGrpc().ClusterName)
	values := map[string]string{}
	for _, e := range ask.Descriptors[0].Entries {
		values[e.Key] = e.Value
	}
	require.Equal(t, map[string]string{descriptorFrontend: "%DOWNSTREAM_LOCAL_ADDRESS%", descriptorClient: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}, values)
	require.NotNil(t, r.tcpProxy(t).HashPolicy[0].GetSourceIp())
}

func TestAUDPSessionWithAffinityAsksThePluginAndElseHashesItsAddress(t *testing.T) {
	plain := rendered(udp()).udpProxy(t)
	require.Empty(t, plain.SessionFilters)
	require.Empty(t, plain.HashPolicies, "Envoy chooses by address and port")
	proxy := rendered(udp(), withAffinity).udpProxy(t)
	require.Len(t, proxy.SessionFilters, 1)
	require.Equal(t, sessionFilterName, proxy.SessionFilters[0].Name)
	ask := unpacked(t, proxy.SessionFilters[0].GetTypedConfig(), &sessionfilter.FilterConfig{})
	require.True(t, ask.FailureModeAllow, "without the plugin sessions are served")
	require.GreaterOrEqual(t, ask.BufferOptions.MaxBufferedBytes.GetValue(), uint64(largestDatagram), "the largest datagram waits for the answer")
	require.True(t, proxy.HashPolicies[0].GetSourceIp())
}

// The answer's metadata has the name of the filter that asked.
func TestTheLoadBalancerReadsTheAnswerOfTheFilterThatAsked(t *testing.T) {
	for protocol, namespace := range map[model.Protocol]string{model.TCP: connectionFilterName, model.UDP: sessionFilterName} {
		r := rendered(frontend(protocol, "203.0.113.1", 80, "a/p"), withAffinity)
		require.Nil(t, r.cluster.LbConfig, "a policy with a configuration replaces it")
		policies := r.cluster.LoadBalancingPolicy.Policies
		require.Len(t, policies, 1)
		of := unpacked(t, policies[0].TypedExtensionConfig.TypedConfig, &override.OverrideHost{})
		key := of.OverrideHostSources[0].Metadata
		require.Equal(t, namespace, key.Key)
		require.Equal(t, metadataEndpoint, key.Path[0].GetKey())
		fallback := unpacked(t, of.FallbackPolicy.Policies[0].TypedExtensionConfig.TypedConfig, &hashing.Maglev{})
		require.EqualValues(t, maglevSmall, fallback.TableSize.GetValue())
	}
}

func TestAFrontendsIdleTimeoutReplacesThatOfItsProtocol(t *testing.T) {
	own := func(f *model.Frontend) { f.IdleTimeout = 90 * time.Second }
	require.Zero(t, rendered(tcp()).tcpProxy(t).IdleTimeout.AsDuration(), "connections are never idle for too long")
	require.Equal(t, time.Minute, rendered(udp()).udpProxy(t).IdleTimeout.AsDuration())
	require.Equal(t, 90*time.Second, rendered(tcp(), own).tcpProxy(t).IdleTimeout.AsDuration())
	require.Equal(t, 90*time.Second, rendered(udp(), own).udpProxy(t).IdleTimeout.AsDuration())
	r := render(tcp(), activePool("a/p", 11), timeouts{idle: time.Hour}, nil)
	require.Equal(t, time.Hour, r.tcpProxy(t).IdleTimeout.AsDuration(), "as the operator configured")
}

func TestTransparentForwardingKeepsTheClientsAddress(t *testing.T) {
	transparent := func(f *model.Frontend) { f.Forwarding = model.Transparent }
	names := func(l *listener.Listener) (out []string) {
		for _, f := range l.ListenerFilters {
			out = append(out, f.Name)
		}
		return out
	}
	require.Empty(t, names(rendered(tcp()).listener))
	require.Equal(t, []string{"original_src"}, names(rendered(tcp(), transparent).listener))
	require.False(t, rendered(udp()).udpProxy(t).UseOriginalSrcIp)
	require.True(t, rendered(udp(), transparent).udpProxy(t).UseOriginalSrcIp)
}

func TestAPROXYHeaderIsSentOnlyIfTheFrontendWantsIt(t *testing.T) {
	require.Equal(t, "raw_buffer", rendered(tcp()).cluster.TransportSocket.Name)
	r := rendered(tcp(), func(f *model.Frontend) { f.ProxyProtocol = true })
	require.Equal(t, "upstream_proxy_protocol", r.cluster.TransportSocket.Name)
	socket := unpacked(t, r.cluster.TransportSocket.GetTypedConfig(), &proxyprotocol.ProxyProtocolUpstreamTransport{})
	require.Equal(t, core.ProxyProtocolConfig_V2, socket.Config.Version)
	require.Equal(t, "raw_buffer", socket.TransportSocket.Name)
}

// Envoy's default is 1024.
func TestConnectionsAreUnlimitedUnlessTheFrontendHasALimit(t *testing.T) {
	for limit, want := range map[uint32]uint32{0: math.MaxUint32, 7: 7} {
		r := rendered(tcp(), func(f *model.Frontend) { f.MaxConnections = limit })
		thresholds := r.cluster.CircuitBreakers.Thresholds
		require.Len(t, thresholds, 2, "each priority of endpoints has its own")
		for _, of := range thresholds {
			require.Equal(t, want, of.MaxConnections.GetValue())
			require.EqualValues(t, math.MaxUint32, of.MaxPendingRequests.GetValue())
			require.EqualValues(t, math.MaxUint32, of.MaxRequests.GetValue())
		}
	}
}

func TestAnEndpointHasTheTargetPortAndItsWeight(t *testing.T) {
	p := activePool("a/p", 11, 12)
	p.Endpoints[0].Weight, p.Endpoints[1].Weight = 5, 0
	got := map[string]uint32{}
	for _, e := range render(tcp(), p, timeouts{}, nil).assignment.Endpoints[0].LbEndpoints {
		at := e.GetEndpoint().Address.GetSocketAddress()
		got[fmt.Sprintf("%s:%d", at.Address, at.GetPortValue())] = e.LoadBalancingWeight.GetValue()
	}
	require.Equal(t, map[string]uint32{"198.51.100.11:30080": 5, "198.51.100.12:30080": 1}, got, "Envoy refuses a weight of 0")
}

// Envoy requests an assignment by its name, and only once.
func TestAChangedClusterHasAnAssignmentOfAnotherName(t *testing.T) {
	seen := map[string]string{}
	for what, change := range map[string]func(*model.Frontend){
		"plain":            func(*model.Frontend) {},
		"PROXY protocol":   func(f *model.Frontend) { f.ProxyProtocol = true },
		"affinity":         withAffinity,
		"connections":      func(f *model.Frontend) { f.MaxConnections = 5 },
		"more connections": func(f *model.Frontend) { f.MaxConnections = 6 },
		"another port":     func(f *model.Frontend) { f.Port++ },
	} {
		r := rendered(tcp(), change)
		require.Equal(t, r.assignment.ClusterName, r.cluster.EdsClusterConfig.ServiceName, what)
		require.NotContains(t, seen, r.assignment.ClusterName, what)
		seen[r.assignment.ClusterName] = what
	}
	larger := render(tcp(), activePool("a/p", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11), timeouts{}, nil)
	require.NotContains(t, seen, larger.assignment.ClusterName, "with more rows")
}

func TestATableHasManyRowsOnlyIfThereAreManyEndpoints(t *testing.T) {
	endpoints := []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}
	for n, want := range map[int]uint64{0: maglevSmall, 1: maglevSmall, 10: maglevSmall, 11: maglevLarge} {
		c := render(tcp(), activePool("a/p", endpoints[:n]...), timeouts{}, nil).cluster
		require.Equal(t, want, c.GetMaglevLbConfig().TableSize.GetValue(), "%d endpoints", n)
	}
}

// For QUIC Envoy forbids fragments.
func TestAnswersOfUDPMayBeFragmented(t *testing.T) {
	for vip, want := range map[string][3]int64{
		"203.0.113.1":   {unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_WANT},
		"2001:db8:f::1": {unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_WANT},
	} {
		options := rendered(frontend(model.UDP, vip, 53, "a/p")).listener.SocketOptions
		require.Len(t, options, 1)
		require.Equal(t, want, [3]int64{options[0].Level, options[0].Name, options[0].GetIntValue()})
		require.Equal(t, core.SocketOption_STATE_BOUND, options[0].State)
	}
	require.Empty(t, rendered(tcp()).listener.SocketOptions)
}

func TestTheLargestDatagramPassesInBothDirections(t *testing.T) {
	r := rendered(udp())
	for _, of := range []*core.UdpSocketConfig{r.listener.UdpListenerConfig.DownstreamSocketConfig, r.udpProxy(t).UpstreamSocketConfig} {
		require.EqualValues(t, 65535, of.MaxRxDatagramSize.GetValue())
		require.False(t, of.PreferGro.GetValue(), "several datagrams would need a larger buffer")
	}
}

func TestEnvoyNeverDecidesWhichEndpointsAreHealthy(t *testing.T) {
	c := rendered(tcp()).cluster
	require.NotNil(t, c.CommonLbConfig.HealthyPanicThreshold)
	require.Zero(t, c.CommonLbConfig.HealthyPanicThreshold.Value, "it never uses unhealthy ones because there are many of them")
	require.Empty(t, c.HealthChecks)
	require.Nil(t, c.OutlierDetection)
	require.Zero(t, c.EdsClusterConfig.EdsConfig.InitialFetchTimeout.AsDuration(), "it waits for the assignment for ever")
}

func TestConnectionsWhosePeerIsGoneAreFound(t *testing.T) {
	r := rendered(tcp())
	require.EqualValues(t, keepaliveIdle, r.listener.TcpKeepalive.KeepaliveTime.GetValue())
	require.EqualValues(t, keepaliveIdle, r.cluster.UpstreamConnectionOptions.TcpKeepalive.KeepaliveTime.GetValue())
	require.Nil(t, rendered(udp()).listener.TcpKeepalive)
}

func TestUnchangedRecordsAreRenderedToTheSameBytes(t *testing.T) {
	for _, f := range example().Frontends {
		bytes := func() (out []byte) {
			r := rendered(f)
			for _, m := range []proto.Message{r.cluster, r.assignment, r.listener} {
				b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
				require.NoError(t, err)
				out = append(out, b...)
			}
			return out
		}
		require.Equal(t, bytes(), bytes(), f.FrontendKey)
	}
}

func TestRemovedEndpointsAreForgottenWithTheirFrontend(t *testing.T) {
	d, now := newRemovedEndpoints(), time.Now()
	d.update(tcp(), activePool("a/p", 11, 12), now)
	require.NotEmpty(t, d.update(tcp(), activePool("a/p", 11), now))
	d.delete(tcp().FrontendKey)
	require.Empty(t, d.present)
	require.Empty(t, d.leaving)
	require.Empty(t, d.update(tcp(), activePool("a/p", 11), now), "the frontend is a new one")
}

func TestAnEndpointThatLeavesWithAFormerTargetPortIsKept(t *testing.T) {
	d, now := newRemovedEndpoints(), time.Now()
	f := tcp()
	d.update(f, activePool("a/p", 11), now)
	f.TargetPort = 30081
	require.Equal(t, map[netip.AddrPort]time.Time{netip.MustParseAddrPort("198.51.100.11:30080"): now.Add(removalDelay)}, d.update(f, activePool("a/p", 11), now))
}
