package e2e

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// dataplaneAddresses lists the addresses that the dataplane has, each with a space after it.
func dataplaneAddresses(t *testing.T) string {
	t.Helper()
	if backendName() == "ebpf" {
		return pinnedMap(t, "addresses", ".*")
	}
	return strings.NewReplacer(",", " ", "\n", " ").Replace(onGateway(t, "nft", "list", "ruleset"))
}

// dataplaneEndpoints lists the addresses of endpoints that get new flows.
func dataplaneEndpoints(t *testing.T) string {
	t.Helper()
	switch backendName() {
	case "envoy":
		out := ""
		for line := range strings.Lines(onGateway(t, "curl", "-sS", "--unix-socket", filepath.Join(lab.Dir, "gateway", "envoy", "envoy", "admin.sock"), "http://envoy/clusters")) {
			if strings.Contains(line, "::health_flags::healthy") {
				out += line
			}
		}
		return out
	case "ebpf":
		const active = 3
		return pinnedMap(t, "endpoints", endpointPattern(fmt.Sprint(active)))
	}
	return onGateway(t, "nft", "list", "map", "ip", "kubelb", "endpoints") + onGateway(t, "nft", "list", "map", "ip6", "kubelb", "endpoints")
}

// dataplaneRecords lists the frontends and endpoint pools that the dataplane has.
func dataplaneRecords(t *testing.T) []string {
	t.Helper()
	table, sets := "kubelb", []string{"vips", "pools", "ports", "registry", "rows", "endpoints"}
	switch backendName() {
	case "envoy":
		table, sets = "kubelb-envoy", []string{"vips", "to_serve", "to_serve_some", "to_refuse_some"}
	case "ebpf":
		return strings.Fields(pinnedMap(t, "addresses", ".*") + pinnedMap(t, "endpoints", endpointPattern("[1-9]")) + pinnedMap(t, "frontends", ".*") + pinnedMap(t, "source_ranges", ".*"))
	}
	var out []string
	for _, family := range []string{"ip", "ip6"} {
		text := onGateway(t, "nft", "list", "table", family, table)
		for _, set := range sets {
			_, content, found := strings.Cut(text, " "+set+" {")
			require.True(t, found, "no set %s %s", family, set)
			if content, _, _ = strings.Cut(content, "\n\t}"); strings.Contains(content, "elements") {
				out = append(out, family+" "+set+" "+content)
			}
		}
	}
	return out
}

// endpointPattern matches an endpoint by its state, the last but one field of struct endpoint in backends/ebpf/bpf/model.h.
func endpointPattern(state string) string { return "," + state + ",[0-9]+,}$" }

// addressWords matches the words of an address in the text of a BPF map.
var addressWords = regexp.MustCompile(`\[(\d+),(\d+),(\d+),(\d+),\]`)

// pinnedMap lists the first address in each element of a map that matches, each with a space after it. It reads only the first 4096 elements, far more than the
// lab has: to read an array of 131,072 takes a second.
func pinnedMap(t *testing.T, table, matching string) string {
	t.Helper()
	var out strings.Builder
	for line := range strings.Lines(onGateway(t, "sh", "-c", fmt.Sprintf("head -n 4096 /sys/fs/bpf/kubelb-*/%s | grep -E '%s' || true", table, matching))) {
		var bytes []byte
		if m := addressWords.FindStringSubmatch(line); m != nil {
			for _, text := range m[1:] {
				var word uint32
				_, err := fmt.Sscan(text, &word)
				require.NoError(t, err)
				bytes = binary.NativeEndian.AppendUint32(bytes, word)
			}
			address, _ := netip.AddrFromSlice(bytes)
			if bytes := address.As16(); [12]byte(bytes[:12]) == [12]byte{} {
				address = netip.AddrFrom4([4]byte(bytes[12:]))
			}
			out.WriteString(address.String() + " ")
		}
	}
	return out.String()
}

// nodesUsed returns the nodes that have a flow from the gateway to a NodePort, in the IP family of the address.
func nodesUsed(t *testing.T, nodePort, ip string) map[string]bool {
	t.Helper()
	used := map[string]bool{}
	for _, n := range lab.Nodes {
		gateway, node := "198.51.100.1", n.Address4
		if strings.Contains(ip, ":") {
			gateway, node = "2001:db8:1::1", n.Address6
		}
		out, err := lab.OnNode(t.Context(), n, "cat", "/proc/net/nf_conntrack")
		require.NoError(t, err)
		for line := range strings.Lines(out) {
			from, to, _ := strings.Cut(line, " sport=")
			if strings.HasSuffix(from, "src="+expanded(gateway)+" dst="+expanded(node)) && strings.Contains(to, " dport="+nodePort+" ") {
				used[node] = true
			}
		}
	}
	return used
}

// expanded is the address as connection tracking writes it.
func expanded(address string) string { return netip.MustParseAddr(address).StringExpanded() }

func onGateway(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := lab.OnGateway(cleanUpContext(t), argv...)
	require.NoError(t, err)
	return out
}
