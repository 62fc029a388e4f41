// Package manager is the program kubelb-manager: the controllers of the hub and the gateway of this host in one
// binary. Both roles are on by default.
package manager

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/go-logr/logr"
	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"kubelb.k8c.io/api/operation"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/plugin"
	"kubelb.k8c.io/manager/announce"
	"kubelb.k8c.io/manager/bgp"
	"kubelb.k8c.io/manager/controller"
	"kubelb.k8c.io/manager/convert"
	"kubelb.k8c.io/manager/gateway"
	"kubelb.k8c.io/manager/gateway/drain"
	"kubelb.k8c.io/manager/gateway/driver"
	"kubelb.k8c.io/manager/gateway/forwarding"
	"kubelb.k8c.io/manager/gateway/ownership"
	"kubelb.k8c.io/manager/gateway/redirect"
	"kubelb.k8c.io/manager/heartbeat"
	"kubelb.k8c.io/manager/hostcheck"
	"kubelb.k8c.io/manager/hubhosts"
	"kubelb.k8c.io/manager/membership"
	"kubelb.k8c.io/manager/probe"
	"kubelb.k8c.io/manager/transit"
)

// shortestToken is the shortest lifetime of a token that API servers accept.
const shortestToken = 10 * time.Minute

type options struct {
	kubeconfig, namespace                                           string
	controller, gateway, leaderElection, purge, prepareHost, router bool
	backend, checksum, stateDir, name, announce, interfaces         string
	backendOptions, labels                                          keyValues
	lease                                                           time.Duration
	whenAlone, routerID, purgeWith, drainWith                       string
	stayOnExit                                                      bool
	handover, drainTimeout, tryEvery                                time.Duration
	tryFrom                                                         string
	apiServer, apiServerCA, serviceAccount                          string
	tokenLifetime                                                   time.Duration
	forbidden, metricsAddress, probeAddress, logLevel, logFormat    string
}

// keyValues collects key=value flags.
type keyValues map[string]string

// String implements flag.Value.
func (k keyValues) String() string { return "" }

// Set implements flag.Value.
func (k keyValues) Set(text string) error {
	key, value, ok := strings.Cut(text, "=")
	if !ok || key == "" {
		return fmt.Errorf("%q is not key=value", text)
	}
	k[key] = value
	return nil
}

