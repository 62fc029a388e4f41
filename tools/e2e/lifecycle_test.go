package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// freezeHub suspends the hub's API server until the returned function is called, or the test ends.
func freezeHub(t *testing.T) (thaw func()) {
	t.Helper()
	require.NoError(t, lab.Hub.FreezeAPI(true))
	frozen := true
	thaw = func() {
		if frozen {
			frozen = false
			require.NoError(t, lab.Hub.FreezeAPI(false))
		}
	}
	t.Cleanup(thaw)
	return thaw
}

// servicesIn returns what the JSONPath template finds in the list of the namespace's Services.
func servicesIn(t *testing.T, namespace, path string) string {
	t.Helper()
	out, err := lab.Tenant.List(t.Context(), namespace, "services", path, metav1.ListOptions{})
	require.NoError(t, err)
	return out
}

// waitUntilDeletedOnHub waits until the LoadBalancer does not exist any more.
func waitUntilDeletedOnHub(t *testing.T, uid string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		_, err := lab.Hub.Get(t.Context(), "tenant-a", "loadbalancer/"+uid, "")
		if err == nil {
			return fmt.Errorf("%s is still on the hub", uid)
		}
		return client.IgnoreNotFound(err)
	})
}

func TestAServiceGetsItsFinalizerBeforeItsLoadBalancerIsCreated(t *testing.T) {
	independentOfDataplane(t)
	thaw := freezeHub(t)
	apply(t, service("early", "ports: [{port: 80}]"))
	cleanUp(t, "service/early")
	eventually(t, 10*time.Second, func() error {
		if got := tenantGet(t, "service/early", "{.metadata.finalizers}"); !strings.Contains(got, "service.kubernetes.io/load-balancer-cleanup") {
			return fmt.Errorf("finalizers: %s", got)
		}
		return nil
	})
	require.Empty(t, tenantGet(t, "service/early", "{.status.loadBalancer.ingress}"))
	thaw()
	externalIPs(t, "early", 2)
}

func TestAServiceThatIsDeletedDuringAnOutageGoesAfterIt(t *testing.T) {
	independentOfDataplane(t)
	gone := func() {
		t.Helper()
		eventually(t, 60*time.Second, func() error {
			_, err := lab.Tenant.Get(t.Context(), "default", "service/away", "")
			if err == nil {
				return fmt.Errorf("it is still there; %s", events(t, "away"))
			}
			return client.IgnoreNotFound(err)
		})
	}
	for _, part := range []struct {
		name string
		stop func() (resume func())
	}{
		{"the hub", func() func() { return freezeHub(t) }},
		{"the CCM", func() func() {
			lab.CCM.Kill()
			return func() { require.NoError(t, lab.StartCCM(cleanUpContext(t))) }
		}},
	} {
		t.Run(part.name, func(t *testing.T) {
			apply(t, service("away", "ports: [{port: 80}]"))
			cleanUp(t, "service/away")
			externalIPs(t, "away", 2)
			uid := tenantGet(t, "service/away", "{.metadata.uid}")
			resume := part.stop()
			defer func() { resume() }()
			kubectl(t, "delete", "service", "away", "--wait=false")
			time.Sleep(2 * time.Second)
			require.NotEmpty(t, tenantGet(t, "service/away", "{.metadata.deletionTimestamp}"), "the finalizer holds the Service while its LoadBalancer exists")
			resume()
			resume = func() {}
			gone()
			waitUntilDeletedOnHub(t, uid)
		})
	}
}

func TestANamespaceWithServicesCanBeDeleted(t *testing.T) {
	independentOfDataplane(t)
	kubectl(t, "create", "namespace", "doomed")
	cleanUp(t, "namespace/doomed")
	apply(t, strings.ReplaceAll(service("one", "ports: [{port: 80}]")+service("two", "ports: [{port: 80}]"), "metadata: {", "metadata: {namespace: doomed, "))
	eventually(t, 20*time.Second, func() error {
		if got := servicesIn(t, "doomed", "{.items[*].status.loadBalancer.ingress[*].ip}"); len(strings.Fields(got)) != 4 {
			return fmt.Errorf("addresses: %s", got)
		}
		return nil
	})
	uids := strings.Fields(servicesIn(t, "doomed", "{.items[*].metadata.uid}"))
	kubectl(t, "delete", "namespace", "doomed", "--timeout=60s")
	for _, uid := range uids {
		waitUntilDeletedOnHub(t, uid)
	}
}

func TestARecreatedServiceGetsANewLoadBalancer(t *testing.T) {
	independentOfDataplane(t)
	manifest := service("anew", "ports: [{port: 80, targetPort: 8080}]")
	apply(t, web("anew", 1)+manifest)
	cleanUp(t, "service/anew", "deployment/anew")
	tenantWait(t, "deployment/anew", "--for=condition=Available")
	externalIPs(t, "anew", 2)
	former := tenantGet(t, "service/anew", "{.metadata.uid}")
	_, err := lab.Tenant.Kubectl(t.Context(), manifest, "replace", "--force", "--timeout=60s", "-f", "-")
	require.NoError(t, err)
	require.NotEqual(t, former, tenantGet(t, "service/anew", "{.metadata.uid}"))
	for _, ip := range externalIPs(t, "anew", 2) {
		reachesPods(t, ip, 80, 1)
	}
	waitUntilDeletedOnHub(t, former)
}

func TestAForgedStatusIsReplaced(t *testing.T) {
	independentOfDataplane(t)
	apply(t, service("forged", "ports: [{port: 80}]"))
	cleanUp(t, "service/forged")
	ips := externalIPs(t, "forged", 2)
	kubectl(t, "patch", "service", "forged", "--subresource=status", "--type=merge", "-p", `{"status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.99"}]}}}`)
	eventually(t, 10*time.Second, func() error {
		if got := tenantGet(t, "service/forged", "{.status.loadBalancer.ingress[*].ip}"); got != strings.Join(ips, " ") {
			return fmt.Errorf("the Service has the addresses %s", got)
		}
		return nil
	})
	require.NotContains(t, dataplaneAddresses(t), "203.0.113.99")
}

func TestTheCCMPublishesOnlyAcceptedAddresses(t *testing.T) {
	independentOfDataplane(t)
	lab.CCM.Stop()
	require.NoError(t, lab.StartCCM(t.Context(), "--accept-addresses=192.0.2.0/24"))
	t.Cleanup(func() {
		lab.CCM.Stop()
		require.NoError(t, lab.StartCCM(cleanUpContext(t)))
	})
	apply(t, service("choosy", "ports: [{port: 80}]"))
	cleanUp(t, "service/choosy")
	waitForCondition(t, "choosy", "False AddressNotAccepted")
	ips := externalIPs(t, "choosy", 1)
	require.True(t, strings.HasPrefix(ips[0], "192.0.2."), ips[0])
}
