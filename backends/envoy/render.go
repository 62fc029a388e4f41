package envoy

import (
	"context"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"kubelb.k8c.io/core/model"
)

// Render returns what Envoy would serve as a configuration file of Envoy, with all resources that usually come over xDS.
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
	return string(out), err
}
