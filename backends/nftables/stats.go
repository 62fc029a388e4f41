package nftables

import (
	"context"
	"fmt"
	"strings"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/hostflows"
	"kubelb.k8c.io/backends/nftables/elements"
	"kubelb.k8c.io/core/model"
)

// Stats reads the counters of new connections of frontends and endpoints, and of dropped and refused packets.
func (b *Backend) Stats(context.Context) (dataplane.Stats, error) {
	stats := dataplane.Stats{Frontends: map[model.FrontendKey]dataplane.Counter{}, Endpoints: map[dataplane.EndpointKey]dataplane.Counter{}, Drops: map[string]uint64{}}
	c, err := elements.Connect()
	if err != nil {
		return stats, err
	}
	for _, t := range b.tables {
		if err := t.addStats(c, &stats); err != nil {
			return stats, fmt.Errorf("read counters: %w", err)
		}
	}
	return stats, nil
}

func (t *table) addStats(c *nft.Conn, stats *dataplane.Stats) error {
	ports, err := c.GetSetElements(t.sets[mapPorts])
	if err != nil {
		return err
	}
	for _, e := range ports {
		if key, err := decodeKey(e.Key); err == nil && e.Counter != nil {
			stats.Frontends[key] = dataplane.Counter{Connections: e.Counter.Packets}
		}
	}
	if err := t.addOpen(stats.Frontends); err != nil {
		return err
	}
	endpoints, err := c.GetSetElements(t.sets[mapEndpoints])
	if err != nil {
		return err
	}
	for _, e := range endpoints {
		number, id, _ := strings.Cut(e.Comment, " ")
		var pool uint32
		if _, err := fmt.Sscan(number, &pool); err == nil && e.Counter != nil {
			stats.Endpoints[dataplane.EndpointKey{Pool: t.state.poolOf[pool], Endpoint: id}] = dataplane.Counter{Connections: e.Counter.Packets}
		}
	}
	objects, err := c.GetNamedObjects(t.nft)
	if err != nil {
		return err
	}
	for _, o := range objects {
		named, ok := o.(*nft.NamedObj)
		if !ok {
			continue
		}
		if counter, ok := named.Obj.(*expr.Counter); ok {
			stats.Drops[strings.ReplaceAll(named.Name, "_", "-")] += counter.Packets
		}
	}
	return nil
}

// addOpen adds the numbers of connections of frontends with a limit, as of the last scan.
func (t *table) addOpen(to map[model.FrontendKey]dataplane.Counter) error {
	limited := map[model.FrontendKey]uint64{}
	for key, f := range t.state.frontends {
		if f.limits[connectionLimit] > 0 {
			limited[key] = 0
		}
	}
	if len(limited) > 0 && t.open.isDue() {
		began := time.Now()
		if err := hostflows.EachTracked(t.layout.v4, counting(limited).count); err != nil {
			return err
		}
		t.open = openCount{limited, scan{time.Now(), time.Since(began)}}
	}
	for key := range limited {
		c := to[key]
		c.Open = t.open.counts[key]
		to[key] = c
	}
	return nil
}
