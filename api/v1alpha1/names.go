package v1alpha1

// Names that tenant clusters and the hub share.
const (
	// CleanupFinalizer keeps a deleted LoadBalancer or Tenant until the controllers have released its addresses and credentials.
	CleanupFinalizer = "kubelb.k8c.io/cleanup"

	// LabelOriginNamespace and LabelOriginName of a LoadBalancer name the Service in the tenant cluster.
	LabelOriginNamespace = "kubelb.k8c.io/origin-ns"
	LabelOriginName      = "kubelb.k8c.io/origin-name"
	// LabelTenant is the tenant's namespace on the hub (tenant-<name>).
	LabelTenant = "kubelb.k8c.io/tenant"
	// LabelManagedBy marks the namespaces that the controllers made for tenants, and the credentials in them. The controllers ignore other namespaces.
	LabelManagedBy = "kubelb.k8c.io/managed-by"
	// ManagedByKubeLB is the value of LabelManagedBy.
	ManagedByKubeLB = "kubelb"

	// DefaultAddressesName is the Addresses object that every LoadBalancer of a tenant refers to.
	DefaultAddressesName = "default"
	// TenantNamespacePrefix, followed by the name of a Tenant, is the name of the tenant's namespace.
	TenantNamespacePrefix = "tenant-"

	// AnnotationRotated of a Tenant is the time of the last rotation of its credentials. The change makes the controllers reconcile the Tenant at once.
	AnnotationRotated = "kubelb.k8c.io/credentials-rotated"
	// AnnotationTokenExpires of a kubeconfig's Secret is when its token expires (RFC 3339). It is absent if the token does not expire.
	AnnotationTokenExpires = "kubelb.k8c.io/token-expires"

	// CCMName names the ServiceAccount, Role, RoleBinding and Lease of a tenant's CCM in the tenant's namespace, and the Secret of a token that does not
	// expire.
	CCMName = "kubelb-ccm"
	// CCMKubeconfigSecret holds the CCM's kubeconfig under CCMKubeconfigKey.
	CCMKubeconfigSecret = "kubelb-ccm-kubeconfig"
	CCMKubeconfigKey    = "kubelb"

	// ControllerLease is the Lease in the manager's namespace by which the replicas of the controllers elect a leader.
	ControllerLease = "controller.kubelb.k8c.io"
	// CCMLease is the Lease in a tenant cluster by which the replicas of the CCM elect a leader. KubeLB's own CCM uses the same one, so that the two never
	// work at the same time.
	CCMLease = "19f32e7b.ccm.kubelb.k8c.io"
	// CCMIdentity is a part of spec.holderIdentity of CCMLease if our CCM has it.
	CCMIdentity = "kubelb-layer-4"
)

// Marks of the CCM on a Service.
const (
	// ServiceFinalizer is the finalizer that every load-balancer controller sets.
	ServiceFinalizer = "service.kubernetes.io/load-balancer-cleanup"
	// ServiceCondition says whether the Service is served. It also marks a Service that this CCM owns.
	ServiceCondition = "kubelb.k8c.io/Ready"
)

// Annotations for the fields that a tenant may set on a LoadBalancer, for a CCM that only knows KubeLB's fields.
// If both are set, the field counts. Lists are separated by commas. No other annotation is read.
const (
	AnnotationSourceRanges        = "kubelb.k8c.io/source-ranges"
	AnnotationAffinityTimeout     = "kubelb.k8c.io/session-affinity-timeout-seconds"
	AnnotationIPFamilies          = "kubelb.k8c.io/ip-families"
	AnnotationIPFamilyPolicy      = "kubelb.k8c.io/ip-family-policy"
	AnnotationRequestedAddresses  = "kubelb.k8c.io/requested-addresses"
	AnnotationSharingKey          = "kubelb.k8c.io/sharing-key"
	AnnotationAddressPool         = "kubelb.k8c.io/address-pool"
	AnnotationHealthCheckNodePort = "kubelb.k8c.io/health-check-node-port"
	AnnotationForwarding          = "kubelb.k8c.io/forwarding"
	AnnotationProxyProtocol       = "kubelb.k8c.io/proxy-protocol"
	AnnotationIdleTimeout         = "kubelb.k8c.io/idle-timeout"
)

