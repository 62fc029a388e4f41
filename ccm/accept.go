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

// reasonAddressNotAccepted is the reason of a Service's condition: this cluster does not accept an address that the hub has given to the Service.
const reasonAddressNotAccepted = "AddressNotAccepted"

// filterStatus removes the addresses that this cluster does not accept from a status. refusal is the condition that names them, nil if there are none.
// kube-proxy sends connections of pods to a Service's external address to that Service (CVE-2020-8554). Without this filter, an attacker who controls the
// hub could redirect connections of pods to any address.
func (c Config) filterStatus(status corev1.LoadBalancerStatus) (accepted corev1.LoadBalancerStatus, refusal *metav1.Condition) {
	var refused []string
	for _, ingress := range status.Ingress {
		if c.accepts(ingress) {
			accepted.Ingress = append(accepted.Ingress, ingress)
		} else {
			refused = append(refused, ingress.IP+ingress.Hostname)
		}
	}
	if len(refused) == 0 {
		return accepted, nil
	}
	return accepted, &metav1.Condition{Type: conditionReady, Status: metav1.ConditionFalse, Reason: reasonAddressNotAccepted,
		Message: fmt.Sprintf("the management cluster gives this Service the address %s, which this cluster does not accept: if the address is right, add it to --accept-addresses of kubelb-ccm", phrase.Few(refused, ", "))}
}

func (c Config) accepts(ingress corev1.LoadBalancerIngress) bool {
	if ingress.IP == "" {
		return len(c.AcceptAddresses) == 0
	}
	address, err := netip.ParseAddr(ingress.IP)
	if err != nil || !address.IsGlobalUnicast() {
		return false
	}
	return len(c.AcceptAddresses) == 0 || slices.ContainsFunc(c.AcceptAddresses, func(p netip.Prefix) bool { return p.Contains(address) })
}

// parseNetworks reads CIDRs that are separated by commas.
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
