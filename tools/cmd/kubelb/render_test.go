package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

const service = `apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: LoadBalancer
  ports:
  - {port: 80, nodePort: 30080}
`

const node = `apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 198.51.100.11}]}
`

const refused = `apiVersion: v1
kind: Service
metadata: {name: bad, namespace: shop}
spec:
  type: LoadBalancer
  loadBalancerSourceRanges:
  - 192.0.2.0/24
  - everybody
  ports:
  - {port: 80, nodePort: 30081}
`

// kubelb runs a command in the test's directory.
func kubelb(t *testing.T, stdin string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, diagnostics bytes.Buffer
	root := rootCommand()
	root.SetArgs(args)
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&out)
	root.SetErr(&diagnostics)
	err = root.ExecuteContext(t.Context())
	return out.String(), diagnostics.String(), err
}

func inFiles(t *testing.T, contents ...string) []string {
	t.Helper()
	t.Chdir(t.TempDir())
	var names []string
	for i, content := range contents {
		name := string(rune('a'+i)) + ".yaml"
		require.NoError(t, os.WriteFile(name, []byte(content), 0o600))
		names = append(names, name)
	}
	return names
}

func TestServicesAndNodesFromSeveralFilesBecomeTheModel(t *testing.T) {
	files := inFiles(t, service, node)
	stdout, stderr, err := kubelb(t, "", "render", "-f", strings.Join(files, ","))
	require.NoError(t, err)
	require.Empty(t, stderr)
	require.Contains(t, stdout, "kind: LoadBalancer\n")
	require.Contains(t, stdout, "frontend TCP 203.0.113.1:80 pool=example/default.v4 target=30080 ")
	require.Contains(t, stdout, "  endpoint 198.51.100.11 ")
}

func TestStandardInputMayHaveDocumentsListsAndOtherKinds(t *testing.T) {
	list := `{"apiVersion": "v1", "kind": "List", "items": [
{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "api", "namespace": "shop"}, "spec": {"type": "LoadBalancer", "ports": [{"port": 443, "nodePort": 30443}]}},
{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}]}`
	stdout, stderr, err := kubelb(t, service+"---\n"+node+"---\n"+list, "render", "-f", "-")
	require.NoError(t, err)
	require.Contains(t, stdout, "203.0.113.1:443")
	require.Contains(t, stdout, "203.0.113.2:80")
	require.Equal(t, "stdin:16: note: skipped: a ConfigMap does not matter for load balancing\n", stderr)
}

func TestAProblemIsShownWithItsLineAndMakesTheExitStatusOne(t *testing.T) {
	files := inFiles(t, service+"---\n"+refused, node)
	stdout, stderr, err := kubelb(t, "", "render", "-f", files[0], "-f", files[1])
	require.ErrorIs(t, err, errNotServed)
	require.Contains(t, stderr, `a.yaml:16: error: Service shop/bad: spec.LoadBalancerSourceRanges[1]: Invalid value: "everybody": must be a valid CIDR value`)
	require.Contains(t, stdout, "frontend TCP 203.0.113.1:80 ", "the valid Service is served")
}

func TestObjectsThatTheAPIServerRefusesAreNotServedWithItsMessage(t *testing.T) {
	ports := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "  - {name: p%d, port: %d, nodePort: %d}\n", i, i+1, 30000+i)
		}
		return b.String()
	}
	const head = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n  type: LoadBalancer\n"
	const lb = "apiVersion: kubelb.k8c.io/v1alpha1\nkind: LoadBalancer\nmetadata: {name: web, namespace: tenant-a}\nspec:\n  type: LoadBalancer\n  ports:\n"
	ranges := strings.Repeat("192.0.2.0/24, ", 128) + "198.51.100.0/24"
	for name, c := range map[string]struct{ manifest, want string }{
		"a LoadBalancer with too many ports": {lb + strings.Repeat("  - {port: 1}\n", 257) + "  endpoints: [{addressesReference: {name: default}}]\n",
			"stdin:6: error: LoadBalancer tenant-a/web: spec.ports: Too many: 257: must have at most 256 items (Invalid)"},
		"a LoadBalancer with too many source ranges": {lb + "  - {port: 80}\n  endpoints: [{addressesReference: {name: default}}]\n  loadBalancerSourceRanges: [" + ranges + "]\n",
			"stdin:9: error: LoadBalancer tenant-a/web: spec.loadBalancerSourceRanges: Too many: 129: must have at most 128 items (Invalid)"},
		"an AddressPool with blanks": {"apiVersion: kubelb.k8c.io/v1alpha1\nkind: AddressPool\nmetadata: {name: public}\nspec: {addresses: [\"192.0.2.160 - 192.0.2.165\"]}\n",
			`stdin:4: error: AddressPool public: spec.addresses`},
		"a Service with two ports without names": {head + "  ports: [{port: 80}, {port: 81}]\n",
			"stdin:6: error: Service shop/web: spec.ports[0].name: Required value (Invalid)"},
		"a Service with port 0": {head + "  ports: [{port: 0}]\n",
			"stdin:6: error: Service shop/web: spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive (Invalid)"},
		"a Service with too many ports for the hub":         {head + "  ports:\n" + ports(257), "stdin:6: error: Service shop/web: "},
		"a Service with too many source ranges for the hub": {head + "  ports: [{port: 80}]\n  loadBalancerSourceRanges: [" + ranges + "]\n", "stdin:7: error: Service shop/web: "},
		"a Node with a duplicate address":                   {service + "---\n" + strings.Replace(node, "[{type: InternalIP, address: 198.51.100.11}]", "[{type: InternalIP, address: 198.51.100.11}, {type: InternalIP, address: 198.51.100.11}]", 1), "error: Node n1: status.addresses[1]: Duplicate value"},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, err := kubelb(t, c.manifest, "render", "-f", "-")
			require.ErrorIs(t, err, errNotServed)
			require.Contains(t, stderr, c.want)
			require.NotContains(t, stdout, "frontend TCP 203.0.113.1:1 ")
		})
	}
}

