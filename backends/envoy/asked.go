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

// What Envoy is told for frontends with affinity, so that it asks this plugin for each client's endpoint; affinity.go has the answers.
const (
	// affinityCluster is where it asks.
	affinityCluster = "affinity"
	// mostQuestions may be open at once. A client that would be one more gets its endpoint by hash.
	mostQuestions = 4096
	// askTimeout is how long a client waits for a plugin that hangs. One that does not run keeps nobody waiting.
	askTimeout = time.Second
	// mostWaiting is how many bytes of a UDP session wait for the answer: two of the largest datagrams.
	mostWaiting = 2 * largestDatagram
	// The filters that ask. Envoy puts the answers under these names.
	connectionFilter = "envoy.filters.network.ratelimit"
	sessionFilter    = "envoy.filters.udp.session.ext_authz"
)

func askGRPC() *core.GrpcService {
	return &core.GrpcService{Timeout: durationpb.New(askTimeout),
		TargetSpecifier: &core.GrpcService_EnvoyGrpc_{EnvoyGrpc: &core.GrpcService_EnvoyGrpc{ClusterName: affinityCluster}}}
}

// askAboutConnection asks before anything is read or sent, so that it makes no difference who speaks first.
func askAboutConnection(name string) *connectionfilter.RateLimit {
	return &connectionfilter.RateLimit{StatPrefix: name, Domain: name, Timeout: durationpb.New(askTimeout),
		Descriptors: []*descriptors.RateLimitDescriptor{{Entries: []*descriptors.RateLimitDescriptor_Entry{
			{Key: entryFrontend, Value: "%DOWNSTREAM_LOCAL_ADDRESS%"}, {Key: entryClient, Value: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}}}},
		RateLimitService: &limits.RateLimitServiceConfig{GrpcService: askGRPC(), TransportApiVersion: core.ApiVersion_V3}}
}

// askAboutSession keeps the first datagrams until the answer is there.
func askAboutSession(name string) *sessionfilter.FilterConfig {
	return &sessionfilter.FilterConfig{StatPrefix: name, GrpcService: askGRPC(), FailureModeAllow: true,
		BufferOptions: &sessionfilter.FilterConfig_BufferOptions{MaxBufferedBytes: wrapperspb.UInt64(mostWaiting)}}
}

// rememberedOrHashed is the policy that takes the answer's endpoint, or where there is none the one by hash.
func rememberedOrHashed(p model.Protocol, rows uint64) *cluster.LoadBalancingPolicy {
	answer := connectionFilter
	if p == model.UDP {
		answer = sessionFilter
	}
	where := &metadata.MetadataKey{Key: answer, Path: []*metadata.MetadataKey_PathSegment{{Segment: &metadata.MetadataKey_PathSegment_Key{Key: fieldEndpoint}}}}
	return policy("override_host", &override.OverrideHost{
		OverrideHostSources: []*override.OverrideHost_OverrideHostSource{{Metadata: where}},
		FallbackPolicy:      policy("maglev", &hashing.Maglev{TableSize: wrapperspb.UInt64(rows)})})
}

func policy(name string, config proto.Message) *cluster.LoadBalancingPolicy {
	return &cluster.LoadBalancingPolicy{Policies: []*cluster.LoadBalancingPolicy_Policy{{
		TypedExtensionConfig: &core.TypedExtensionConfig{Name: "envoy.load_balancing_policies." + name, TypedConfig: packed(config)}}}}
}
