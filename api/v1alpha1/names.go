package v1alpha1

// Names that both sides of the contract rely on.
const (
	// CleanupFinalizer keeps a LoadBalancer or Tenant until the manager has released what it held.
	CleanupFinalizer = "kubelb.k8c.io/cleanup"

	// LabelOriginNamespace and LabelOriginName tell which Service of the tenant a LoadBalancer stands for.
	LabelOriginNamespace = "kubelb.k8c.io/origin-ns"
	LabelOriginName      = "kubelb.k8c.io/origin-name"
	// LabelTenant carries the tenant's namespace on the hub (tenant-<name>).
	LabelTenant = "kubelb.k8c.io/tenant"
	// LabelManagedBy marks what the manager made for tenants: namespaces and what is in them for their CCMs. Others are never looked into.
	LabelManagedBy = "kubelb.k8c.io/managed-by"
	// ManagedByKubeLB is the value of LabelManagedBy.
	ManagedByKubeLB = "kubelb"

	// DefaultAddressesName is the Addresses object that every LoadBalancer of a tenant refers to.
	DefaultAddressesName = "default"
	// TenantNamespacePrefix and a Tenant's name make the tenant's namespace.
	TenantNamespacePrefix = "tenant-"

	// AnnotationRotated of a Tenant tells when its credentials were rotated last, so that the manager looks at once.
	AnnotationRotated = "kubelb.k8c.io/credentials-rotated"
	// AnnotationTokenExpires of a kubeconfig's Secret tells until when its token is good (RFC 3339); it is not there for a token that lasts.
	AnnotationTokenExpires = "kubelb.k8c.io/token-expires"

	// CCMName names the ServiceAccount, Role, RoleBinding, Lease and, for tokens that last, token Secret of a tenant's CCM in its namespace.
	CCMName = "kubelb-ccm"
	// CCMKubeconfigSecret holds the CCM's kubeconfig under CCMKubeconfigKey.
	CCMKubeconfigSecret = "kubelb-ccm-kubeconfig"
	CCMKubeconfigKey    = "kubelb"

	// ControllerLease is the Lease, in the manager's namespace, that the replica of the manager holds which runs the controllers.
	ControllerLease = "controller.kubelb.k8c.io"
	// CCMLease is the Lease in a tenant cluster that the CCM which works holds. KubeLB's own CCM has the same one, so that never both work.
	CCMLease = "19f32e7b.ccm.kubelb.k8c.io"
	// CCMHolder is a part of the holder's identity, if that is our CCM.
	CCMHolder = "kubelb-layer-4"
)

// Marks of the CCM on a Service.
const (
	// ServiceFinalizer is the finalizer that every load-balancer controller sets.
	ServiceFinalizer = "service.kubernetes.io/load-balancer-cleanup"
	// ServiceCondition says how the Service is served, and that it is the CCM's.
	ServiceCondition = "kubelb.k8c.io/Ready"
)

// Annotation forms of the fields that a tenant may set on a LoadBalancer, for a CCM that only knows KubeLB's fields.
// The field beats the annotation; lists are separated by commas; no other annotation is read.
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

// ConditionBGPEstablished of a Gateway: there is a session with every router that it should have one with.
const ConditionBGPEstablished = "BGPEstablished"

// ConditionBounded of a Tenant: the API server refuses more objects than there may be in its namespace.
const ConditionBounded = "Bounded"

// ConditionConnected of a Tenant: its CCM renews the Lease CCMName in the tenant's namespace. It is not there as long as the controllers have seen no
// renewal: KubeLB's own CCM renews no Lease.
const ConditionConnected = "Connected"

// Reasons of ConditionConnected, which is True or Unknown.
const (
	// ReasonCCMHeard: the Lease is renewed.
	ReasonCCMHeard = "CCMHeard"
	// ReasonCCMSilent: it is not renewed any more. What the tenant's cluster has changed since is not known.
	ReasonCCMSilent = "CCMSilent"
)

// QuotaName names the ResourceQuota in a tenant's namespace.
const QuotaName = "kubelb"

// ConditionDrained of a Gateway that is told to drain: it answers for no address any more.
const ConditionDrained = "Drained"

// ConditionAddressConflict of a Gateway, which is there only while it is true: a host that is no gateway answers for addresses of this one
// on the clients' segment (RFC 5227).
const ConditionAddressConflict = "AddressConflict"

// ConditionHeartbeatsRefused of a Gateway, which is there only while it is true: heartbeats of other gateways arrive that it may not believe,
// so that they count as gone while the hub's API is away. The message names them, with the reason.
const ConditionHeartbeatsRefused = "HeartbeatsRefused"

// ConditionBackendBusy of a Gateway, which is there only while it is true: its dataplane works on something for long. The message names the
// call, for how long, and for how long it may.
const ConditionBackendBusy = "BackendBusy"

// ConditionServed is there only while it is not true. LoadBalancer: a gateway that answers for it probes its ports, and connections fail. Gateway: it
// serves none of its addresses. The message says what happens.
const ConditionServed = "Served"

// Reasons of ConditionServed.
const (
	// ReasonConnectionsFail of a LoadBalancer: connections to it fail. If its gateway serves nothing at all, the reason is the gateway's instead.
	ReasonConnectionsFail = "ConnectionsFail"
	// ReasonDataplaneSilent of a Gateway: its dataplane does not return its counters.
	ReasonDataplaneSilent = "DataplaneSilent"
	// ReasonSegmentSilent of a Gateway: no host on the clients' segment that answered before answers it now.
	ReasonSegmentSilent = "SegmentSilent"
)

// ConditionHostPrefix begins the type of each condition of a Gateway that says what its host lacks: HostModules, HostSysctls and so on. The
// condition is there only while something is missing. Its message has a line for each missing thing, with the command that mends it.
const ConditionHostPrefix = "Host"

// Reasons of a condition about a gateway's host: the dataplane or the gateway does not work without what is missing, or some of its features
// do not.
const (
	ReasonHostLacks  = "Missing"
	ReasonHostLimits = "Limited"
)

// ReasonNotHeard of a Gateway's conditions Ready and BGPEstablished, which are Unknown: its Lease is over. The controllers say so; all else in its status
// is of before.
const ReasonNotHeard = "NotHeard"

// ReasonAddressConflict of a LoadBalancer's conditions Announced and Ready, which are true: a host that is no gateway answers for one of its
// addresses as well.
const ReasonAddressConflict = "AddressConflict"

// Condition types of a LoadBalancer, in the order in which they come true.
const (
	ConditionAccepted         = "Accepted"
	ConditionAddressAllocated = "AddressAllocated"
	ConditionProgrammed       = "Programmed"
	ConditionAnnounced        = "Announced"
	ConditionReady            = "Ready"
)
