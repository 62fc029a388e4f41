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

// preflightTable is the name of the nftables tables that are tried.
const preflightTable = "kubelb-envoy-preflight"

// costsHandover is what does not work where no program finds packets of unknown connections.
const costsHandover = "asking other gateways about connections that this one does not have"

// Preflight checks Envoy's binary, and what its guard needs of the kernel by a try of all tables that is never committed.
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
		host.Capability(preflight.BPF, costsHandover, preflight.SysAdmin)}
	tried, err := probe.Checks(modules, guardParts()...)
	if err != nil {
		return nil, err
	}
	checks = append(checks, tried...)
	checks = append(checks, modules.Check("tcp_diag", "INET_TCP_DIAG", tryEnding(), "serving a tenant at an address of another one's before that one's connections have ended"))
	checks = append(checks, askingChecks(modules)...)
	return append(checks, ownerChecks(s.table)...), nil
}

// envoyCheck looks for an Envoy that is new enough.
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

// starterCheck looks for the program that starts Envoy.
func starterCheck() dataplane.Check {
	c := dataplane.Check{Group: dataplane.GroupPrograms, Subject: "program kubelb-envoy", State: dataplane.CheckOK, Found: beside("kubelb-envoy")}
	if _, err := os.Stat(c.Found); err != nil {
		c.State, c.Found, c.Advice = dataplane.CheckMissing, "it is not beside the plugin", "install it in the plugin's directory: it comes with the plugin"
	}
	return c
}

// sharedMemory is where shm_open(3) makes what two Envoys share while one replaces the other.
const sharedMemory = "/dev/shm"

// sharedMemoryCheck tells whether there is shared memory: without it Envoy aborts when it starts.
func sharedMemoryCheck() dataplane.Check {
	c := dataplane.Check{Group: dataplane.GroupMounts, Subject: "shared memory at " + sharedMemory, State: dataplane.CheckOK, Found: "it is there"}
	if err := unix.Access(sharedMemory, unix.W_OK); err != nil {
		c.State, c.Found = dataplane.CheckMissing, err.Error()
		c.Command = fmt.Sprintf("mkdir -p %s && mount -t tmpfs tmpfs %s && echo 'tmpfs %s tmpfs defaults 0 0' >> /etc/fstab", sharedMemory, sharedMemory, sharedMemory)
	}
	return c
}

// guardParts are what the guard's tables consist of, in the layouts that a start may choose.
func guardParts() []probe.Part {
	guarded := func(l layout) func(*nft.Conn) error {
		return func(c *nft.Conn) error { return addGuard(c, l) }
	}
	return []probe.Part{
		{Name: "rules that bring packets to Envoy", Advice: "boot Linux 6.1 or later, on which it was tried", Add: guarded(untracked)},
		{Name: "rules beside other NAT rules", Costs: "the dataplane on a host that has other NAT rules", Advice: "boot Linux 6.1 or later, on which it was tried", Add: guarded(tracked)},
		{Name: "rules for forwarding: transparent", Costs: "forwarding: transparent", Advice: "boot Linux 6.1 or later, on which it was tried", Add: func(c *nft.Conn) error {
			g := newGuard(preflightTable)
			for _, t := range g.tables {
				if err := t.create(c, untracked); err != nil {
					return err
				}
				t.takeAnswers(c)
			}
			return nil
		}},
	}
}

// addGuard adds all that is made at a start.
func addGuard(c *nft.Conn, l layout) error { return newGuard(preflightTable).add(c, l) }

// add adds all that is made at a start to the transaction.
func (g *guard) add(c *nft.Conn, l layout) error {
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

// askingChecks tell whether the program runs that finds packets of unknown connections. It is loaded and let go of at once.
func askingChecks(modules preflight.Modules) []dataplane.Check {
	program := dataplane.Check{Group: dataplane.GroupKernel, Subject: "program for unknown connections", Costs: costsHandover, State: dataplane.CheckOK, Found: "the kernel takes it"}
	var objects bpf.UnknownObjects
	err := bpf.LoadUnknownObjects(&objects, nil)
	_ = objects.Close()
	switch {
	case err == nil:
	case errors.Is(err, unix.EPERM):
		// The library's error advises to raise MEMLOCK, which is not the reason.
		program.State, program.Found = dataplane.CheckMissing, "the kernel refuses it to this process"
		program.Advice = "give this process the capabilities BPF and NET_ADMIN and, in a container, a seccomp profile that allows bpf"
	default:
		program.State, program.Found = dataplane.CheckMissing, "the kernel refuses it: "+err.Error()
	}
	return []dataplane.Check{program,
		modules.Check("sch_ingress", "NET_SCH_INGRESS", tryEntrance(), costsHandover),
		modules.Check("cls_bpf", "NET_CLS_BPF", preflight.NotTried, costsHandover)}
}

// tryEnding ends a connection in a network namespace of its own.
func tryEnding() preflight.Trial {
	trial := preflight.NotTried
	preflight.InOwnNetwork(func() {
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

// tryEntrance adds the queueing discipline at whose place the program runs, in a network namespace of its own.
func tryEntrance() preflight.Trial {
	trial := preflight.NotTried // in this host's namespace it would be this host's
	preflight.InOwnNetwork(func() {
		switch err := netlink.QdiscAdd(entrance(1)); {
		case err == nil:
			trial = preflight.Works
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
			trial = preflight.Fails
		}
	})
	return trial
}
