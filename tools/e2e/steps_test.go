package e2e

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// service returns a dual-stack Service of type LoadBalancer that selects app=<name>. lines are additional lines of its spec.
func service(name string, lines ...string) string {
	return fmt.Sprintf(`
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  selector: {app: %[1]s}
  %[2]s
`, name, strings.Join(lines, "\n  "))
}

func apply(t *testing.T, manifest string) {
	t.Helper()
	_, err := lab.Tenant.Kubectl(t.Context(), manifest, "apply", "-f", "-")
	require.NoError(t, err)
}

func applyToHub(t *testing.T, manifest string) {
	t.Helper()
	_, err := lab.Hub.Kubectl(t.Context(), manifest, "apply", "-f", "-")
	require.NoError(t, err)
}

// cleanUp deletes objects in the tenant cluster at the end of the test, if they still exist.
func cleanUp(t *testing.T, objects ...string) {
	t.Cleanup(func() {
		for _, o := range objects {
			if out, err := lab.Tenant.Kubectl(cleanUpContext(t), "", "delete", o, "--ignore-not-found", "--timeout=60s"); err != nil {
				t.Errorf("delete %s: %v %s", o, err, out)
			}
		}
	})
}

func cleanUpHub(t *testing.T, objects ...string) {
	t.Cleanup(func() {
		for _, o := range objects {
			namespaceAndObject := strings.SplitN(o, "|", 2)
			args := []string{"delete", namespaceAndObject[len(namespaceAndObject)-1], "--ignore-not-found", "--timeout=60s"}
			if len(namespaceAndObject) == 2 {
				args = append([]string{"-n", namespaceAndObject[0]}, args...)
			}
			if out, err := lab.Hub.Kubectl(cleanUpContext(t), "", args...); err != nil {
				t.Errorf("delete %s: %v %s", o, err, out)
			}
		}
	})
}

func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := lab.Tenant.Kubectl(t.Context(), "", args...)
	require.NoError(t, err)
	return out
}

func hubKubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := lab.Hub.Kubectl(t.Context(), "", args...)
	require.NoError(t, err)
	return out
}

func tenantGet(t *testing.T, object, path string) string {
	t.Helper()
	out, err := lab.Tenant.Get(t.Context(), "default", object, path)
	require.NoError(t, err)
	return out
}

func hubGet(t *testing.T, namespace, object, path string) string {
	t.Helper()
	out, err := lab.Hub.Get(t.Context(), namespace, object, path)
	require.NoError(t, err)
	return out
}

// gatewayHasApplied returns an error unless the gateway's dataplane has the current version of the LoadBalancer.
func gatewayHasApplied(t *testing.T, namespace, object string) error {
	t.Helper()
	version, err := strconv.ParseUint(hubGet(t, namespace, object, "{.metadata.resourceVersion}"), 10, 64)
	require.NoError(t, err)
	applied, err := lab.Hub.List(t.Context(), "", "gateways.kubelb.k8c.io", "{.items[*].status.appliedResourceVersion}", metav1.ListOptions{})
	require.NoError(t, err)
	if n, err := strconv.ParseUint(applied, 10, 64); err != nil || n < version {
		return fmt.Errorf("the gateway has applied version %q, not yet %d", applied, version)
	}
	return nil
}

func tenantWait(t *testing.T, object string, args ...string) {
	t.Helper()
	kubectl(t, append([]string{"wait", object, "--timeout=60s"}, args...)...)
}

func events(t *testing.T, service string) string {
	t.Helper()
	out, err := lab.Tenant.List(t.Context(), "default", "events", `{range .items[*]}{.reason}: {.message}{"\n"}{end}`, metav1.ListOptions{FieldSelector: "involvedObject.name=" + service})
	require.NoError(t, err)
	return out
}

// waitForEvent waits until the Service has an event with this text. Events are written asynchronously.
func waitForEvent(t *testing.T, service, want string) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		if got := events(t, service); !strings.Contains(got, want) {
			return fmt.Errorf("no event with %q: events %q, condition %q", want, got, readyCondition(t, service))
		}
		return nil
	})
}

// eventually repeats a check until it returns no error.
func eventually(t *testing.T, limit time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", limit, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// externalIPs waits until the Service shows n addresses.
func externalIPs(t *testing.T, name string, n int) []string {
	t.Helper()
	var ips []string
	eventually(t, 30*time.Second, func() error {
		out, err := lab.Tenant.Get(t.Context(), "default", "service/"+name, "{.status.loadBalancer.ingress[*].ip}")
		if ips = strings.Fields(out); err == nil && len(ips) == n {
			return nil
		}
		return fmt.Errorf("service %s has the addresses %v (%v); %s", name, ips, err, readyCondition(t, name))
	})
	return ips
}

// readyCondition returns status, reason and message of the Service's condition kubelb.k8c.io/Ready.
func readyCondition(t *testing.T, name string) string {
	out, _ := lab.Tenant.Get(t.Context(), "default", "service/"+name, `{.status.conditions[?(@.type=="kubelb.k8c.io/Ready")]['status','reason','message']}`)
	return out
}

// waitForCondition waits until the Service's condition contains this text. It depends on the readiness of pods, of which other
// objects may know earlier.
func waitForCondition(t *testing.T, name, want string) {
	t.Helper()
	eventually(t, 40*time.Second, func() error {
		if got := readyCondition(t, name); !strings.Contains(got, want) {
			return fmt.Errorf("the condition of service %s is %q, want %q", name, got, want)
		}
		return nil
	})
}

// curl requests a path at an address from the client's host.
func curl(t *testing.T, ip string, port int, path string) (string, error) {
	return lab.FromClient(t.Context(), "curl", "-sS", "-g", "--max-time", "3", "http://"+net.JoinHostPort(ip, fmt.Sprint(port))+path)
}

// answersByPod sends n requests and counts the answers of each pod.
func answersByPod(t *testing.T, ip string, port, n int) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for range n {
		name, err := curl(t, ip, port, "/hostname")
		require.NoError(t, err)
		counts[name]++
	}
	return counts
}

// reachesPods waits until n pods have answered at the address, and twenty requests in a row have an answer. On each node kube-proxy
// may take a second to learn of a new Service.
func reachesPods(t *testing.T, ip string, port, n int) {
	t.Helper()
	answered := map[string]int{}
	eventually(t, 15*time.Second, func() error {
		for range 20 {
			name, err := curl(t, ip, port, "/hostname")
			if err != nil {
				return err
			}
			answered[name]++
		}
		if len(answered) != n {
			return fmt.Errorf("%s is answered by %v, not by %d pods", ip, answered, n)
		}
		return nil
	})
}

// refusedAtOnce reports whether curl got a reset or an ICMP error, and not a timeout.
func refusedAtOnce(err error) bool {
	return err != nil && strings.Contains(err.Error(), "exit status 7:")
}

// askUDP requests a pod's name with one datagram from the client's host.
func askUDP(t *testing.T, ip string, port, localPort int) (string, error) {
	return sendUDP(t, ip, port, localPort, "hostname")
}

// sendUDP sends one datagram from the client's host and returns the response.
func sendUDP(t *testing.T, ip string, port, localPort int, question string) (string, error) {
	var answer string
	err := lab.Client.Do(func() error {
		c, err := net.DialUDP("udp", &net.UDPAddr{Port: localPort}, &net.UDPAddr{IP: net.ParseIP(ip), Port: port})
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Second))
		if _, err := c.Write([]byte(question)); err != nil {
			return err
		}
		buffer := make([]byte, 512)
		n, err := c.Read(buffer)
		answer = string(buffer[:n])
		return err
	})
	return answer, err
}
