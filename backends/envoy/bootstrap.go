package envoy

import (
	"strings"
	"text/template"

	"kubelb.k8c.io/backends/envoy/supervisor"
)

// launchHeader is the metadata with which an Envoy sends the number of its launch. During a hot restart two Envoys request
// resources.
const launchHeader = "kubelb-launch"

// bootstrapText is Envoy's configuration. All resources come over one stream from the plugin's socket. Only statistics that the
// plugin reads are collected. Affinity requests go to the same socket by their own cluster, so that they do not delay resources.
var bootstrapText = template.Must(template.New("bootstrap").Parse(`node: {id: kubelb, cluster: kubelb}
admin:
  address: {pipe: {path: "{{.Admin}}", mode: 384}}
dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    grpc_services:
    - envoy_grpc:
        cluster_name: xds
        retry_policy: {retry_back_off: {base_interval: 0.05s, max_interval: 0.5s}}
      initial_metadata: [{key: {{.Header}}, value: "{{.Launch}}"}]
  cds_config: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s}
  lds_config: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s}
static_resources:
  clusters:
  - name: xds
    connect_timeout: 1s
    load_assignment: {cluster_name: xds, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: "{{.XDS}}"}}}}]}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
  - name: {{.Affinity}}
    connect_timeout: 1s
    load_assignment: {cluster_name: {{.Affinity}}, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: "{{.XDS}}"}}}}]}]}
    circuit_breakers: {thresholds: [{max_requests: {{.MaxAffinityRequests}}, max_pending_requests: {{.MaxAffinityRequests}}}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
stats_config:
  stats_matcher: {inclusion_list: {patterns: [{prefix: "listener_manager."}, {prefix: "cluster_manager."}, {prefix: "control_plane."}, {safe_regex: {regex: "(tcp|udp)\\.(TCP|UDP) .*\\.downstream_(cx_total|sess_total|sess_active)"}}]}}
`))

// bootstrapFor returns the configuration for an Envoy with this directory.
func bootstrapFor(d supervisor.Dir) (string, error) {
	var text strings.Builder
	err := bootstrapText.Execute(&text, struct {
		Admin, XDS, Header, Launch, Affinity string
		MaxAffinityRequests                  int
	}{d.Admin(), d.XDS(), launchHeader, supervisor.LaunchMark, affinityCluster, maxAffinityRequests})
	return text.String(), err
}
