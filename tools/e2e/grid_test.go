package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/conformance/netlab"
	"kubelb.k8c.io/tools/cluster"
)

// gridSpec returns the line of a Service's spec for the second word of a column's heading.
func gridSpec(word string) string {
	switch word {
	case "Cluster", "Local":
		return "externalTrafficPolicy: " + word
	case "clients":
		return `loadBalancerSourceRanges: [192.0.2.0/24, 203.0.113.0/24, "2001:db8:c::/64", "2001:db8:b::/64"]`
	case "nodes":
		return `loadBalancerSourceRanges: [198.51.100.11/32, 198.51.100.12/32, "2001:db8:1::11/128", "2001:db8:1::12/128"]`
	case "pods":
		return `loadBalancerSourceRanges: [10.77.0.0/16, "2001:db8:77::/48"]`
	}
	return ""
}

// noAnswer is the text of a cell if the caller gets no answer.
const noAnswer = "no answer"

// gridCell is a cell of a table in the document: the expected result for one caller and one Service.
type gridCell struct{ caller, column, want string }

// connectFunc connects to an address and port, and returns the client's address as the pod sees it.
type connectFunc func(ctx context.Context, address string) (string, error)

// gridCaller is a host or a pod that connects.
type gridCaller struct {
	connect connectFunc
	own     []string
}

// The expected results are in the document. Cells whose caller is served are tested first. After that all gateways and kube-proxies know the Services, so that a
// missing answer in other cells is not due to a delay.
func TestReachabilityOfServicesIsAsDocumented(t *testing.T) {
	cells := documentedGrid(t)
	if backendName() == "envoy" {
		cells = slices.DeleteFunc(cells, func(c gridCell) bool { return strings.HasPrefix(c.column, "direct") })
	}
	ips := gridServices(t, cells)
	callers := gridCallers(t)
	documented := map[string]bool{}
	for _, c := range cells {
		documented[c.caller] = true
	}
	require.ElementsMatch(t, slices.Collect(maps.Keys(callers)), slices.Collect(maps.Keys(documented)))
	served := slices.DeleteFunc(slices.Clone(cells), func(c gridCell) bool { return c.want == noAnswer })
	unserved := slices.DeleteFunc(cells, func(c gridCell) bool { return c.want != noAnswer })
	for _, some := range [][]gridCell{served, unserved} {
		var each sync.WaitGroup
		for _, c := range some {
			for _, ip := range ips[c.column] {
				each.Go(func() {
					if got := measure(t.Context(), callers[c.caller], ip, c.want); got != c.want {
						t.Errorf("%s, to %s (%s): measured %q, documented %q", c.caller, c.column, ip, got, c.want)
					}
				})
			}
		}
		each.Wait()
	}
}

// documentedGrid parses the tables of the document.
func documentedGrid(t *testing.T) (cells []gridCell) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository, "docs/services.md"))
	require.NoError(t, err)
	for _, table := range regexp.MustCompile(`(?s)<!-- grid -->\n(.*?)\n<!-- end of grid -->`).FindAllStringSubmatch(string(text), -1) {
		var rows [][]string
		for line := range strings.Lines(table[1]) {
			rows = append(rows, strings.Split(strings.Trim(line, "| \n"), " | "))
		}
		for _, row := range rows[2:] {
			require.Len(t, row, len(rows[0]), "%s", row)
			for i, want := range row[1:] {
				cells = append(cells, gridCell{caller: row[0], column: rows[0][i+1], want: want})
			}
		}
	}
	require.NotEmpty(t, cells)
	return cells
}

// gridServices creates a Service for each column, all with the same pod on node1, and returns their addresses.
func gridServices(t *testing.T, cells []gridCell) map[string][]string {
	t.Helper()
	manifest := strings.Replace(web("grid", 1), "terminationGracePeriodSeconds: 0", "terminationGracePeriodSeconds: 0\n      nodeName: node1", 1)
	objects, names := []string{"deployment/grid"}, map[string]string{}
	for _, c := range cells {
		if names[c.column] != "" {
			continue
		}
		mode, spec, _ := strings.Cut(c.column, ", ")
		require.NotEmpty(t, gridSpec(spec), c.column)
		name := strings.ToLower("grid-" + mode + "-" + spec)
		manifest += strings.Replace(service(name, "selector: {app: grid}", gridSpec(spec), "ports: [{port: 80, targetPort: 8080}]"),
			"{name: "+name+"}", "{name: "+name+", annotations: {kubelb.k8c.io/forwarding: "+mode+"}}", 1)
		names[c.column], objects = name, append(objects, "service/"+name)
	}
	apply(t, manifest)
	cleanUp(t, objects...)
	tenantWait(t, "deployment/grid", "--for=condition=Available")
	ips := map[string][]string{}
	for column, name := range names {
		ips[column] = externalIPs(t, name, 2)
	}
	return ips
}

