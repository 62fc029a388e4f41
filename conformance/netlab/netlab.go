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
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Lab is a set of namespaces.
type Lab struct {
	prefix     string
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

// New returns an empty lab. Its namespaces are named prefix-process-number-name, with a random number for the lab.
//
// It makes this process the parent of orphaned descendants, because not every init waits for them. Close waits for them.
func New(prefix string) *Lab {
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	return &Lab{prefix: fmt.Sprintf("%s-%d-%x-", prefix, os.Getpid(), rand.Uint32())}
}

// Sweep removes namespaces with the prefix whose processes have ended.
func Sweep(prefix string) error {
	entries, err := os.ReadDir(namespaceDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		var pid int
		if _, err := fmt.Sscanf(e.Name(), prefix+"-%d-", &pid); err != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join("/proc", fmt.Sprint(pid))); errors.Is(err, os.ErrNotExist) {
			errs = append(errs, sweep(filepath.Join(namespaceDir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// sweep removes a namespace's file, with or without its mount. Other processes may do that at the same time.
func sweep(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Close removes all namespaces of the lab, and with them their processes, links, rules and sockets.
func (l *Lab) Close() error {
	var errs []error
	for _, ns := range l.namespaces {
		errs = append(errs, ns.endProcesses(), ns.handle.Close(), netns.DeleteNamed(ns.Name))
		if ns.mounts != 0 {
			errs = append(errs, unix.Close(ns.mounts))
		}
	}
	l.namespaces = nil
	return errors.Join(errs...)
}

// endProcesses kills all processes in the namespace. A backend may leave processes that restart each other, so it repeats
// until there are none.
func (ns *Namespace) endProcesses() error {
	var ended []int
	for range 50 {
		running, err := ns.Processes()
		if err != nil {
			return err
		}
		for _, pid := range running {
			_ = unix.Kill(pid, unix.SIGKILL) // the process may have ended by itself
			ended = append(ended, pid)
		}
		if len(running) == 0 {
			for _, pid := range ended {
				_, _ = unix.Wait4(pid, nil, 0, nil) // fails if the process is not a child of this one
			}
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("processes in namespace %s do not end", ns.Name)
}

// Processes returns the numbers of the processes in the namespace, without this process.
func (ns *Namespace) Processes() ([]int, error) {
	var there unix.Stat_t
	if err := unix.Fstat(int(ns.handle), &there); err != nil {
		return nil, err
	}
	found, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return nil, err
	}
	var running []int
	for _, path := range found {
		var at unix.Stat_t
		var pid int
		if unix.Stat(path, &at) != nil || at.Ino != there.Ino || at.Dev != there.Dev {
			continue
		}
		if _, err := fmt.Sscanf(path, "/proc/%d/", &pid); err == nil && pid != os.Getpid() {
			running = append(running, pid)
		}
	}
	return running, nil
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
	l.namespaces = append(l.namespaces, ns)
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
func (ns *Namespace) MountBPF() error {
	const usual = "/sys/fs/bpf"
	if _, err := os.Stat(usual); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return ns.Do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("make a mount namespace for namespace %s: %w", ns.Name, err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
			return fmt.Errorf("make a mount namespace for namespace %s: %w", ns.Name, err)
		}
		if err := unix.Mount("bpf", usual, "bpf", 0, "mode=0700"); err != nil {
			return fmt.Errorf("mount a BPF file system for namespace %s: %w", ns.Name, err)
		}
		var err error
		ns.mounts, err = unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
}

// MountMemory mounts a directory of the host's own for shared memory (shm_overview(7)), so that its files are known and are removed
// with the lab. It is for hosts with MountBPF: without a mount namespace of the host's own it does nothing.
func (ns *Namespace) MountMemory() error {
	const usual = "/dev/shm"
	if _, err := os.Stat(usual); ns.mounts == 0 || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return ns.Do(func() error {
		if err := unix.Mount("tmpfs", usual, "tmpfs", 0, "mode=0700"); err != nil {
			return fmt.Errorf("mount %s for namespace %s: %w", usual, ns.Name, err)
		}
		return nil
	})
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