func (o *options) register(flags *flag.FlagSet) {
	hostname, _ := os.Hostname()
	o.backendOptions, o.labels = keyValues{}, keyValues{}
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig of the management cluster; empty uses the pod's service account")
	flags.StringVar(&o.namespace, "namespace", "kubelb", "namespace of the Leases of the controllers and of each gateway")
	flags.BoolVar(&o.controller, "controller", true, "run the controllers: tenants, address allocation, status (one replica at a time)")
	flags.BoolVar(&o.gateway, "gateway", true, "run this host's gateway: forward and announce")
	flags.BoolVar(&o.leaderElection, "enable-leader-election", true, "elect one of several replicas to run the controllers")
	flags.StringVar(&o.backend, "backend", "nftables", "the gateway's dataplane: nftables, envoy, ebpf, or the path of a plugin's binary. After a change, the new dataplane holds everything before the former one is purged")
	flags.StringVar(&o.checksum, "backend-checksum", "", "SHA-256 of the plugin's binary in hexadecimal. A binary with another sum is not started")
	flags.Var(o.backendOptions, "backend-option", "key=value for the dataplane; may be given several times")
	flags.BoolVar(&o.purge, "purge-on-exit", false, "purge the dataplane when this gateway ends. Otherwise the dataplane goes on to forward")
	flags.StringVar(&o.purgeWith, "purge-with-daemonset", "", "name of the DaemonSet of this gateway's pod, in --namespace. If the DaemonSet has been deleted, the gateway purges the dataplane when it ends, as with --purge-on-exit")
	flags.StringVar(&o.drainWith, "drain-with-node", "", "name of the management cluster's Node on which this gateway's pod runs. While the Node is cordoned, for example by kubectl drain, the gateway drains if all its addresses can move to other gateways")
	flags.BoolVar(&o.router, "router", false, "this host is a router on purpose and forwards everything. Otherwise, between the networks of clients, of endpoints and of its default routes, it forwards only traffic for external addresses, its answers, and connections whose destination the host rewrites")
	flags.BoolVar(&o.prepareHost, "prepare-host", false, "set the sysctls that this host needs to forward packets, and exit. With preflight: set them before the checks")
	flags.StringVar(&o.stateDir, "state-dir", "/var/lib/kubelb", "directory of this gateway's state. No other gateway may use it, and it must survive restarts")
	flags.StringVar(&o.name, "gateway-name", hostname, "name of this gateway and of its Gateway object")
	flags.Var(o.labels, "gateway-label", "key=value, a label of the Gateway object. AddressPools select gateways by labels (spec.gatewaySelector). May be given several times")
	flags.DurationVar(&o.tryEvery, "try-every", 20*time.Second, "interval between tries: the gateway connects to each TCP port that it answers for, as a client does, by the virtual interfaces kubelb-watch and kubelb-client. The condition Served of LoadBalancers reports failures. 5s or more; 0 turns tries off")
	flags.StringVar(&o.tryFrom, "try-from", "192.0.0.6,fd4b:7562:654c::6", "source addresses of tries, separated by commas: at most one of each family. No host may have them, and no network may route them. Nodes see them with forwarding mode transparent, and pods in PROXY protocol headers")
	flags.StringVar(&o.announce, "announce", announceLayer2, "how addresses are announced: layer2 (ARP and NDP, one gateway for each address), bgp (to the routers of BGPPeer objects, by each gateway) or none")
	flags.StringVar(&o.routerID, "bgp-router-id", "", "BGP identifier of this gateway, an IPv4 address. Empty: its address towards the first router")
	flags.BoolVar(&o.stayOnExit, "bgp-stay-on-exit", false, "do not withdraw routes when this gateway ends, so that routers with graceful restart keep them for a process that follows at once")
	flags.DurationVar(&o.lease, "gateway-lease", membership.DefaultDuration, "duration of this gateway's Lease, in whole seconds from 1s to 10m. When the gateway dies, its addresses are unreachable for at least this long. The Lease is renewed five times in this time")
	flags.StringVar(&o.whenAlone, "when-alone", aloneKeep, "what this gateway does with its addresses while it reaches neither the API nor another gateway on its interfaces: keep or withdraw")
	flags.DurationVar(&o.handover, "handover", 10*time.Minute, "for how long other gateways redirect packets of connections that they do not know to a gateway that is gone or has withdrawn the address. This works with forwarding mode nat, while the dataplane of that gateway works. 0: gateways do not redirect packets")
	flags.DurationVar(&o.drainTimeout, "drain-timeout", 0, "the longest time for which a gateway that shuts down waits for the end of Envoy's connections, once its addresses have moved to other gateways. It waits only if Envoy ends with this process, as in a pod (the kernel goes on to forward without this process). 0, and with --bgp-stay-on-exit: it does not wait")
	flags.StringVar(&o.interfaces, "announce-interfaces", "", "interfaces, separated by commas, on which this gateway answers ARP and NDP (required for layer2) and exchanges heartbeats with other gateways")
	flags.StringVar(&o.apiServer, "api-server", "", "URL at which tenants reach the management cluster's API. Empty: the one of the kubeconfig")
	flags.StringVar(&o.apiServerCA, "api-server-ca", "", "file with the CA of --api-server. Empty: the one of the kubeconfig")
	flags.StringVar(&o.serviceAccount, "service-account", "", "service account of the controllers, in --namespace. The controllers bind the ClusterRole kubelb-tenant-namespace to it in each tenant's namespace. Empty: --kubeconfig has these rights already, like an operator's")
	flags.DurationVar(&o.tokenLifetime, "tenant-token-lifetime", time.Hour, "how long a token of a tenant's CCM lasts, 10m or more. The CCM renews its token by itself. 0 makes tokens that do not expire and last until they are rotated, for tenants with KubeLB's own CCM")
	flags.StringVar(&o.forbidden, "forbidden-cidrs", "", "networks, separated by commas, that no tenant may target, and to which this gateway forwards nothing from the networks of clients and nodes: the management cluster's pods and Services, and hosts that are neither its Nodes nor gateways. Addresses of its Nodes and of gateways are never targets")
	flags.StringVar(&o.metricsAddress, "metrics-addr", ":9443", "address of the Prometheus metrics, and of /debug/pprof/ and /debug/log-level (PUT changes it), which answer only to loopback addresses. 0 turns all off")
	flags.StringVar(&o.probeAddress, "health-probe-bind-address", ":8081", "address of /healthz and /readyz; 0 turns them off")
	flags.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error; PUT /debug/log-level changes it (see --metrics-addr)")
	flags.StringVar(&o.logFormat, "log-format", "text", "text or json")
}

