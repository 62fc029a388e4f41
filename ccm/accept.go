package ccm

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/core/phrase"
)

// reasonAddressNotAccepted is that of a Service which the hub gives an address that this cluster does not take.
const reasonAddressNotAccepted = "AddressNotAccepted"

// accept takes out of a status what this cluster does not take as an external address, and says so. kube-proxy sends what pods send
// to a Service's address to that Service (CVE-2020-8554): whoever has taken over the hub could have it catch what is meant for others.
func (c Config) accept(status corev1.LoadBalancerStatus) (accepted corev1.LoadBalancerStatus, refusal *metav1.Condition) {
	var refused []string
	for _, ingress := range status.Ingress {
		if c.takes(ingress) {
			accepted.Ingress = append(accepted.Ingress, ingress)
		} else {
			refused = append(refused, ingress.IP+ingress.Hostname)
		}
	}
	if len(refused) == 0 {
		return accepted, nil
	}
	return accepted, &metav1.Condition{Type: conditionReady, Status: metav1.ConditionFalse, Reason: reasonAddressNotAccepted,
		Message: fmt.Sprintf("the management cluster gives it %s, which this cluster does not take: if that is right, add it to --accept-addresses of kubelb-ccm", phrase.Few(refused, ", "))}
}

func (c Config) takes(ingress corev1.LoadBalancerIngress) bool {
	if ingress.IP == "" {
		return len(c.AcceptAddresses) == 0
	}
	address, err := netip.ParseAddr(ingress.IP)
	if err != nil || !address.IsGlobalUnicast() {
		return false
	}
	return len(c.AcceptAddresses) == 0 || slices.ContainsFunc(c.AcceptAddresses, func(p netip.Prefix) bool { return p.Contains(address) })
}

// parseNetworks reads networks, separated by commas.
func parseNetworks(text string) (out []netip.Prefix, err error) {
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		network, err := netip.ParsePrefix(part)
		if err != nil {
			return nil, fmt.Errorf("--accept-addresses: %q is not a CIDR such as 203.0.113.0/24", part)
		}
		out = append(out, network.Masked())
	}
	return out, nil
}
