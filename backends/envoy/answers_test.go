package envoy

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	common "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	ratelimit "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	nft "github.com/google/nftables"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/metadata"
	"sigs.k8s.io/yaml"

	"kubelb.k8c.io/backends/envoy/supervisor"
	"kubelb.k8c.io/core/model"
)

// askedFor returns the endpoint in the answer about a TCP connection, empty if Envoy chooses. The flow is allowed in any case.
func (a affinityTest) askedFor(frontend, client string) string {
	a.t.Helper()
	request := &ratelimit.RateLimitRequest{Descriptors: []*common.RateLimitDescriptor{{Entries: []*common.RateLimitDescriptor_Entry{
		{Key: descriptorFrontend, Value: frontend}, {Key: descriptorClient, Value: client}}}}}
	answer, err := rateLimitService{affinity: a.affinity}.ShouldRateLimit(a.t.Context(), request)
	require.NoError(a.t, err)
	require.Equal(a.t, ratelimit.RateLimitResponse_OK, answer.OverallCode)
	return answer.DynamicMetadata.GetFields()[metadataEndpoint].GetStringValue()
}

func TestAConnectionIsAllowedWhateverEnvoyAsks(t *testing.T) {
	a := newAffinityTest(t)
	a.setEndpoints(sticky(model.TCP, "a/p"), activePool("a/p", 11))
	require.Equal(t, "198.51.100.11:30080", a.askedFor("203.0.113.1:80", "192.0.2.9"))
	require.Equal(t, "198.51.100.11:30080", a.askedFor("[::ffff:203.0.113.1]:80", "::ffff:192.0.2.9"), "a socket of both families")
	for _, of := range [][2]string{{"203.0.113.1:81", "192.0.2.9"}, {"203.0.113.1", "192.0.2.9"}, {"203.0.113.1:80", "-"}, {"", ""}} {
		require.Empty(t, a.askedFor(of[0], of[1]), of)
	}
	answer, err := rateLimitService{affinity: a.affinity}.ShouldRateLimit(t.Context(), &ratelimit.RateLimitRequest{})
	require.NoError(t, err)
	require.Equal(t, ratelimit.RateLimitResponse_OK, answer.OverallCode)
}

func TestAFrontendsIDDependsOnItsTenantAddressAndPortAlone(t *testing.T) {
	f := tcp()
	other := f
	other.Tenant = "b"
	port := f
	port.Port++
	require.NotEqual(t, idOf(f), idOf(other))
	require.NotEqual(t, idOf(f), idOf(port))
	require.Equal(t, idOf(f)>>frontendBits, idOf(port)>>frontendBits, "the tenant's part")
	require.NotEqual(t, idOf(f)>>frontendBits, idOf(other)>>frontendBits)
	f.TargetPort, f.Pool = 1, "a/q"
	require.Equal(t, idOf(tcp()), idOf(f), "clients stay when the pool changes")
}

func TestTheBootstrapConnectsEnvoyWithTheSocketsOfItsDirectory(t *testing.T) {
	dir := supervisor.Dir("/run/kubelb/envoy")
	text, err := bootstrapFor(dir)
	require.NoError(t, err)
	var parsed map[string]any
	require.NoError(t, yaml.Unmarshal([]byte(text), &parsed))
	require.Contains(t, text, `admin:
  address: {pipe: {path: "/run/kubelb/envoy/admin.sock", mode: 384}}`, "for its owner only: 0600")
	require.Equal(t, 2, strings.Count(text, `{pipe: {path: "/run/kubelb/envoy/xds.sock"}}`), "resources and affinity")
	require.Contains(t, text, `{key: `+launchHeader+`, value: "`+supervisor.LaunchMark+`"}`, "the supervisor replaces it")
}

func TestTheLaunchOfAnEnvoyIsInItsRequests(t *testing.T) {
	launch := func(values ...string) int {
		return launchNumber(metadata.NewIncomingContext(t.Context(), metadata.MD{launchHeader: values}))
	}
	require.Equal(t, 7, launch("7"))
	require.Equal(t, 7, launch("seven", "7"))
	require.Zero(t, launch("seven"))
	require.Zero(t, launchNumber(t.Context()))
}

func TestAStreamWithoutACancelFunctionIsNotEnded(t *testing.T) {
	cancelOf(t.Context())()
	ctx, cancel := context.WithCancel(t.Context())
	cancelOf(context.WithValue(ctx, cancelKey{}, cancel))()
	require.Error(t, ctx.Err())
	require.NoError(t, t.Context().Err())
}

func TestPacketsGoToTheChainOfWhatTheFrontendNeeds(t *testing.T) {
	next := model.Redirect{Next: netip.MustParseAddr("192.0.2.2"), Limit: 1}
	for _, c := range []struct {
		served, restricted bool
		chain              string
		redirect           model.Redirect
	}{
		{true, false, chainServe, next},
		{true, true, chainServeSome, next},
		{false, true, chainRefuseSome, model.Redirect{}},
		{false, false, "", model.Redirect{}},
	} {
		f := frontendRules{Frontend: tcp(), served: c.served}
		f.Restricted, f.Redirect = c.restricted, next
		require.Equal(t, c.chain, f.chain())
		require.Equal(t, c.redirect, f.redirect(), "a frontend that is not served redirects nothing")
		require.Equal(t, c.restricted, f.ranges().Name != "")
	}
}

func TestAChangeOfSourceRangesCountsTheUsersOfBothLists(t *testing.T) {
	table := newRuleset("test").tables[0]
	with := func(ranges ...string) frontendRules {
		f := frontendRules{Frontend: tcp()}
		f.Restricted = len(ranges) > 0
		for _, r := range ranges {
			f.SourceRanges = append(f.SourceRanges, netip.MustParsePrefix(r))
		}
		return f
	}
	none, one, two := with(), with("192.0.2.0/24"), with("198.18.0.0/15")
	at := func(f frontendRules) list { return list{table, f.ranges().Name} }
	for _, c := range []struct {
		before, after  frontendRules
		users          map[list]int
		removed, added int
	}{
		{none, one, map[list]int{at(one): 1}, 0, 1},
		{one, one, map[list]int{}, 0, 0},
		{one, two, map[list]int{at(one): -1, at(two): 1}, 1, 1},
		{two, none, map[list]int{at(two): -1}, 1, 0},
	} {
		l, e := newListChanges(), setChanges{map[*nft.Set][]nft.SetElement{}, map[*nft.Set][]nft.SetElement{}}
		l.replace(table, e, tcp().FrontendKey, c.before, c.after)
		require.Equal(t, c.users, l.users)
		require.Len(t, e.remove[table.lists], c.removed)
		require.Len(t, e.add[table.lists], c.added)
	}
}

func TestAFrontendThatNobodyListensForIsNamed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	key := func(at string) model.FrontendKey {
		a := netip.MustParseAddrPort(at)
		return model.FrontendKey{VIP: a.Addr(), Protocol: model.TCP, Port: a.Port()}
	}
	there := key(l.Addr().String())
	require.NoError(t, awaitSockets(t.Context(), []model.FrontendKey{there}))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	require.EqualError(t, awaitSockets(ctx, []model.FrontendKey{there, key("203.0.113.250:1"), key("203.0.113.250:2")}),
		"Envoy does not listen for 2 frontends, the first is TCP 203.0.113.250:1")
	require.NoError(t, awaitSockets(ctx, nil))
}