// checkGatewayName returns an error if a Gateway, its Lease or the label of the Lease cannot have this name.
func checkGatewayName(name string) error {
	var problems []string
	if problems = validation.IsDNS1123Subdomain(name); len(problems) == 0 {
		problems = validation.IsValidLabelValue(name)
	}
	if len(problems) == 0 {
		return nil
	}
	return fmt.Errorf("--gateway-name=%s is not valid as the name of the Gateway object and a label of its Lease: %s", name, strings.Join(problems, "; "))
}

// parse sets the options from the command line. It writes the help to stdout.
func (o *options) parse(args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("kubelb-manager", flag.ContinueOnError)
	flags.SetOutput(stdout)
	flags.Usage = func() {
		fmt.Fprintf(stdout, "kubelb-manager gives the LoadBalancers of tenant clusters external addresses and forwards their traffic.\n\n"+
			"kubelb-manager [flags]            runs until it gets SIGTERM\n"+
			"kubelb-manager preflight [flags]  checks what a gateway with these flags needs of this host\n\nFlags:\n")
		flags.PrintDefaults()
	}
	o.register(flags)
	return flags.Parse(args)
}

// validate is an error that names a flag whose value cannot be, and what to use.
func (o *options) validate() error {
	if o.lease < time.Second || o.lease > membership.MaxDuration || o.lease%time.Second != 0 {
		return fmt.Errorf("--gateway-lease=%s: use whole seconds, 1s to %s", o.lease, membership.MaxDuration)
	}
	if err := checkGatewayName(o.name); o.gateway && err != nil {
		return err
	}
	if o.tokenLifetime != 0 && o.tokenLifetime < shortestToken {
		return fmt.Errorf("--tenant-token-lifetime=%s: use %s or more, which API servers require, or 0 for tokens that do not expire", o.tokenLifetime, shortestToken)
	}
	if o.drainTimeout < 0 {
		return fmt.Errorf("--drain-timeout=%s: use 0s or more", o.drainTimeout)
	}
	if o.whenAlone != aloneKeep && o.whenAlone != aloneWithdraw {
		return fmt.Errorf("--when-alone=%s: use keep or withdraw", o.whenAlone)
	}
	return nil
}

// Run runs the program until ctx ends.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 && args[0] == preflightCommand {
		return preflight(ctx, args[1:], stdout, stderr)
	}
	var o options
	if err := o.parse(args, stdout); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if o.prepareHost {
		return forwarding.Enable()
	}
	if err := o.validate(); err != nil {
		return err
	}
	if o.stayOnExit {
		o.drainTimeout = 0 // the addresses stay with this host
	}
	handler, level, err := operation.NewLogHandler(o.logLevel, o.logFormat, stderr)
	if err != nil {
		return err
	}
	ctrl.SetLogger(logr.FromSlogHandler(handler))
	klog.SetLogger(logr.FromSlogHandler(handler))
	o.limitMemory(memlimit.FromCgroup, slog.New(handler))
	return o.serve(ctx, slog.New(handler), level)
}