// ConditionBGPEstablished of a Gateway: it has a BGP session with each router of its BGPPeers.
const ConditionBGPEstablished = "BGPEstablished"

// ConditionBounded of a Tenant: the API server bounds the number of objects in its namespace.
const ConditionBounded = "Bounded"

// ConditionConnected of a Tenant: its CCM renews the Lease CCMName in the tenant's namespace. It is absent until the controllers have seen a renewal:
// KubeLB's own CCM renews no Lease.
const ConditionConnected = "Connected"

// Reasons of ConditionConnected, which is True or Unknown.
const (
	// ReasonCCMHeard: the Lease is renewed.
	ReasonCCMHeard = "CCMHeard"
	// ReasonCCMSilent: the Lease is not renewed any more. Later changes in the tenant cluster are not known to the hub.
	ReasonCCMSilent = "CCMSilent"
)

// QuotaName names the ResourceQuota in a tenant's namespace.
const QuotaName = "kubelb"

// ConditionDrained of a Gateway with spec.draining: it answers for no address any more.
const ConditionDrained = "Drained"

// ConditionAddressConflict of a Gateway, present only while true: a host that is no gateway answers on the clients' segment for addresses that this
// gateway answers for (RFC 5227).
const ConditionAddressConflict = "AddressConflict"

// ConditionHeartbeatsRefused of a Gateway, present only while true: it refuses heartbeats of peers, for example because of a wrong signature. While
// the hub's API is unavailable, these peers count as gone. The message names them, with the reason.
const ConditionHeartbeatsRefused = "HeartbeatsRefused"

// ConditionBackendBusy of a Gateway, present only while true: a call of its plugin takes long. The message names the call, its duration and its
// deadline.
const ConditionBackendBusy = "BackendBusy"

// ConditionServed is present only while it is not true. Of a LoadBalancer: a gateway that answers for it tries its ports, and connections fail. Of a
// Gateway: it serves none of its addresses. The message says what fails.
const ConditionServed = "Served"

// Reasons of ConditionServed.
const (
	// ReasonConnectionsFail of a LoadBalancer: connections to it fail. If its gateway serves nothing at all, the LoadBalancer has the reason of the
	// gateway instead.
	ReasonConnectionsFail = "ConnectionsFail"
	// ReasonDataplaneSilent of a Gateway: its dataplane does not return its counters.
	ReasonDataplaneSilent = "DataplaneSilent"
	// ReasonSegmentSilent of a Gateway: hosts on the clients' segment answered it before, and none answers now.
	ReasonSegmentSilent = "SegmentSilent"
)

// ConditionHostPrefix is the prefix of conditions about the host of a Gateway, such as HostModules and HostSysctls. A Gateway has such a condition only
// while its host lacks something. The message has a line for each missing thing, with the command that mends it.
const ConditionHostPrefix = "Host"

// Reasons of a condition about a gateway's host.
const (
	// ReasonHostMissing: the gateway or its dataplane does not work without the missing thing.
	ReasonHostMissing = "Missing"
	// ReasonHostLimited: only some features of the dataplane do not work.
	ReasonHostLimited = "Limited"
)

// ReasonNotHeard of a Gateway's conditions Ready and BGPEstablished, which are Unknown: its Lease has expired. The controllers write it. The rest of the
// status is the last that the gateway wrote.
const ReasonNotHeard = "NotHeard"

// ReasonAddressConflict of a LoadBalancer's conditions Announced and Ready, which are True: a host that is no gateway also answers for one of its
// addresses.
const ReasonAddressConflict = "AddressConflict"

// Condition types of a LoadBalancer, in the order in which they come true.
const (
	ConditionAccepted         = "Accepted"
	ConditionAddressAllocated = "AddressAllocated"
	ConditionProgrammed       = "Programmed"
	ConditionAnnounced        = "Announced"
	ConditionReady            = "Ready"
)
