package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/conformance/netlab"
)

// kubelb runs the kubelb command on the hub and returns its output and exit status.
func kubelb(t *testing.T, args ...string) (string, int) {
	t.Helper()
	return kubelbOn(t, lab.Hub.Namespace, args...)
}

// kubelbOn runs the kubelb command on a host.
func kubelbOn(t *testing.T, host *netlab.Namespace, args ...string) (string, int) {
	t.Helper()
	argv := append([]string{filepath.Join(os.Getenv("KUBELB_BIN"), "kubelb")}, args...)
	out, err := lab.On(t.Context(), host, append(argv, "--kubeconfig="+lab.Hub.Kubeconfig)...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out, exit.ExitCode()
	}
	require.NoError(t, err)
	return out, 0
}

func TestTheCommandLineReportsTheHubAndTheProblemsOfAService(t *testing.T) {
	independentOfDataplane(t)
	apply(t, web("healthy", 1)+service("healthy", "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "service/healthy", "deployment/healthy", "service/faulty")
	externalIPs(t, "healthy", 2)
	waitForOutput := func(lines []string, args ...string) string {
		var page string
		eventually(t, 20*time.Second, func() error {
			out, status := kubelb(t, args...)
			page = out
			for _, line := range lines {
				if status != 0 || !regexp.MustCompile(line).MatchString(out) {
					return fmt.Errorf("kubelb %s exits with %d, and should print %s:\n%s", strings.Join(args, " "), status, line, out)
				}
			}
			return nil
		})
		return page
	}
	t.Log("kubelb status\n" + waitForOutput([]string{`(?m)^gateway +Ready +` + backendName() + ` `, `(?m)^public +Ready +`, `(?m)^a +Ready +`}, "status"))
	require.NotContains(t, waitForOutput([]string{`(?m)^  yes +its status shows its addresses`}, "explain", "default/healthy", "--tenant=a"), "NO ")
	out, status := kubelb(t, "pools", "public")
	require.Zero(t, status, out)
	require.Regexp(t, `(?m)^public +Ready .* gateway +192\.0\.2\.200-192\.0\.2\.249,2001:db8:c::200-2001:db8:c::24f$`, out)
	require.Regexp(t, `(?m)^192\.0\.2\.2\d\d +loadbalancer tenant-a/.* \(Service default/healthy\)$`, out)
	address := net.JoinHostPort(externalIPs(t, "healthy", 2)[0], "80")
	out, status = kubelb(t, "trace", address)
	require.Zero(t, status, out)
	t.Log("kubelb trace\n" + out)
	require.Regexp(t, `(?m)^gateway +gateway, of gateway$`, out)
	require.Regexp(t, `(?m)^frontend +TCP port 80 of .*\(Service default/healthy\), forwarding nat$`, out)
	require.Regexp(t, `(?m)^endpoints +port 3\d{4} of 198.51.100.11, 198.51.100.12, if healthy$`, out)
	out, status = kubelb(t, "trace", address+"/udp")
	require.Equal(t, 1, status)
	require.Contains(t, out, "no LoadBalancer with the address serves UDP port 80")

	setLimits := limitSetter(t)
	for _, fault := range []struct {
		name, annotations, spec, step, why string
		status                             int
	}{
		{"a tenant that has reached its limit", "", "", "it has addresses", "LimitReached", 1},
		{"a missing AddressPool", "kubelb.k8c.io/address-pool: none", "", "it has addresses", "there is no AddressPool none", 1},
		{"an address of another LoadBalancer", `kubelb.k8c.io/requested-addresses: "` + externalIPs(t, "healthy", 2)[0] + `"`, "", "it has addresses", "is held by another LoadBalancer", 1},
		{"no pod on any node", "", "externalTrafficPolicy: Local, ", "its status shows its addresses", "no node has a ready pod of the Service", 0},
	} {
		setLimits(map[bool]string{true: `{"loadBalancers":1}`, false: "null"}[fault.why == "LimitReached"])
		apply(t, "apiVersion: v1\nkind: Service\nmetadata: {name: faulty, annotations: {"+fault.annotations+"}}\n"+
			"spec: {type: LoadBalancer, "+fault.spec+"selector: {app: nobody}, ports: [{port: 80}]}\n")
		eventually(t, 20*time.Second, func() error {
			out, status = kubelb(t, "explain", "default/faulty")
			if status != fault.status || !strings.Contains(out, fault.why) || !strings.Contains(out, fault.step) {
				return errors.New(out)
			}
			if page, statusOfAll := kubelb(t, "status"); statusOfAll != fault.status {
				return fmt.Errorf("kubelb status exits with %d:\n%s", statusOfAll, page)
			}
			return nil
		})
		t.Logf("kubelb explain, with %s\n%s", fault.name, out)
		kubectl(t, "delete", "service", "faulty", "--timeout=30s")
	}
	bundle := filepath.Join(t.TempDir(), "bundle.tar.gz")
	out, status = kubelb(t, "bundle", "--file="+bundle)
	require.Zero(t, status, out)
	packed, err := exec.Command("tar", "-xzOf", bundle).CombinedOutput()
	require.NoError(t, err, string(packed))
	// The output of kubelb status may have warnings of the kernel, such as of missing flowtables.
	for _, part := range []string{"GATEWAY ", "kind: Gateway", "kind: LoadBalancer", "kind: Tenant", "kind: AddressPool", "kind: Lease"} {
		require.Contains(t, string(packed), part)
	}
	for _, secret := range []string{"kind: Secret", "token:", "managedFields", "last-applied-configuration"} {
		require.NotContains(t, string(packed), secret)
	}
	out, status = kubelb(t, "bundle", "--file="+bundle)
	require.NotZero(t, status, "an existing archive is not overwritten: %s", out)

	lease := func(renewed time.Time) {
		applyToHub(t, fmt.Sprintf("apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {namespace: kubelb, name: controller.kubelb.k8c.io}\nspec: {holderIdentity: host, leaseDurationSeconds: 15, renewTime: %q}\n",
			renewed.UTC().Format("2006-01-02T15:04:05.000000Z")))
	}
	cleanUpHub(t, "kubelb|lease/controller.kubelb.k8c.io")
	lease(time.Now().Add(-time.Hour - 10*time.Second)) // the hub's time has whole seconds
	for _, command := range [][]string{{"status"}, {"explain", "default/healthy"}, {"pools"}, {"tenants", "list"}} {
		out, _ = kubelb(t, command...)
		require.Contains(t, out, "no kubelb-manager has run the controllers for 1h0m", "%v", command)
	}
	lease(time.Now())
	out, status = kubelb(t, "explain", "default/healthy")
	require.Zero(t, status, out)

	disable := func(value string) {
		hubKubectl(t, "patch", "tenant", "a", "--type=merge", "-p", `{"spec":{"loadBalancer":{"disable":`+value+`}}}`)
	}
	disable("true")
	out, status = kubelb(t, "explain", "default/healthy")
	disable("false")
	require.Equal(t, 1, status)
	require.Contains(t, out, "spec.loadBalancer.disable of Tenant a is set")
	t.Logf("kubelb explain, with a tenant that is disabled\n%s", out)
	out, status = kubelb(t, "explain", "default/nothing")
	require.Equal(t, 1, status)
	require.Contains(t, out, "the tenant's CCM has not written it")
	externalIPs(t, "healthy", 2)
}
