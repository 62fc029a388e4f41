package envoy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	nft "github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/hostflows"
	"kubelb.k8c.io/backends/dataplane/preflight"
	"kubelb.k8c.io/backends/envoy/bpf"
	"kubelb.k8c.io/backends/nftables/probe"
)

// preflightTable is the name of the nftables tables in the trial.
const preflightTable = "kubelb-envoy-preflight"

// costsRedirects is what does not work without the BPF program.
const costsRedirects = "redirecting packets of unknown connections to other gateways"

// Preflight checks Envoy's binary, and that the kernel accepts the nftables tables, in a transaction that is never committed.
func (b *Backend) Preflight(ctx context.Context, config dataplane.Config) ([]dataplane.Check, error) {
	s, err := parseOptions(config.Options)
	if err != nil {
		return nil, err
	}
	host := preflight.Host{}
	modules := host.Modules()
	checks := []dataplane.Check{envoyCheck(ctx, s.envoy), starterCheck(), sharedMemoryCheck(),
		host.Capability(preflight.NetAdmin, ""),
		host.Capability(preflight.NetBindService, "ports below 1024"),
		host.Capability(preflight.BPF, costsRedirects, preflight.SysAdmin)}
	tried, err := probe.Checks(modules, rulesetParts()...)
	if err != nil {
		return nil, err
	}
	checks = append(checks, tried...)
	checks = append(checks, modules.Check("tcp_diag", "INET_TCP_DIAG", tryEndSockets(), "serving a tenant at the former address of another tenant before the connections of that one have ended"))
	checks = append(checks, redirectorChecks(modules)...)
	return append(checks, ownerChecks(s.table)...), nil
}

// envoyCheck checks that there is an Envoy that is new enough.
func envoyCheck(ctx context.Context, option string) dataplane.Check {
	c := dataplane.Check{Group: dataplane.GroupPrograms, Subject: "program envoy", State: dataplane.CheckOK}
	path, err := findEnvoy(ctx, option)
	if err != nil {
		c.State, c.Found, c.Advice = dataplane.CheckMissing, strings.TrimSuffix(err.Error(), ": "+installEnvoy), installEnvoy
		return c
	}
	c.Found = path
	return c
}

// starterCheck checks that there is the program that starts Envoy.
func starterCheck() dataplane.Check {
	c := dataplane.Check{Group: dataplane.GroupPrograms, Subject: "program kubelb-envoy", State: dataplane.CheckOK, Found: besideThis("kubelb-envoy")}
	if _, err := os.Stat(c.Found); err != nil {
		c.State, c.Found, c.Advice = dataplane.CheckMissing, "it is not in the plugin's directory", "install it in the plugin's directory: it comes with the plugin"
	}
	return c
}

// sharedMemory is the directory for shm_open(3), by which two Envoys share memory during a hot restart.
const sharedMemory = "/dev/shm"

// sharedMemoryCheck checks that there is shared memory. Without it Envoy aborts when it starts.
func sharedMemoryCheck() dataplane.Check {
	c := dataplane.Check{Group: dataplane.GroupMounts, Subject: "shared memory at " + sharedMemory, State: dataplane.CheckOK, Found: "it is writable"}
	if err := unix.Access(sharedMemory, unix.W_OK); err != nil {
		c.State, c.Found = dataplane.CheckMissing, err.Error()
		c.Command = fmt.Sprintf("mkdir -p %s && mount -t tmpfs tmpfs %s && echo 'tmpfs %s tmpfs defaults 0 0' >> /etc/fstab", sharedMemory, sharedMemory, sharedMemory)
	}
	return c
}

// rulesetParts returns the parts of the nftables tables, in the layouts that a start may choose.
func rulesetParts() []probe.Part {
	add := func(l layout) func(*nft.Conn) error {
		return func(c *nft.Conn) error { return addRuleset(c, l) }
	}
	return []probe.Part{
		{Name: "rules that deliver packets to Envoy", Advice: "boot Linux 6.1 or later, on which it was tried", Add: add(untracked)},
		{Name: "rules beside other NAT rules", Costs: "the dataplane on a host with other NAT rules", Advice: "boot Linux 6.1 or later, on which it was tried", Add: add(tracked)},
		{Name: "rules for forwarding: transparent", Costs: "forwarding: transparent", Advice: "boot Linux 6.1 or later, on which it was tried", Add: func(c *nft.Conn) error {
			g := newRuleset(preflightTable)
			for _, t := range g.tables {
				if err := t.create(c, untracked); err != nil {
					return err
				}
				t.deliverAnswers(c)
			}
			return nil
		}},
	}
}

// addRuleset adds everything that a start creates.
func addRuleset(c *nft.Conn, l layout) error { return newRuleset(preflightTable).add(c, l) }

// add adds everything that a start creates to the transaction.
func (g *ruleset) add(c *nft.Conn, l layout) error {
	if err := g.echo.create(c); err != nil {
		return err
	}
	for _, t := range g.tables {
		if err := t.create(c, l); err != nil {
			return err
		}
	}
	g.echo.addAnswer(c, "lo", 1)
	return nil
}

// redirectorChecks checks that the kernel loads the program that finds packets of unknown connections. It is closed at once.
func redirectorChecks(modules preflight.Modules) []dataplane.Check {
	program := dataplane.Check{Group: dataplane.GroupKernel, Subject: "program for unknown connections", Costs: costsRedirects, State: dataplane.CheckOK, Found: "the kernel accepts it"}
	var objects bpf.UnknownObjects
	err := bpf.LoadUnknownObjects(&objects, nil)
	_ = objects.Close()
	switch {
	case err == nil:
	case errors.Is(err, unix.EPERM):
		// The library's error advises to raise MEMLOCK, which does not help.
		program.State, program.Found = dataplane.CheckMissing, "the kernel refuses it to this process"
		program.Advice = "give this process the capabilities BPF and NET_ADMIN and, in a container, a seccomp profile that allows bpf"
	default:
		program.State, program.Found = dataplane.CheckMissing, "the kernel refuses it: "+err.Error()
	}
	return []dataplane.Check{program,
		modules.Check("sch_ingress", "NET_SCH_INGRESS", tryClsact(), costsRedirects),
		modules.Check("cls_bpf", "NET_CLS_BPF", preflight.NotTried, costsRedirects)}
}

// tryEndSockets ends a connection in its own network namespace.
func tryEndSockets() preflight.Trial {
	trial := preflight.NotTried
	preflight.InNetworkNamespace(func() {
		link, err := netlink.LinkByName("lo")
		if err != nil || netlink.LinkSetUp(link) != nil {
			return
		}
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return
		}
		defer listener.Close()
		connection, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			return
		}
		defer connection.Close()
		switch err := hostflows.EndSockets(func(hostflows.Connection) bool { return true }); {
		case err == nil:
			trial = preflight.Works
		case errors.Is(err, hostflows.ErrCannotEndSockets):
			trial = preflight.Fails
		}
	})
	return trial
}

// tryClsact adds the queueing discipline for the program in its own network namespace.
func tryClsact() preflight.Trial {
	trial := preflight.NotTried // it is not tried in this host's namespace
	preflight.InNetworkNamespace(func() {
		switch err := netlink.QdiscAdd(clsact(1)); {
		case err == nil:
			trial = preflight.Works
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
			trial = preflight.Fails
		}
	})
	return trial
}
