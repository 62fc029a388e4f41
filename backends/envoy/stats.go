package envoy

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// Stats reads, from Envoy's admin socket, the connections and UDP sessions of frontends and the connections of endpoints.
func (b *Backend) Stats(ctx context.Context) (dataplane.Stats, error) {
	stats := dataplane.Stats{Frontends: map[model.FrontendKey]dataplane.Counter{}, Endpoints: map[dataplane.EndpointKey]dataplane.Counter{}, Drops: map[string]uint64{}}
	b.mu.Lock()
	defer b.mu.Unlock()
	total, err := b.frontendStats(ctx, "(cx|sess)_total")
	if err != nil {
		return stats, err
	}
	b.state.forgetUncounted(total)
	sessions, err := b.frontendStats(ctx, "sess_active")
	if err != nil {
		return stats, err
	}
	connections, err := b.endpointStats(ctx, stats.Endpoints)
	if err != nil {
		return stats, err
	}
	proxied, err := b.connections()
	if err != nil {
		return stats, err
	}
	stats.Proxied = uint64(proxied)
	for key, f := range b.state.frontends {
		c := dataplane.Counter{Connections: total[statName(key)]}
		if former := b.state.counted[key]; c.Connections >= former { // otherwise another Envoy has begun to count
			c.Connections -= former
		}
		if f.MaxConnections > 0 {
			c.Open = sessions[statName(key)] + connections[key]
		}
		stats.Frontends[key] = c
	}
	return stats, b.sessionStats(stats.Endpoints)
}

// frontendStats returns numbers of downstream connections and sessions by statName.
func (b *Backend) frontendStats(ctx context.Context, which string) (map[string]uint64, error) {
	text, err := b.get(ctx, "/stats?filter=^(tcp|udp)\\.(TCP|UDP).*downstream_"+which+"$")
	if err != nil {
		return nil, err
	}
	defer text.Close()
	return statLines(text)
}

// noteCounted notes what Envoy has counted for former frontends with the keys of new ones, which begin at 0. Envoy goes on to count by the name. It is only read
// if there were such frontends, since that takes long for many frontends.
func (a *apply) noteCounted(ctx context.Context) {
	var again []model.FrontendKey
	for _, f := range a.change.UpsertFrontends {
		if a.state.former[f.FrontendKey] {
			again = append(again, f.FrontendKey)
		}
	}
	if len(again) == 0 || !a.serving {
		return
	}
	total, err := a.frontendStats(ctx, "(cx|sess)_total")
	if err != nil {
		return // Envoy does not run: the next one begins at 0
	}
	for _, key := range again {
		a.state.counted[key] = total[statName(key)]
	}
}

// statName returns the frontend's name in Envoy's statistics.
func statName(k model.FrontendKey) string { return strings.ReplaceAll(k.String(), ":", "_") }

// statLines parses lines such as tcp.TCP 203.0.113.1_80.downstream_cx_total: 7. It returns the numbers by the name in the middle.
func statLines(text io.Reader) (map[string]uint64, error) {
	out := map[string]uint64{}
	lines := bufio.NewScanner(text)
	for lines.Scan() {
		name, number, ok := strings.Cut(lines.Text(), ": ")
		value, err := strconv.ParseUint(number, 10, 64)
		if !ok || err != nil {
			continue
		}
		_, name, _ = strings.Cut(name, ".")
		if i := strings.LastIndex(name, "."); i > 0 {
			// Envoy replaces colons for TCP only.
			out[strings.ReplaceAll(name[:i], ":", "_")] = value
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("Envoy's statistics: %w", err)
	}
	return out, nil
}

// clusters has the parts of Envoy's page about clusters that are read here.
type clusters struct {
	ClusterStatuses []struct {
		Name         string `json:"name"`
		HostStatuses []struct {
			Address struct {
				SocketAddress struct {
					Address string `json:"address"`
				} `json:"socket_address"`
			} `json:"address"`
			Stats []struct {
				Name  string `json:"name"`
				Value string `json:"value"`
			} `json:"stats"`
		} `json:"host_statuses"`
	} `json:"cluster_statuses"`
}

// endpointStats adds the connections of endpoints, and returns the current numbers of connections of frontends.
func (b *Backend) endpointStats(ctx context.Context, into map[dataplane.EndpointKey]dataplane.Counter) (open map[model.FrontendKey]uint64, err error) {
	text, err := b.get(ctx, "/clusters?format=json")
	if err != nil {
		return nil, err
	}
	defer text.Close()
	var all clusters
	if err := json.NewDecoder(text).Decode(&all); err != nil {
		return nil, fmt.Errorf("Envoy's clusters: %w", err)
	}
	open = map[model.FrontendKey]uint64{}
	frontends := map[string]model.Frontend{}
	for key, f := range b.state.frontends {
		frontends[key.String()] = f
	}
	for _, c := range all.ClusterStatuses {
		f, ok := frontends[c.Name]
		if !ok {
			continue
		}
		for _, host := range c.HostStatuses {
			id, known := endpointAt(b.state.pools[f.Pool], host.Address.SocketAddress.Address)
			for _, s := range host.Stats {
				n, err := strconv.ParseUint(s.Value, 10, 64)
				switch {
				case err != nil:
				case s.Name == "cx_active":
					open[f.FrontendKey] += n
				case s.Name == "cx_total" && known:
					key := dataplane.EndpointKey{Pool: f.Pool, Endpoint: id}
					into[key] = dataplane.Counter{Connections: into[key].Connections + n}
				}
			}
		}
	}
	return open, nil
}

// sessionStats adds UDP flows, which Envoy does not count by endpoint. The counts are by NodePort, so each port is added once for each pool that uses it.
func (b *Backend) sessionStats(into map[dataplane.EndpointKey]dataplane.Counter) error {
	counts, err := b.ruleset.counted()
	if err != nil {
		return err
	}
	type target struct {
		pool model.PoolID
		port uint16
	}
	done := map[target]bool{}
	for _, f := range b.state.frontends {
		if f.Protocol != model.UDP || done[target{f.Pool, f.TargetPort}] {
			continue
		}
		done[target{f.Pool, f.TargetPort}] = true
		for _, e := range b.state.pools[f.Pool].Endpoints {
			key := dataplane.EndpointKey{Pool: f.Pool, Endpoint: e.ID}
			into[key] = dataplane.Counter{Connections: into[key].Connections + counts[netip.AddrPortFrom(e.Address, f.TargetPort)]}
		}
	}
	return nil
}

func endpointAt(p model.Pool, text string) (string, bool) {
	address, err := netip.ParseAddr(text)
	if err != nil {
		return "", false
	}
	for _, e := range p.Endpoints {
		if e.Address == address {
			return e.ID, true
		}
	}
	return "", false
}

// get gets a page of Envoy's admin interface.
func (b *Backend) get(ctx context.Context, path string) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://envoy"+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := b.dir.Client().Do(request)
	if err != nil {
		return nil, fmt.Errorf("query Envoy's admin interface: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		response.Body.Close()
		return nil, fmt.Errorf("query Envoy's admin interface for %s: %s", path, response.Status)
	}
	return response.Body, nil
}