func TestOutputIsTheSameInJSONAndYAML(t *testing.T) {
	var fromJSON, fromYAML map[string]any
	stdout, _, err := kubelb(t, service+"---\n"+node, "render", "-f", "-", "-o", "json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal([]byte(stdout), &fromJSON))
	stdout, _, err = kubelb(t, service+"---\n"+node, "render", "-f", "-", "-o", "yaml")
	require.NoError(t, err)
	require.NoError(t, yaml.UnmarshalStrict([]byte(stdout), &fromYAML))
	require.Equal(t, fromJSON, fromYAML)
	require.Len(t, fromJSON["loadBalancers"], 1)
	require.Equal(t, map[string]any{"vip": "203.0.113.1", "protocol": "TCP", "port": 80.0, "owner": map[string]any{"namespace": "tenant-example", "name": "uid-of-shop.web"},
		"tenant": "example", "pool": "example/default.v4", "targetPort": 30080.0, "forwarding": "nat"}, fromJSON["model"].(map[string]any)["frontends"].([]any)[0])
}

func TestBackendMayBeThePathOfAPlugin(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "my-backend")
	build := exec.Command("go", "build", "-o", binary, "./cmd/kubelb-backend-nftables")
	build.Dir = "../../../backends/nftables"
	output, err := build.CombinedOutput()
	require.NoError(t, err, string(output))
	stdout, _, err := kubelb(t, service+"---\n"+node, "render", "-f", "-", "--backend", binary)
	require.NoError(t, err)
	require.Contains(t, stdout, "# What the backend "+binary+" would hold:")
	require.Contains(t, stdout, "elements = { 203.0.113.1 . tcp . 80 ")
	stdout, _, err = kubelb(t, service+"---\n"+node, "render", "-f", "-", "--backend", binary, "-o", "json")
	require.NoError(t, err)
	var document map[string]any
	require.NoError(t, json.Unmarshal([]byte(stdout), &document))
	require.Contains(t, document["dataplane"], "table ip kubelb")
}

func TestErrorsOfTheInputNameTheLineAndTheFix(t *testing.T) {
	for name, c := range map[string]struct {
		stdin string
		args  []string
		want  string
	}{
		"an unknown field":     {strings.Replace(service, "nodePort", "nodeport", 1), nil, `stdin:7: Service web: unknown field "spec.ports[0].nodeport"`},
		"a wrong type":         {strings.Replace(service, "port: 80", "port: http", 1), nil, "stdin:7: Service: spec.ports.port is a string where int32 is expected"},
		"no YAML":              {"a: [", nil, "stdin:1: "},
		"no object":            {"- 1\n", nil, "stdin:1: not a Kubernetes object"},
		"nothing to render":    {"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n", nil, "-: there is no Service and no LoadBalancer: give at least one"},
		"a duplicate name":     {service + "---\n" + service, nil, "stdin:9: Service shop/web appears twice: it is also at stdin:1"},
		"a missing file":       {"", []string{"-f", "no.yaml"}, "open no.yaml"},
		"an unknown output":    {service, []string{"-o", "xml"}, `--output is "xml": use text, json or yaml`},
		"an unknown backend":   {service, []string{"--backend", "iptables"}, `backend "iptables": no binary kubelb-backend-iptables`},
		"an unknown node type": {service, []string{"--node-address-type", "Public"}, `--node-address-type is "Public"`},
		"an invalid network":   {service, []string{"--forbidden-cidrs", "10.0.0.0"}, "--forbidden-cidrs: "},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, _, err := kubelb(t, c.stdin, append([]string{"render", "-f", "-"}, c.args...)...)
			require.ErrorContains(t, err, c.want)
			require.Empty(t, stdout)
		})
	}
}

func TestEveryFlagIsExplained(t *testing.T) {
	stdout, _, err := kubelb(t, "", "render", "--help")
	require.NoError(t, err)
	for _, want := range []string{"--filename", "--backend", "--output", "--tenant", "--node-address-type", "--use-loadbalancer-class", "--forbidden-cidrs", "exit status"} {
		require.Contains(t, stdout, want)
	}
}