// serve makes and connects both roles: the controllers write allocations and status, the gateway reads them and writes its Gateway.
func (o *options) serve(ctx context.Context, log *slog.Logger, level *slog.LevelVar) error {
	config, err := o.restConfig()
	if err != nil {
		return fmt.Errorf("management cluster: %w", err)
	}
	// A hub with many tenants needs more than the default limit of 20 requests a second.
	config.QPS, config.Burst = 500, 1000
	forbidden, err := parsePrefixes(o.forbidden)
	if err != nil {
		return fmt.Errorf("--forbidden-cidrs: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), authenticationv1.AddToScheme(scheme), coordinationv1.AddToScheme(scheme), rbacv1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return err
	}
	known := cache.Options{DefaultTransform: cache.TransformStripManagedFields(), ByObject: map[client.Object]cache.ByObject{}}
	if o.controller {
		maps.Copy(known.ByObject, controller.Cached())
	}
	maps.Copy(known.ByObject, hubhosts.Cached())
	maps.Copy(known.ByObject, convert.Cached())
	if o.purgeWith != "" {
		maps.Copy(known.ByObject, drain.CachedDaemonSet(o.namespace, o.purgeWith))
	}
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme: scheme, Cache: known, Metrics: server.Options{BindAddress: o.metricsAddress, ExtraHandlers: operation.DebugHandlers(level)}, HealthProbeBindAddress: o.probeAddress,
		LeaderElection: o.controller && o.leaderElection, LeaderElectionID: v1alpha1.ControllerLease, LeaderElectionNamespace: o.namespace,
	})
	if err != nil {
		return err
	}
	nodes := readsNodes(ctx, mgr.GetAPIReader(), log)
	if o.controller {
		ca, err := o.ca(config)
		if err != nil {
			return err
		}
		url := o.apiServer
		if url == "" {
			url = config.Host
		}
		if err := controller.SetUp(mgr, controller.Options{APIServer: url, APIServerCA: ca, Namespace: o.namespace, Forbidden: forbidden, Nodes: nodes, Metrics: metrics.Registry,
			ServiceAccount: o.serviceAccount, TokenLifetime: o.tokenLifetime}); err != nil {
			return err
		}
	}
	if o.controller {
		if err := mgr.Add(manager.RunnableFunc(func(ctx context.Context) error { return membership.EnsureKey(ctx, mgr.GetClient(), o.namespace, log) })); err != nil {
			return err
		}
	}
	if err := errors.Join(mgr.AddHealthzCheck("ping", healthz.Ping), mgr.AddReadyzCheck("ping", healthz.Ping)); err != nil {
		return err
	}
	if !o.gateway {
		return mgr.Start(ctx)
	}
	g, err := o.newGateway(mgr, forbidden, nodes, log)
	if err != nil {
		return err
	}
	if err := errors.Join(mgr.Add(g), mgr.AddReadyzCheck("gateway", g.Ready)); err != nil {
		return err
	}
	return untilShutdown(ctx, g, mgr)
}

// readsNodes reports whether to read the management cluster's Nodes. Without an answer of the API server it is not known whether that is allowed. Then the
// process waits for Nodes, as it waits for all objects: without them, tenants could target them.
func readsNodes(ctx context.Context, reader client.Reader, log *slog.Logger) bool {
	readable, err := hubhosts.CanReadNodes(ctx, reader)
	if err != nil {
		log.Warn("cannot check whether the management cluster's Nodes can be read, and waits until they can", "error", err)
		return true
	}
	if !readable {
		log.Warn("cannot read the management cluster's Nodes, so tenants may target them: allow this account to get, list and watch nodes, or add their addresses to --forbidden-cidrs")
	}
	return readable
}

// untilShutdown runs the manager until ctx ends and the gateway has shut down. Everything goes on during the shutdown.
func untilShutdown(ctx context.Context, g *gateway.Gateway, mgr ctrl.Manager) error {
	working, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	defer context.AfterFunc(ctx, func() {
		g.Shutdown(working)
		end()
	})()
	return mgr.Start(working)
}

