package ccm

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"kubelb.k8c.io/api/operation"
	"kubelb.k8c.io/api/v1alpha1"
)

// Config configures the controllers.
type Config struct {
	// HubNamespace is the tenant's namespace on the management cluster.
	HubNamespace string
	// ClassRequired excludes Services without a loadBalancerClass.
	ClassRequired bool
	// NodeAddressType is InternalIP, ExternalIP or Hostname.
	NodeAddressType string
	// AcceptAddresses are the networks in which external addresses may be. If it is empty, all networks are accepted.
	AcceptAddresses []netip.Prefix
	// Resolver resolves host names of nodes. If it is nil, host names are not resolved.
	Resolver *net.Resolver
}

type options struct {
	clusterName, hubKubeconfig, kubeconfig, nodeAddressType string
	acceptAddresses, hubSecret                              string
	useClass, leaderElection, check, broad, release         bool
	leaderElectionNamespace, metricsAddress, probeAddress   string
	logLevel, logFormat                                     string
}

func (o *options) register(flags *flag.FlagSet, env func(string) string) {
	flags.StringVar(&o.clusterName, "cluster-name", "", "name of this cluster's Tenant on the management cluster; the tenant's namespace there is tenant-<name> (required)")
	flags.StringVar(&o.hubKubeconfig, "kubelb-kubeconfig", filepath.Join(env("HOME"), ".kube", "kubelb"), "kubeconfig of the management cluster, with the tenant's own credentials. The CCM renews its token and writes it back into this file")
	flags.StringVar(&o.hubSecret, "kubelb-kubeconfig-secret", "", "NAMESPACE/NAME of a Secret in this cluster with this kubeconfig under the key kubelb. The CCM writes the renewed token into the Secret instead of the file, and uses a new kubeconfig in the Secret without a restart")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig of the tenant cluster; empty: the pod's service account")
	flags.StringVar(&o.acceptAddresses, "accept-addresses", "", "networks of external addresses, separated by commas. The CCM writes no other address into a Service's status, since kube-proxy would send pods' connections to that address to the Service. Empty: all addresses except loopback, link-local and multicast")
	flags.BoolVar(&o.broad, "allow-broad-credentials", false, "accept credentials with more rights on the management cluster than a tenant's. Whoever steals them from this cluster controls other tenants, too")
	flags.BoolVar(&o.check, "check", false, "check whether the management cluster answers and the credentials have the required rights, print the result, and exit")
	flags.BoolVar(&o.release, "release", false, "remove KubeLB's finalizer, condition and external addresses from the Services of this cluster without a request to the management cluster, and exit. Use this for a cluster that is not served any more. Stop kubelb-ccm first: this command watches the Lease of its leader election for the Lease's duration (15s), and refuses if a CCM renews it")
	flags.StringVar(&o.nodeAddressType, "node-address-type", "InternalIP", "type of the node addresses that get traffic: InternalIP, ExternalIP or Hostname (the CCM resolves it)")
	flags.BoolVar(&o.useClass, "use-loadbalancer-class", false, "serve only Services with loadBalancerClass kubelb; default: also Services without a class")
	flags.BoolVar(&o.leaderElection, "enable-leader-election", true, "elect one of several replicas; only the elected one works")
	flags.StringVar(&o.leaderElectionNamespace, "leader-election-namespace", "", "namespace of the election's Lease; empty: the namespace of the pod, or kube-system outside of a cluster")
	flags.StringVar(&o.metricsAddress, "metrics-addr", ":9445", "address of the Prometheus metrics, and of /debug/pprof/ and /debug/log-level (PUT changes it), which answer only to loopback addresses; 0 turns them off")
	flags.StringVar(&o.probeAddress, "health-probe-bind-address", ":8081", "address of /healthz and /readyz; 0 turns them off")
	flags.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error; PUT /debug/log-level changes it (see --metrics-addr)")
	flags.StringVar(&o.logFormat, "log-format", "text", "text or json")
}

func (o *options) config() (Config, error) {
	if o.clusterName == "" {
		return Config{}, errors.New("--cluster-name is required: the tenant's name on the management cluster")
	}
	c := Config{HubNamespace: v1alpha1.TenantNamespacePrefix + strings.TrimPrefix(o.clusterName, v1alpha1.TenantNamespacePrefix),
		ClassRequired: o.useClass, NodeAddressType: o.nodeAddressType}
	var err error
	if c.AcceptAddresses, err = parseNetworks(o.acceptAddresses); err != nil {
		return Config{}, err
	}
	switch o.nodeAddressType {
	case "InternalIP", "ExternalIP":
	case "Hostname":
		c.Resolver = net.DefaultResolver
	default:
		return Config{}, fmt.Errorf("--node-address-type=%s: use InternalIP, ExternalIP or Hostname", o.nodeAddressType)
	}
	return c, nil
}