// gridCallers returns the callers by their names in the document.
func gridCallers(t *testing.T) map[string]gridCaller {
	t.Helper()
	router, err := lab.AddRouter(cluster.RouterOptions{}, lab.Gateway)
	require.NoError(t, err)
	// Another host on the segment stands for another tenant's node: only its address matters.
	neighbour, err := lab.AddHost("neighbour", "198.51.100.61/24", "2001:db8:1::61/64")
	require.NoError(t, err)
	require.NoError(t, errors.Join(neighbour.Route("0.0.0.0/0", "198.51.100.1"), neighbour.Route("::/0", "2001:db8:1::1")))
	callers := map[string]gridCaller{
		"a client on the clients' segment":                                     {connectFromHost(lab.Client), []string{cluster.Client4, cluster.Client6}},
		"a client behind a router":                                             {connectFromHost(router.Client), []string{"203.0.113.100", "2001:db8:b::100"}},
		"a node of the tenant, with a ready pod":                               {connectFromHost(lab.Nodes[0].Namespace), nil},
		"a node of the tenant, without a ready pod":                            {connectFromHost(lab.Nodes[1].Namespace), nil},
		"another host on the nodes' segment, such as a node of another tenant": {connectFromHost(neighbour), []string{"198.51.100.61", "2001:db8:1::61"}},
		"the gateway's own host":                                               {connectFromHost(lab.Gateway), nil},
	}
	masqueradePods(t)
	apply(t, web("callers", 2))
	cleanUp(t, "deployment/callers")
	tenantWait(t, "deployment/callers", "--for=condition=Available")
	for i, name := range []string{"a pod of the tenant, on a node with a ready pod", "a pod of the tenant, on another node"} {
		node := lab.Nodes[i]
		pod := strings.Fields(kubectl(t, "get", "pods", "-l", "app=callers", "--field-selector=spec.nodeName="+node.Name, "-o", "jsonpath={.items[*].status.podIPs[*].ip}"))
		require.Len(t, pod, 2)
		callers[name] = gridCaller{connectFromPod(node, pod[0]), pod}
	}
	return callers
}

// masqueradePods masquerades packets from pods to hosts outside of the cluster, as most network plugins do.
func masqueradePods(t *testing.T) {
	t.Helper()
	for _, node := range lab.Nodes {
		_, err := lab.OnNode(t.Context(), node, "nft", "add table inet plugin; add chain inet plugin out { type nat hook postrouting priority 100; }; "+
			"add rule inet plugin out ip saddr 10.77.0.0/16 ip daddr != 10.77.0.0/16 masquerade; add rule inet plugin out ip6 saddr 2001:db8:77::/48 ip6 daddr != 2001:db8:77::/48 masquerade")
		require.NoError(t, err)
		t.Cleanup(func() {
			_, err := lab.OnNode(cleanUpContext(t), node, "nft", "delete table inet plugin")
			require.NoError(t, err)
		})
	}
}

// measure connects until it gets the expected outcome several times in a row, at most for twenty seconds, and returns the last outcome. Four times are needed
// since gateways select among nodes, and two if no answer is expected.
func measure(ctx context.Context, c gridCaller, ip, want string) (got string) {
	inARow := 4
	if want == noAnswer {
		inARow = 2
	}
	for n, end := 0, time.Now().Add(20*time.Second); n < inARow; n++ {
		if got = c.outcome(c.connect(ctx, net.JoinHostPort(ip, "80"))); got != want {
			n = -1
			if time.Now().After(end) {
				return got
			}
		}
	}
	return got
}

// outcome is the result of a connection, in the words of the document.
func (c gridCaller) outcome(client string, err error) string {
	if err != nil {
		return err.Error()
	}
	for i, node := range lab.Nodes {
		// A node has .1 and ::1 in the network of its pods.
		if slices.Contains([]string{node.Address4, node.Address6, fmt.Sprintf("10.77.%d.1", i+1), fmt.Sprintf("2001:db8:77:%d::1", i+1)}, client) {
			return "a node"
		}
	}
	switch {
	case slices.Contains([]string{"198.51.100.1", "2001:db8:1::1"}, client):
		return "the gateway"
	case slices.Contains(c.own, client):
		return "itself"
	}
	return client
}

// connectFromHost returns a function that connects from a host.
func connectFromHost(host *netlab.Namespace) connectFunc {
	c := clientOn(host, 2*time.Second)
	return func(ctx context.Context, address string) (string, error) {
		client, err := get(ctx, c, "http://"+address+"/clientip")
		var timeout net.Error
		switch {
		case errors.Is(err, syscall.EHOSTUNREACH), errors.As(err, &timeout) && timeout.Timeout():
			return "", errors.New(noAnswer)
		case err != nil:
			return "", err
		}
		return hostOf(client)
	}
}

// connectFromPod returns a function by which a pod connects. It waits for five seconds (agnhost's netexec).
func connectFromPod(node *cluster.Node, pod string) connectFunc {
	c := clientOn(node.Namespace, time.Minute)
	return func(ctx context.Context, address string) (string, error) {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return "", err
		}
		question := url.Values{"protocol": {"http"}, "host": {host}, "port": {port}, "request": {"clientip"}}
		text, err := get(ctx, c, "http://"+net.JoinHostPort(pod, "8080")+"/dial?"+question.Encode())
		if err != nil {
			return "", fmt.Errorf("the calling pod: %w", err)
		}
		var answer struct{ Responses, Errors []string }
		if err := json.Unmarshal([]byte(text), &answer); err != nil {
			return "", fmt.Errorf("the calling pod: %w", err)
		}
		if failed := strings.Join(answer.Errors, ", "); strings.Contains(failed, "Client.Timeout") {
			return "", errors.New(noAnswer)
		} else if failed != "" {
			return "", errors.New(failed)
		}
		return hostOf(strings.Join(answer.Responses, ""))
	}
}

// clientOn returns a client that opens a new connection from the host for each request.
func clientOn(host *netlab.Namespace, limit time.Duration) *http.Client {
	return &http.Client{Timeout: limit, Transport: &http.Transport{DialContext: host.DialContext, DisableKeepAlives: true}}
}

func get(ctx context.Context, c *http.Client, from string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return "", err
	}
	response, err := c.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

func hostOf(address string) (string, error) {
	host, _, err := net.SplitHostPort(address)
	return host, err
}