func (o *options) restConfig() (*rest.Config, error) {
	if o.kubeconfig == "" {
		return rest.InClusterConfig()
	}
	return clientcmd.BuildConfigFromFlags("", o.kubeconfig)
}

func (o *options) ca(config *rest.Config) ([]byte, error) {
	file := o.apiServerCA
	if file == "" {
		file = config.CAFile
	}
	if file == "" {
		return config.CAData, nil
	}
	ca, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("CA for the tenants' kubeconfigs: %w", err)
	}
	return ca, nil
}

func (o *options) newGateway(mgr ctrl.Manager, forbidden []netip.Prefix, nodes bool, log *slog.Logger) (*gateway.Gateway, error) {
	path, err := plugin.Find(o.backend)
	if err != nil {
		return nil, err
	}
	options := gateway.Options{
		Name: o.name, Labels: o.labels, Forbidden: forbidden, Nodes: nodes, Probe: probe.DefaultConfig(), Metrics: metrics.Registry, Wake: gateway.NewWake(), Log: log,
		PluginOptions:   gateway.PluginOptions{Plugin: o.pluginFor(path)},
		AnnounceOptions: gateway.AnnounceOptions{Secrets: mgr.GetAPIReader(), Namespace: o.namespace},
		PeerOptions: gateway.PeerOptions{RedirectDuration: o.handover, HeartbeatKey: func(ctx context.Context) []byte {
			return membership.WaitForKey(ctx, mgr.GetAPIReader(), o.namespace, o.stateDir, log)
		}},
		DrainOptions: gateway.DrainOptions{DrainTimeout: o.drainTimeout, PurgeOnExit: o.purge, PurgeWith: o.purgeWith, DrainWithNode: o.drainWith},
		HostOptions:  gateway.HostOptions{HostAddresses: hubhosts.LocalAddresses},
	}
	needs := o.needs()
	needs.HubTime = hostcheck.CachedTime(hubTime(mgr.GetConfig()), hubTimeEvery)
	options.HostChecks = needs.Checks
	if options.TryEvery, options.TryFrom, err = o.tries(); err != nil {
		return nil, err
	}
	options.TransitFilter = &transit.Reconciler{Interfaces: o.announceInterfaces(), Router: o.router, Forbidden: forbidden}
	if err := o.announcer(mgr, &options); err != nil {
		return nil, err
	}
	return gateway.New(options, mgr.GetCache(), mgr.GetClient()), nil
}

// shortestTryEvery is the shortest --try-every: pods see a connection for each try.
const shortestTryEvery = 5 * time.Second

// tries returns the interval between tries of a frontend, 0 for no tries, and their source addresses.
func (o *options) tries() (every time.Duration, from []netip.Addr, err error) {
	if o.tryEvery != 0 && o.tryEvery < shortestTryEvery {
		return 0, nil, fmt.Errorf("--try-every=%s: use %s or more, or 0 to turn tries off", o.tryEvery, shortestTryEvery)
	}
	families := map[bool]bool{}
	for text := range strings.SplitSeq(o.tryFrom, ",") {
		a, err := netip.ParseAddr(text)
		if err != nil || families[a.Is4()] || a.Zone() != "" {
			return 0, nil, fmt.Errorf("--try-from=%s: use an IPv4 address, an IPv6 address, or both separated by a comma", o.tryFrom)
		}
		families[a.Is4()] = true
		from = append(from, a)
	}
	return o.tryEvery, from, nil
}

// pluginFor returns the options of the plugin with this binary.
func (o *options) pluginFor(path string) driver.Plugin {
	return driver.Plugin{Path: path, Checksum: o.checksum, Config: dataplane.Config{StateDir: o.stateDir, Options: o.backendOptions}}
}

// announceInterfaces returns the interfaces that the flag names.
func (o *options) announceInterfaces() (names []string) {
	for _, name := range strings.Split(o.interfaces, ",") {
		if name = strings.TrimSpace(name); name != "" {
			names = append(names, name)
		}
	}
	return names
}

