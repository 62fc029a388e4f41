package envoy

import (
	"context"
	"fmt"
	"strings"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"kubelb.k8c.io/core/model"
)

// Render returns what Envoy would serve as a configuration file of Envoy, with all resources that usually come over xDS. What other parts of the dataplane
// hold of a frontend, its source ranges and its redirect, follows as comments.
func (b *Backend) Render(_ context.Context, snapshot model.Snapshot) (string, error) {
	snapshot = snapshot.Canonical()
	pools := map[model.PoolID]model.Pool{}
	for _, p := range snapshot.Pools {
		pools[p.ID] = p
	}
	static := &bootstrap.Bootstrap_StaticResources{}
	for _, f := range snapshot.Frontends {
		r := render(f, pools[f.Pool], defaults().timeouts, nil)
		fixed := proto.Clone(r.cluster).(*cluster.Cluster)
		fixed.ClusterDiscoveryType, fixed.EdsClusterConfig = &cluster.Cluster_Type{Type: cluster.Cluster_STATIC}, nil
		fixed.LoadAssignment = r.assignment
		static.Clusters, static.Listeners = append(static.Clusters, fixed), append(static.Listeners, r.listener)
	}
	text, err := protojson.Marshal(&bootstrap.Bootstrap{StaticResources: static})
	if err != nil {
		return "", err
	}
	out, err := yaml.JSONToYAML(text)
	return string(out) + besideEnvoy(snapshot.Frontends), err
}

// besideEnvoy returns a line for each source range and each redirect.
func besideEnvoy(frontends []model.Frontend) string {
	var b strings.Builder
	for _, f := range frontends {
		if f.Restricted && len(f.SourceRanges) == 0 {
			fmt.Fprintf(&b, "# nftables: %s allows no client\n", f.FrontendKey)
		}
		for _, p := range f.SourceRanges {
			fmt.Fprintf(&b, "# nftables: %s allows %s\n", f.FrontendKey, p)
		}
		if !f.Redirect.IsZero() {
			fmt.Fprintf(&b, "# eBPF: packets of unknown connections to %s go to %s, at most %d times\n", f.FrontendKey, f.Redirect.Next, f.Redirect.Limit)
		}
	}
	return b.String()
}