// Run runs the program kubelb-ccm until ctx ends.
func Run(ctx context.Context, args []string, env func(string) string, stdout, stderr io.Writer) error {
	var o options
	flags := flag.NewFlagSet("kubelb-ccm", flag.ContinueOnError)
	flags.SetOutput(stdout)
	flags.Usage = func() {
		fmt.Fprintf(stdout, "kubelb-ccm gives the Services of type LoadBalancer of a tenant cluster their addresses from a KubeLB management cluster.\n\nFlags:\n")
		flags.PrintDefaults()
	}
	o.register(flags, env)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if o.release {
		return o.runRelease(ctx, stdout)
	}
	config, err := o.config()
	if err != nil {
		return err
	}
	handler, level, err := operation.NewLogHandler(o.logLevel, o.logFormat, stderr)
	if err != nil {
		return err
	}
	ctrl.SetLogger(logr.FromSlogHandler(handler))
	klog.SetLogger(logr.FromSlogHandler(handler))
	tokens, hubConfig, err := newTokenSource(config.HubNamespace, o.hubKubeconfig, ctrl.Log.WithName("credentials"))
	if err != nil {
		return fmt.Errorf("management cluster: --kubelb-kubeconfig=%s: %w", o.hubKubeconfig, err)
	}
	rights, err := newCredentials(hubConfig, config.HubNamespace)
	if err != nil {
		return err
	}
	if o.check {
		if err := rights.check(ctx, o.broad); err != nil {
			return err
		}
		fmt.Fprintf(stdout, "The management cluster at %s answers, and the credentials have the rights of tenant %s.\n", hubConfig.Host, strings.TrimPrefix(config.HubNamespace, v1alpha1.TenantNamespacePrefix))
		return nil
	}
	if !o.broad {
		if err := rights.refuseExcess(ctx); err != nil {
			return err
		}
	}
	return serve(ctx, o, config, hubConfig, tokens, rights, level)
}

// serve runs the controllers. They watch nodes, Services and EndpointSlices of the tenant cluster, write LoadBalancers and Addresses in the tenant's
// namespace on the hub, and copy the LoadBalancers' status into Services.
func serve(ctx context.Context, o options, config Config, hubConfig *rest.Config, tokens *tokenSource, rights *credentials, level *slog.LevelVar) error {
	tenantConfig, err := restConfig(o.kubeconfig)
	if err != nil {
		return fmt.Errorf("tenant cluster: %w", err)
	}
	if tokens != nil && o.hubSecret != "" {
		if err := tokens.storeIn(tenantConfig, o.hubSecret); err != nil {
			return err
		}
	}
	scheme, err := newScheme()
	if err != nil {
		return err
	}
	lock, err := electionLock(tenantConfig, o.leaderElection, cmp.Or(o.leaderElectionNamespace, defaultElectionNamespace()))
	if err != nil {
		return err
	}
	mgr, err := ctrl.NewManager(tenantConfig, ctrl.Options{
		Scheme:                              scheme,
		Cache:                               cache.Options{DefaultTransform: cache.TransformStripManagedFields()},
		Metrics:                             server.Options{BindAddress: o.metricsAddress, ExtraHandlers: operation.DebugHandlers(level)},
		HealthProbeBindAddress:              o.probeAddress,
		LeaderElection:                      o.leaderElection,
		LeaderElectionResourceLockInterface: lock,
	})
	if err != nil {
		return fmt.Errorf("tenant cluster: %w", err)
	}
	hub, err := cluster.New(hubConfig, func(c *cluster.Options) {
		c.Scheme = scheme
		c.Cache = cache.Options{Scheme: scheme, DefaultTransform: cache.TransformStripManagedFields(), DefaultNamespaces: map[string]cache.Config{config.HubNamespace: {}}}
		c.Client = client.Options{Scheme: scheme}
	})
	if err != nil {
		return fmt.Errorf("management cluster: %w", err)
	}
	if err := mgr.Add(hub); err != nil {
		return err
	}
	nodes, events := newNodesProblem(), mgr.GetEventRecorder("kubelb-ccm")
	services := &serviceReconciler{tenant: mgr.GetClient(), hub: hub.GetClient(), events: events, config: config, nodes: nodes, contact: newHubContact(time.Now())}
	if err := services.setUp(mgr, hub); err != nil {
		return err
	}
	leftOut, err := newLeftOut(metrics.Registry)
	if err != nil {
		return err
	}
	addresses := &addressesReconciler{tenant: mgr.GetClient(), hub: hub.GetClient(), config: config, events: events, nodes: nodes, leftOut: leftOut, reported: map[string]string{}}
	if err := addresses.setUp(mgr, hub); err != nil {
		return err
	}
	if err := mgr.Add(&foreignFinalizers{reader: mgr.GetAPIReader(), mapper: mgr.GetRESTMapper(), events: events, log: ctrl.Log.WithName("foreign-finalizers"), lastEvents: map[types.UID]time.Time{}}); err != nil {
		return err
	}
	report, err := newMetricsReporter(mgr.GetClient(), rights.checkHub, config, metrics.Registry)
	if err != nil {
		return err
	}
	if err := errors.Join(mgr.Add(report), mgr.Add(&outageReporter{services: services, checkHub: rights.checkHub})); err != nil {
		return err
	}
	lease, err := newLease(hubConfig, config.HubNamespace, ctrl.Log.WithName("lease"))
	if err != nil {
		return err
	}
	if err := mgr.Add(lease); err != nil {
		return err
	}
	if tokens != nil {
		if err := mgr.Add(tokens); err != nil {
			return err
		}
	}
	if err := errors.Join(mgr.AddHealthzCheck("ping", healthz.Ping), mgr.AddReadyzCheck("ping", healthz.Ping)); err != nil {
		return err
	}
	return mgr.Start(ctx)
}

func restConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		return rest.InClusterConfig()
	}
	return clientcmd.BuildConfigFromFlags("", kubeconfig)
}

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	return scheme, errors.Join(corev1.AddToScheme(scheme), discoveryv1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme))
}