// Values of flags.
const (
	announceLayer2, announceBGP, announceNone = "layer2", "bgp", "none"
	aloneKeep, aloneWithdraw                  = "keep", "withdraw"
)

func errAnnounce(value string) error {
	return fmt.Errorf("--announce=%s: use layer2, bgp or none", value)
}

// announcer adds the announcer.
func (o *options) announcer(mgr ctrl.Manager, g *gateway.Options) error {
	g.Addresses = func() []netip.Addr { return redirect.OwnAddresses(o.announceInterfaces()) }
	switch o.announce {
	case announceNone:
		g.Announcer = announce.None{}
		presence, err := o.member(mgr, g)
		g.LivenessLease = presence
		return err
	case announceLayer2:
		return o.announceByLayer2(mgr, g)
	case announceBGP:
		return o.announceByBGP(mgr, g)
	}
	return errAnnounce(o.announce)
}

func (o *options) announceByLayer2(mgr ctrl.Manager, g *gateway.Options) error {
	interfaces := o.announceInterfaces()
	if len(interfaces) == 0 {
		return errors.New("--announce-interfaces is required with --announce=layer2: name the interfaces of the clients' segment, or use --announce=bgp or none")
	}
	g.Elects = true
	if err := o.join(mgr, g); err != nil {
		return err
	}
	layer2 := announce.NewLayer2(announce.Layer2Options{Interfaces: interfaces, HoldsLease: g.Right.MayAnswer, Changed: g.Wake.Up, Log: g.Log})
	g.Announcer, g.Conflicts, g.SetTenant, g.CheckedInterfaces = layer2, layer2.Conflicts, layer2.SetTenant, interfaces
	ofHost := g.HostChecks
	g.HostChecks = func(ctx context.Context) []dataplane.Check { return append(ofHost(ctx), layer2.Checks()...) }
	return nil
}

func (o *options) announceByBGP(mgr ctrl.Manager, g *gateway.Options) error {
	id, err := netip.ParseAddr(o.routerID)
	if o.routerID != "" && (err != nil || !id.Is4()) {
		return fmt.Errorf("--bgp-router-id=%s: use an IPv4 address", o.routerID)
	}
	g.Speaker = bgp.NewSpeaker(bgp.Options{Name: o.name, RouterID: id, KeepRoutesOnExit: o.stayOnExit, WithdrawDelay: drain.WithdrawDelay, Changed: g.Wake.Up, Log: g.Log})
	g.Announcer = g.Speaker
	return o.join(mgr, g)
}

// join adds the Lease, the heartbeats, and the right to answer.
func (o *options) join(mgr ctrl.Manager, g *gateway.Options) error {
	member, err := o.member(mgr, g)
	if err != nil {
		return err
	}
	epoch, err := heartbeat.NextEpoch(o.stateDir, time.Now())
	if err != nil {
		g.Log.Warn("cannot save the epoch of heartbeats: if the clock is set back before the next start, peers refuse heartbeats", "error", err)
	}
	heart := heartbeat.New(heartbeat.Options{Name: o.name, Epoch: epoch, Interfaces: o.announceInterfaces(), ReachesAPI: member.ReachesAPI, WithoutLeaseFor: member.WithoutLeaseFor, Log: g.Log})
	g.Member, g.Heartbeats = member, heart
	g.Right = ownership.NewRight(ownership.RightOptions{Lease: member, Segment: heart, KeepWhenAlone: o.whenAlone == aloneKeep, Shared: !g.Elects, Changed: g.Wake.Up, Log: g.Log.With("gateway", o.name)})
	return nil
}

// member makes the renewer of this gateway's Lease.
func (o *options) member(mgr ctrl.Manager, g *gateway.Options) (*membership.Member, error) {
	return membership.New(mgr.GetConfig(), o.namespace, membership.Options{Name: o.name, Duration: o.lease, DataplaneStays: !o.purge, Changed: g.Wake.Up, Log: g.Log})
}

func parsePrefixes(text string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, part := range strings.Split(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(part)
		if err != nil {
			return nil, err
		}
		out = append(out, prefix.Masked())
	}
	return out, nil
}
