package install

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

var golden = flag.Bool("golden", false, "rewrite the golden files")

// The golden files show in a review what a change of a chart does. Other tests show that the API server accepts the objects.
func TestRenderedChartsEqualTheGoldenFiles(t *testing.T) {
	manager := func(backend string, more ...string) []string {
		return append([]string{"kubelb-manager", "--set", "gateway.interfaces={eth0}", "--set", "crds.install=false", "--set", "dataplane.backend=" + backend}, more...)
	}
	for name, args := range map[string][]string{
		"manager-nftables": manager("nftables"),
		"manager-envoy":    manager("envoy", "--set", "dataplane.options.concurrency=2"),
		"manager-ebpf": manager("ebpf", "--set", "dataplane.options.xdp=native", "--set", "controller.apiServer.url=https://hub.example.com:6443", "--set", "controller.apiServer.ca=PEM",
			"--set", "controller.forbiddenCIDRs={10.96.0.0/12}", "--set", "gateway.labels.site=one", "--set", "metrics.serviceMonitor.enabled=true", "--set", "metrics.prometheusRule.enabled=true", "--set", "imagePullSecrets={registry}"),
		"manager-own-dataplane":    manager("/my-dataplane", "--set", "dataplane.image=registry.example.com/gateway:1", "--set", "dataplane.capabilities={NET_BIND_SERVICE}"),
		"manager-without-gateways": manager("nftables", "--set", "gateway.enabled=false", "--set", "controller.replicas=1", "--set", "networkPolicy.enabled=false"),
		"ccm":                      {"kubelb-ccm", "--set", "kubelb.tenantName=a"},
		"ccm-replicas":             {"kubelb-ccm", "--set", "kubelb.tenantName=a", "--set", "replicaCount=2", "--set", "kubelb.acceptAddresses={203.0.113.0/24}", "--set", "metrics.serviceMonitor.enabled=true", "--set", "metrics.prometheusRule.enabled=true"},
	} {
		t.Run(name, func(t *testing.T) {
			argv := append([]string{"template", "release", filepath.Join(charts, args[0]), "--namespace", "kubelb"}, args[1:]...)
			text, err := exec.CommandContext(t.Context(), helm, argv...).CombinedOutput()
			require.NoError(t, err, string(text))
			file := filepath.Join("testdata", name+".yaml")
			if *golden {
				require.NoError(t, os.WriteFile(file, text, 0o644))
			}
			want, err := os.ReadFile(file)
			require.NoError(t, err)
			require.Equal(t, string(want), string(text), "run make golden and review the difference")
		})
	}
}

// In YAML off is false, and Helm parses numbers in values.yaml as floating-point numbers.
func TestPluginsGetTheOptionsInTheValues(t *testing.T) {
	for option, flag := range map[string]string{
		"flowtable: off":        "--backend-option=flowtable=off",
		`flowtable: "off"`:      "--backend-option=flowtable=off",
		"xdp: off":              "--backend-option=xdp=off",
		"flows: 16777216":       "--backend-option=flows=16777216",
		"concurrency: 2":        "--backend-option=concurrency=2",
		`drain-time: "90s"`:     "--backend-option=drain-time=90s",
		`table: "a: b # not c"`: "--backend-option=table=a: b # not c",
	} {
		require.Equal(t, flag, renderedOption(t, "nftables", option), option)
	}
	require.Equal(t, "--backend-option=debug=true", renderedOption(t, "/my-dataplane", "debug: true"), "a third-party plugin may have boolean options")
}

// renderedOption returns the flag that the chart renders for an option in values.yaml.
func renderedOption(t *testing.T, backend, option string) string {
	t.Helper()
	values := filepath.Join(t.TempDir(), "values.yaml")
	require.NoError(t, os.WriteFile(values, []byte("gateway: {interfaces: [eth0]}\ndataplane:\n  backend: "+backend+"\n  options:\n    "+option+"\n"), 0o600))
	text, err := exec.CommandContext(t.Context(), helm, "template", "release", filepath.Join(charts, "kubelb-manager"), "--show-only", "templates/gateway.yaml", "--values", values).CombinedOutput()
	require.NoError(t, err, string(text))
	line := regexp.MustCompile(`(?m)^ *- (.*--backend-option=.*)$`).FindSubmatch(text)
	require.NotNil(t, line, "%s: %s", option, text)
	var flag string
	require.NoError(t, yaml.Unmarshal(line[1], &flag))
	return flag
}

func TestInvalidValuesAreRefusedByName(t *testing.T) {
	for wrong, message := range map[string]string{
		"dataplane.backend=ipvs":              "value must be one of 'nftables', 'envoy', 'ebpf'",
		"gateway.announce=layer3":             "at '/gateway/announce'",
		"gateway.lease=500ms":                 "at '/gateway/lease'",
		"gatway.enabled=false":                "additional properties 'gatway' not allowed",
		"controller.apiServer.url=http://hub": "at '/controller/apiServer/url'",
		"gateway.interfaces=null":             "at '/gateway",
	} {
		text, err := exec.CommandContext(t.Context(), helm, "template", "release", filepath.Join(charts, "kubelb-manager"), "--set", "gateway.interfaces={eth0}", "--set", wrong).CombinedOutput()
		require.Error(t, err, wrong)
		require.Contains(t, string(text), message, wrong)
	}
	text, err := exec.CommandContext(t.Context(), helm, "template", "release", filepath.Join(charts, "kubelb-ccm")).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(text), "kubelb.tenantName is required")
}
