package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/tools/cluster"
)

// prometheus is a Prometheus that scrapes the pods of the ServiceMonitors of both clusters, and evaluates the PrometheusRules.
type prometheus struct {
	*cluster.Process
	dir   string
	start time.Time
}

// scrapeInterval is the interval of scrapes and of evaluations.
const scrapeInterval = time.Second

// startPrometheus makes a configuration from the objects that the charts have installed, with alerts that fire without a delay. It runs until parent ends.
func startPrometheus(t, parent *testing.T) *prometheus {
	p := &prometheus{dir: filepath.Join(lab.Dir, "prometheus"), start: time.Now()}
	require.NoError(t, os.MkdirAll(p.dir, 0o700))
	targets := filepath.Join(p.dir, "targets.json")
	config := map[string]any{
		"global":         map[string]any{"scrape_interval": scrapeInterval.String(), "scrape_timeout": scrapeInterval.String(), "evaluation_interval": scrapeInterval.String()},
		"rule_files":     []string{p.ruleFile(t, lab.Hub, "kubelb"), p.ruleFile(t, lab.Tenant, "kubelb-ccm")},
		"scrape_configs": []any{map[string]any{"job_name": "kubelb", "file_sd_configs": []any{map[string]any{"files": []string{targets}, "refresh_interval": scrapeInterval.String()}}}},
	}
	text, err := json.Marshal(config)
	require.NoError(t, err)
	file := filepath.Join(p.dir, "prometheus.yml")
	require.NoError(t, os.WriteFile(file, text, 0o600))
	p.Process, err = cluster.Start(lab.Hub.Namespace, p.dir, "prometheus", filepath.Join(monitoring, "usr/bin/prometheus"), "--config.file="+file,
		"--storage.tsdb.path="+filepath.Join(p.dir, "data"), "--web.listen-address=127.0.0.1:9090")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var discovery sync.WaitGroup
	discovery.Go(func() {
		p.discover(ctx, targets, monitored{lab.Hub, "kubelb-manager"}, monitored{lab.Hub, "kubelb-gateway"}, monitored{lab.Tenant, "kubelb-ccm"})
	})
	parent.Cleanup(func() {
		stop()
		discovery.Wait()
		p.Stop()
		if parent.Failed() {
			parent.Logf("Prometheus: %s", p.Tail())
		}
	})
	eventually(t, 20*time.Second, func() (string, error) {
		return lab.Hub.Run(t.Context(), "curl", "-sSf", "--max-time", "2", "http://127.0.0.1:9090/-/ready")
	})
	return p
}

// ruleFile writes a PrometheusRule of the API server into a file of rules.
func (p *prometheus) ruleFile(t *testing.T, c *cluster.ControlPlane, name string) string {
	var rule struct {
		Spec struct {
			Groups []struct {
				Name  string           `json:"name"`
				Rules []map[string]any `json:"rules"`
			} `json:"groups"`
		} `json:"spec"`
	}
	require.NoError(t, json.Unmarshal([]byte(kubectl(t, c, "", "-n", "kubelb", "get", "prometheusrule", name, "-o", "json")), &rule))
	require.NotEmpty(t, rule.Spec.Groups)
	for _, g := range rule.Spec.Groups {
		for _, r := range g.Rules {
			delete(r, "for")
		}
	}
	text, err := json.Marshal(rule.Spec)
	require.NoError(t, err)
	file := filepath.Join(p.dir, name+"-rules.yml")
	require.NoError(t, os.WriteFile(file, text, 0o600))
	return file
}

// monitored is a ServiceMonitor in a cluster.
type monitored struct {
	cluster *cluster.ControlPlane
	name    string
}

// targetGroup is an entry of Prometheus' file_sd_config.
type targetGroup struct {
	Targets []string          `json:"targets"`
	Labels  map[string]string `json:"labels"`
}

