package envoy

import (
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	limits "github.com/envoyproxy/go-control-plane/envoy/config/ratelimit/v3"
	descriptors "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	connectionfilter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/ratelimit/v3"
	sessionfilter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/udp/udp_proxy/session/ext_authz/v3"
	hashing "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/maglev/v3"
	override "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/override_host/v3"
	metadata "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"kubelb.k8c.io/core/model"
)

// Envoy configuration of frontends with affinity: filters that ask this plugin for the client's endpoint, and the load balancing policy that uses
// the answer. affinity.go answers.
const (
	// affinityCluster is Envoy's cluster for the requests.
	affinityCluster = "affinity"
	// maxAffinityRequests bounds the requests in flight. Beyond it Envoy chooses the endpoint by hash, without a request.
	maxAffinityRequests = 4096
	// affinityRequestTimeout is how long a flow waits for a plugin that hangs. If the plugin does not run, the request fails at once.
	affinityRequestTimeout = time.Second
	// maxBufferedBytes of a UDP session wait for the answer: two datagrams of the largest size.
	maxBufferedBytes = 2 * largestDatagram
	// Names of the filters that ask, which are also the metadata namespaces of their answers.
	connectionFilterName = "envoy.filters.network.ratelimit"
	sessionFilterName    = "envoy.filters.udp.session.ext_authz"
)

func affinityService() *core.GrpcService {
	return &core.GrpcService{Timeout: durationpb.New(affinityRequestTimeout),
		TargetSpecifier: &core.GrpcService_EnvoyGrpc_{EnvoyGrpc: &core.GrpcService_EnvoyGrpc{ClusterName: affinityCluster}}}
}

// connectionAffinityFilter asks when a TCP connection begins, before either side sends a byte.
func connectionAffinityFilter(name string) *connectionfilter.RateLimit {
	return &connectionfilter.RateLimit{StatPrefix: name, Domain: name, Timeout: durationpb.New(affinityRequestTimeout),
		Descriptors: []*descriptors.RateLimitDescriptor{{Entries: []*descriptors.RateLimitDescriptor_Entry{
			{Key: descriptorFrontend, Value: "%DOWNSTREAM_LOCAL_ADDRESS%"}, {Key: descriptorClient, Value: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}}}},
		RateLimitService: &limits.RateLimitServiceConfig{GrpcService: affinityService(), TransportApiVersion: core.ApiVersion_V3}}
}

// sessionAffinityFilter asks when a UDP session begins, and buffers its datagrams until the answer arrives.
func sessionAffinityFilter(name string) *sessionfilter.FilterConfig {
	return &sessionfilter.FilterConfig{StatPrefix: name, GrpcService: affinityService(), FailureModeAllow: true,
		BufferOptions: &sessionfilter.FilterConfig_BufferOptions{MaxBufferedBytes: wrapperspb.UInt64(maxBufferedBytes)}}
}

// affinityPolicy uses the endpoint of the answer, or else Maglev with so many rows.
func affinityPolicy(p model.Protocol, rows uint64) *cluster.LoadBalancingPolicy {
	namespace := connectionFilterName
	if p == model.UDP {
		namespace = sessionFilterName
	}
	key := &metadata.MetadataKey{Key: namespace, Path: []*metadata.MetadataKey_PathSegment{{Segment: &metadata.MetadataKey_PathSegment_Key{Key: metadataEndpoint}}}}
	return loadBalancingPolicy("override_host", &override.OverrideHost{
		OverrideHostSources: []*override.OverrideHost_OverrideHostSource{{Metadata: key}},
		FallbackPolicy:      loadBalancingPolicy("maglev", &hashing.Maglev{TableSize: wrapperspb.UInt64(rows)})})
}

func loadBalancingPolicy(name string, config proto.Message) *cluster.LoadBalancingPolicy {
	return &cluster.LoadBalancingPolicy{Policies: []*cluster.LoadBalancingPolicy_Policy{{
		TypedExtensionConfig: &core.TypedExtensionConfig{Name: "envoy.load_balancing_policies." + name, TypedConfig: packed(config)}}}}
}
