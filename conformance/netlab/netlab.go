// Package netlab makes small networks of Linux network namespaces for tests, and removes them. Names of namespaces have a
// prefix, by which Sweep finds and removes those of killed runs. It needs root.
package netlab

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Lab is a set of namespaces.
type Lab struct {
	prefix string

	mu         sync.Mutex // guards what follows
	namespaces []*Namespace
}

// Namespace is a network namespace, a host of the lab.
type Namespace struct {
	// Name is the name that ip netns shows.
	Name   string
	handle netns.NsHandle
	// mounts is the file descriptor of the host's mount namespace; 0 if the host uses that of the machine.
	mounts int
}

// namespaceDir is the directory in which iproute2 keeps named namespaces.
const namespaceDir = "/run/netns"

// New returns an empty lab. Its namespaces are named prefix-process-number-name, with a random number for the lab. The process is its
// id and its start.
//
// It makes this process the parent of orphaned descendants, because not every init waits for them. Close waits for them.
func New(prefix string) *Lab {
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	return &Lab{prefix: fmt.Sprintf("%s%x-", ownedPrefix(prefix), rand.Uint32())}
}

// Close removes all namespaces of the lab, and with them their processes, links, rules and sockets.
func (l *Lab) Close() error {
	errs := []error{l.EndProcesses()}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ns := range l.namespaces {
		errs = append(errs, ns.handle.Close(), netns.DeleteNamed(ns.Name))
		if ns.mounts != 0 {
			errs = append(errs, unix.Close(ns.mounts))
		}
	}
	l.namespaces = nil
	return errors.Join(errs...)
}

// Namespace makes a host with its loopback interface up and these sysctls, such as net/ipv4/ip_forward=1.
func (l *Lab) Namespace(name string, sysctls ...string) (*Namespace, error) {
	ns := &Namespace{Name: l.prefix + name}
	done := make(chan error)
	go func() {
		// The thread ends with the goroutine, so that no other goroutine runs in the namespace.
		runtime.LockOSThread()
		var err error
		ns.handle, err = netns.NewNamed(ns.Name)
		done <- err
	}()
	if err := <-done; err != nil {
		return nil, fmt.Errorf("namespace %s: %w", name, err)
	}
	l.mu.Lock()
	l.namespaces = append(l.namespaces, ns)
	l.mu.Unlock()
	return ns, ns.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		return setSysctls(sysctls)
	})
}

func setSysctls(sysctls []string) error {
	for _, s := range sysctls {
		key, value, _ := strings.Cut(s, "=")
		if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0o644); err != nil {
			return fmt.Errorf("sysctl %s: %w", s, err)
		}
	}
	return nil
}

// Do runs f on a thread of its own in the namespace. Sockets and processes that f makes stay in the namespace.
func (ns *Namespace) Do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns.handle); err != nil {
			done <- fmt.Errorf("enter namespace %s: %w", ns.Name, err)
			return
		}
		if err := ns.enterMounts(); err != nil {
			done <- fmt.Errorf("enter the mounts of namespace %s: %w", ns.Name, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// MountBPF mounts a BPF file system of the host's own at the usual directory, so that pinned objects are removed with the lab.
// It does nothing if the kernel has no BPF file system.
func (ns *Namespace) MountBPF() error { return ns.mount("bpf", "/sys/fs/bpf", "mode=0700") }

// MountMemory mounts a directory of the host's own for shared memory (shm_overview(7)), so that its files are known and are removed
// with the lab.
func (ns *Namespace) MountMemory() error { return ns.mount("tmpfs", "/dev/shm", "mode=0700") }

// mount mounts a file system at a directory, in the host's own mount namespace. It does nothing if there is no such directory.
func (ns *Namespace) mount(kind, at, data string) error {
	if _, err := os.Stat(at); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return ns.Do(func() error {
		if ns.mounts == 0 {
			if err := ns.leaveMounts(); err != nil {
				return fmt.Errorf("make a mount namespace for namespace %s: %w", ns.Name, err)
			}
		}
		if err := unix.Mount(kind, at, kind, 0, data); err != nil {
			return fmt.Errorf("mount %s at %s for namespace %s: %w", kind, at, ns.Name, err)
		}
		return nil
	})
}

// leaveMounts makes a mount namespace for the host, and moves this thread there.
func (ns *Namespace) leaveMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return err
	}
	var err error
	ns.mounts, err = unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	return err
}