// targets returns the targets of a ServiceMonitor, as the Prometheus operator would.
func (m monitored) targets(ctx context.Context) ([]targetGroup, error) {
	var monitor struct {
		Spec struct {
			Endpoints []struct {
				Port        string `json:"port"`
				Relabelings []struct {
					SourceLabels []string `json:"sourceLabels"`
					TargetLabel  string   `json:"targetLabel"`
				} `json:"relabelings"`
			} `json:"endpoints"`
			Selector struct {
				MatchLabels map[string]string `json:"matchLabels"`
			} `json:"selector"`
		} `json:"spec"`
	}
	if err := m.get(ctx, &monitor, "servicemonitor", m.name); err != nil {
		return nil, err
	}
	var selector []string
	for label, value := range monitor.Spec.Selector.MatchLabels {
		selector = append(selector, label+"="+value)
	}
	var slices struct {
		Items []struct {
			Metadata  struct{ Labels map[string]string }
			Endpoints []struct {
				Addresses []string
				NodeName  string
				TargetRef struct{ Name string }
			}
			Ports []struct {
				Name string
				Port int
			}
		}
	}
	if err := m.get(ctx, &slices, "endpointslices", "-l", strings.Join(selector, ",")); err != nil {
		return nil, err
	}
	var out []targetGroup
	for _, slice := range slices.Items {
		for _, e := range slice.Endpoints {
			group := targetGroup{Labels: map[string]string{"job": slice.Metadata.Labels["kubernetes.io/service-name"], "namespace": "kubelb", "pod": e.TargetRef.Name}}
			for _, r := range monitor.Spec.Endpoints[0].Relabelings {
				if len(r.SourceLabels) == 1 && r.SourceLabels[0] == "__meta_kubernetes_pod_node_name" {
					group.Labels[r.TargetLabel] = e.NodeName
				}
			}
			for _, port := range slice.Ports {
				if port.Name == monitor.Spec.Endpoints[0].Port {
					group.Targets = append(group.Targets, net.JoinHostPort(e.Addresses[0], strconv.Itoa(port.Port)))
				}
			}
			out = append(out, group)
		}
	}
	return out, nil
}

func (m monitored) get(ctx context.Context, into any, what ...string) error {
	out, err := m.cluster.Kubectl(ctx, "", append([]string{"-n", "kubelb", "-o", "json", "get"}, what...)...)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(out), into)
}

// discover updates the file of targets until ctx ends. If the API server fails, the file stays unchanged.
func (p *prometheus) discover(ctx context.Context, file string, monitors ...monitored) {
	for ctx.Err() == nil {
		var all []targetGroup
		var errs []error
		for _, m := range monitors {
			groups, err := m.targets(ctx)
			all, errs = append(all, groups...), append(errs, err)
		}
		if errors.Join(errs...) == nil {
			if text, err := json.Marshal(all); err == nil && os.WriteFile(file+".new", text, 0o600) == nil {
				os.Rename(file+".new", file)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(scrapeInterval):
		}
	}
}

// sample is one series of a response.
type sample struct {
	Metric map[string]string `json:"metric"`
	Values [][2]any          `json:"values"`
}

// numbers counts the values that are numbers.
func (s sample) numbers() (n int) {
	for _, v := range s.Values {
		if f, err := strconv.ParseFloat(fmt.Sprint(v[1]), 64); err == nil && f == f {
			n++
		}
	}
	return n
}

// since returns the results of a query for the time since from.
func (p *prometheus) since(t *testing.T, from time.Time, query string) []sample {
	t.Helper()
	var answer struct {
		Status, Error string
		Data          struct{ Result []sample }
	}
	out, err := lab.Hub.Run(t.Context(), "curl", "-sS", "--max-time", "10", "http://127.0.0.1:9090/api/v1/query_range", "--data-urlencode", "query="+query,
		"--data", fmt.Sprintf("start=%d&end=%d&step=1", from.Unix(), time.Now().Unix()))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal([]byte(out), &answer), out)
	require.Equal(t, "success", answer.Status, "%s: %s", query, answer.Error)
	return answer.Data.Result
}

// fired returns the alerts that were firing at some time since then.
func (p *prometheus) fired(t *testing.T, from time.Time) map[string]bool {
	out := map[string]bool{}
	for _, s := range p.since(t, from, `ALERTS{alertstate="firing"}`) {
		out[s.Metric["alertname"]] = true
	}
	return out
}

// panel is one query of a dashboard.
type panel struct{ dashboard, title, query string }

// panels returns all queries of the dashboards in a ConfigMap, with values for their variables.
func panels(t *testing.T, c *cluster.ControlPlane, configMap string) (out []panel) {
	var object struct{ Data map[string]string }
	require.NoError(t, json.Unmarshal([]byte(kubectl(t, c, "", "-n", "kubelb", "get", "configmap", configMap, "-o", "json")), &object))
	require.NotEmpty(t, object.Data)
	fill := strings.NewReplacer("$__rate_interval", "5s", "$gateway", ".*", "$tenant", ".*")
	for file, text := range object.Data {
		var dashboard struct {
			Title  string
			Panels []struct {
				Type, Title string
				Targets     []struct{ Expr string }
			}
		}
		require.NoError(t, json.Unmarshal([]byte(text), &dashboard), file)
		for _, p := range dashboard.Panels {
			require.True(t, p.Type == "row" || len(p.Targets) > 0, "%s: %s", file, p.Title)
			for _, target := range p.Targets {
				query := fill.Replace(target.Expr)
				require.NotContains(t, query, "$", "%s: %s", file, p.Title)
				out = append(out, panel{dashboard.Title, p.Title, query})
			}
		}
	}
	return out
}
