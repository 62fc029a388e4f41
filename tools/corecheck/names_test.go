package corecheck

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/translate"
)

// The core imports no API, so it has copies of these names.
func TestTheCoreUsesTheNamesOfTheAPI(t *testing.T) {
	require.Equal(t, v1alpha1.TenantNamespacePrefix, translate.TenantNamespacePrefix)
	require.Equal(t, v1alpha1.DefaultAddressesName, translate.DefaultAddresses)
	require.Equal(t, v1alpha1.AnnotationForwarding, translate.AnnotationForwarding)
	require.Equal(t, v1alpha1.AnnotationProxyProtocol, translate.AnnotationProxyProtocol)
	require.Equal(t, v1alpha1.AnnotationIdleTimeout, translate.AnnotationIdleTimeout)
	require.Equal(t, v1alpha1.AnnotationRequestedAddresses, translate.AnnotationRequestedAddresses)
	require.EqualValues(t, corev1.IPFamilyPolicySingleStack, ipam.SingleStack)
	require.EqualValues(t, corev1.IPFamilyPolicyPreferDualStack, ipam.PreferDualStack)
	require.EqualValues(t, corev1.IPFamilyPolicyRequireDualStack, ipam.RequireDualStack)
	require.EqualValues(t, corev1.IPv4Protocol, ipam.IPv4.String())
	require.EqualValues(t, corev1.IPv6Protocol, ipam.IPv6.String())
}
