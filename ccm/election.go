package ccm

import (
	"fmt"
	"os"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"kubelb.k8c.io/api/v1alpha1"
)

// renewDeadline is how long a leader tries to renew the Lease. It is controller-runtime's default.
const renewDeadline = 10 * time.Second

// electionLock returns the lock of the leader election, nil if no election is wanted. The holder's identity distinguishes this CCM from KubeLB's own, which
// uses the same Lease.
func electionLock(config *rest.Config, wanted bool, namespace string) (resourcelock.Interface, error) {
	if !wanted {
		return nil, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	identity := fmt.Sprintf("%s_%s_%s", host, v1alpha1.CCMIdentity, uuid.NewUUID())
	lock, err := resourcelock.NewFromKubeconfig(resourcelock.LeasesResourceLock, namespace, v1alpha1.CCMLease,
		resourcelock.ResourceLockConfig{Identity: identity}, rest.AddUserAgent(config, "leader-election"), renewDeadline)
	if err != nil {
		return nil, fmt.Errorf("leader election: %w", err)
	}
	return lock, nil
}

// defaultElectionNamespace is the namespace of the pod, or kube-system outside of a pod.
func defaultElectionNamespace() string {
	if namespace, err := os.ReadFile("/var/run/secrets/kubernetes.io/serviceaccount/namespace"); err == nil {
		return strings.TrimSpace(string(namespace))
	}
	return "kube-system"
}
