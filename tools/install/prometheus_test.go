package install

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/tools/cluster"
)

// prometheus is a real one, which finds the pods of both clusters by their ServiceMonitors and evaluates their rules.
type prometheus struct {
	*cluster.Process
	dir   string
	began time.Time
}

// scrapeEvery is how often it asks, and evaluates.
const scrapeEvery = time.Second

// startPrometheus takes its configuration from what the charts have installed. Alerts do not wait here. It runs until the whole test ends.
func startPrometheus(t, whole *testing.T) *prometheus {
	p := &prometheus{dir: filepath.Join(lab.Dir, "prometheus"), began: time.Now()}
	require.NoError(t, os.MkdirAll(p.dir, 0o700))
	config := map[string]any{
		"global":         map[string]any{"scrape_interval": scrapeEvery.String(), "scrape_timeout": scrapeEvery.String(), "evaluation_interval": scrapeEvery.String()},
		"rule_files":     []string{p.ruleFile(t, lab.Hub, "kubelb"), p.ruleFile(t, lab.Tenant, "kubelb-ccm")},
		"scrape_configs": []any{scrapeOf(t, lab.Hub, "kubelb-manager"), scrapeOf(t, lab.Hub, "kubelb-gateway"), scrapeOf(t, lab.Tenant, "kubelb-ccm")},
	}
	text, err := json.Marshal(config)
	require.NoError(t, err)
	file := filepath.Join(p.dir, "prometheus.yml")
	require.NoError(t, os.WriteFile(file, text, 0o600))
	p.Process, err = cluster.Start(lab.Hub.Namespace, p.dir, "prometheus", filepath.Join(monitoring, "usr/bin/prometheus"), "--config.file="+file,
		"--storage.tsdb.path="+filepath.Join(p.dir, "data"), "--web.listen-address=127.0.0.1:9090")
	require.NoError(t, err)
	whole.Cleanup(func() {
		p.Stop()
		if whole.Failed() {
			whole.Logf("Prometheus: %s", p.Tail())
		}
	})
	return p
}

// ruleFile is the file of a PrometheusRule, as the API server holds it.
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

// scrapeOf is what the Prometheus operator makes of a ServiceMonitor.
func scrapeOf(t *testing.T, c *cluster.ControlPlane, name string) map[string]any {
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
	require.NoError(t, json.Unmarshal([]byte(kubectl(t, c, "", "-n", "kubelb", "get", "servicemonitor", name, "-o", "json")), &monitor))
	require.Len(t, monitor.Spec.Endpoints, 1)
	endpoint := monitor.Spec.Endpoints[0]
	keep := func(label, value string) map[string]any {
		return map[string]any{"source_labels": []string{label}, "regex": value, "action": "keep"}
	}
	become := func(label, from string) map[string]any {
		return map[string]any{"source_labels": []string{from}, "target_label": label}
	}
	relabel := []any{keep("__meta_kubernetes_endpointslice_port_name", endpoint.Port), become("job", "__meta_kubernetes_service_name"),
		become("pod", "__meta_kubernetes_pod_name"), become("namespace", "__meta_kubernetes_namespace")}
	for label, value := range monitor.Spec.Selector.MatchLabels {
		relabel = append(relabel, keep("__meta_kubernetes_service_label_"+strings.NewReplacer("/", "_", ".", "_", "-", "_").Replace(label), value))
	}
	for _, r := range endpoint.Relabelings {
		relabel = append(relabel, become(r.TargetLabel, r.SourceLabels[0]))
	}
	return map[string]any{"job_name": name, "relabel_configs": relabel,
		"kubernetes_sd_configs": []any{map[string]any{"role": "endpointslice", "kubeconfig_file": c.Kubeconfig, "namespaces": map[string]any{"names": []string{"kubelb"}}}}}
}

// sample is one series of an answer.
type sample struct {
	Metric map[string]string `json:"metric"`
	Values [][2]any          `json:"values"`
}

// numbers counts the values that are one.
func (s sample) numbers() (n int) {
	for _, v := range s.Values {
		if f, err := strconv.ParseFloat(fmt.Sprint(v[1]), 64); err == nil && f == f {
			n++
		}
	}
	return n
}

// since answers a query for all the time since it began, or since then.
func (p *prometheus) since(t *testing.T, begin time.Time, query string) []sample {
	t.Helper()
	var answer struct {
		Status, Error string
		Data          struct{ Result []sample }
	}
	out, err := lab.Hub.Run(t.Context(), "curl", "-sS", "--max-time", "10", "http://127.0.0.1:9090/api/v1/query_range", "--data-urlencode", "query="+query,
		"--data", fmt.Sprintf("start=%d&end=%d&step=1", begin.Unix(), time.Now().Unix()))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal([]byte(out), &answer), out)
	require.Equal(t, "success", answer.Status, "%s: %s", query, answer.Error)
	return answer.Data.Result
}

// fired are the alerts that were firing at some time since then.
func (p *prometheus) fired(t *testing.T, begin time.Time) map[string]bool {
	out := map[string]bool{}
	for _, s := range p.since(t, begin, `ALERTS{alertstate="firing"}`) {
		out[s.Metric["alertname"]] = true
	}
	return out
}

// panel is one query of a dashboard.
type panel struct{ dashboard, title, query string }

// panels are all of the dashboards in a ConfigMap, with their variables filled in.
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