// enterMounts moves this thread into the host's mount namespace. The thread must not be used for anything else.
func (ns *Namespace) enterMounts() error {
	if ns.mounts == 0 {
		return nil
	}
	at, err := os.Getwd()
	if err != nil {
		return err
	}
	// A thread can enter a mount namespace only if it shares its working directory with no other thread.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Setns(ns.mounts, unix.CLONE_NEWNS); err != nil {
		return err
	}
	return unix.Chdir(at)
}

// Interface is one end of a link.
type Interface struct {
	Namespace *Namespace
	Name      string
	// Addresses are CIDRs.
	Addresses []string
}

// Link connects two hosts with a veth pair.
func (l *Lab) Link(a, b Interface) error {
	pair := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: b.Name, PeerNamespace: netlink.NsFd(b.Namespace.handle)}
	pair.Name, pair.Namespace = a.Name, netlink.NsFd(a.Namespace.handle)
	if err := a.Namespace.Do(func() error { return netlink.LinkAdd(pair) }); err != nil {
		return fmt.Errorf("link %s %s: %w", a.Namespace.Name, b.Namespace.Name, err)
	}
	return errors.Join(a.up(), b.up())
}

func (i Interface) up() error {
	return i.Namespace.Do(func() error {
		link, err := netlink.LinkByName(i.Name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		for _, text := range i.Addresses {
			address, err := netlink.ParseAddr(text)
			if err != nil {
				return err
			}
			// With duplicate address detection, a new IPv6 address would be unusable for a second.
			if address.IP.To4() == nil {
				address.Flags = 0x02 // IFA_F_NODAD
			}
			if err := netlink.AddrAdd(link, address); err != nil {
				return fmt.Errorf("address %s: %w", text, err)
			}
		}
		return nil
	})
}

// Switch makes a host with a learning bridge.
func (l *Lab) Switch(name string) (*Namespace, error) {
	ns, err := l.Namespace(name)
	if err != nil {
		return nil, err
	}
	return ns, ns.Do(func() error {
		bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
		bridge.Name = "bridge"
		if err := netlink.LinkAdd(bridge); err != nil {
			return err
		}
		return netlink.LinkSetUp(bridge)
	})
}

// Plug connects an interface of a host to a switch. port is the name of the switch's end.
func (l *Lab) Plug(sw *Namespace, port string, host Interface) error {
	if err := l.Link(Interface{Namespace: sw, Name: port}, host); err != nil {
		return err
	}
	return sw.Do(func() error {
		end, err := netlink.LinkByName(port)
		if err != nil {
			return err
		}
		bridge, err := netlink.LinkByName("bridge")
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(end, bridge)
	})
}

// SetLink sets an interface up or down. The kernel removes the IPv6 addresses of an interface that goes down, unless a
// sysctl keeps them.
func (ns *Namespace) SetLink(name string, up bool) error {
	return ns.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if up {
			return netlink.LinkSetUp(link)
		}
		return netlink.LinkSetDown(link)
	})
}

// DialContext connects from the namespace.
func (ns *Namespace) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return ns.Dial(ctx, net.Dialer{}, network, address)
}

// Dial connects from the namespace with the dialer.
func (ns *Namespace) Dial(ctx context.Context, dialer net.Dialer, network, address string) (c net.Conn, err error) {
	err = ns.Do(func() (err error) {
		c, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Route adds a route to a network, with the address of a gateway as its next hop.
func (ns *Namespace) Route(network, gateway string) error {
	return ns.Do(func() error {
		_, dst, err := net.ParseCIDR(network)
		if err != nil {
			return err
		}
		return netlink.RouteReplace(&netlink.Route{Dst: dst, Gw: net.ParseIP(gateway)})
	})
}
