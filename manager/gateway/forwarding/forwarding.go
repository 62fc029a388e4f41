// Package forwarding makes a host forward packets.
package forwarding

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"kubelb.k8c.io/backends/dataplane/preflight"
)

// forwardsIPv4 is the sysctl that turns on forwarding of IPv4 packets (ip-sysctl.rst).
const forwardsIPv4 = "net/ipv4/ip_forward"

// Enable makes this host forward packets. It does not write a sysctl that is set already: the kernel would reset other settings of the host.
func Enable() error { return sysctls("/proc/sys").enableForwarding() }

// sysctls is the directory of sysctls.
type sysctls string

func (s sysctls) enableForwarding() error {
	if err := s.enable(forwardsIPv4, func() error { return nil }); err != nil {
		return err
	}
	return s.enable(preflight.ForwardsIPv6("all"), s.keepRouterAdvertisements)
}

// enable sets a sysctl from 0 to 1. It calls before first. A kernel without the address family does not have the sysctl.
func (s sysctls) enable(key string, before func() error) error {
	value, err := s.get(key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || value != "0" {
		return err
	}
	if err := before(); err != nil {
		return err
	}
	return s.set(key, "1")
}

// keepRouterAdvertisements makes interfaces accept router advertisements while the host forwards. By default an interface ignores them then: the
// kernel would remove the learned routes, and the host would lose IPv6. It does not change "default", the setting of later interfaces: so a container
// cannot become the host's router.
func (s sysctls) keepRouterAdvertisements() error {
	interfaces, err := os.ReadDir(filepath.Join(string(s), "net/ipv6/conf"))
	if err != nil {
		return fmt.Errorf("list the interfaces with IPv6: %w", err)
	}
	for _, i := range interfaces {
		switch i.Name() {
		case "all", "default", "lo":
			continue
		}
		if err := s.keepRouterAdvertisementsOf(i.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) { // the interface has just gone
			return err
		}
	}
	return nil
}

// keepRouterAdvertisementsOf does this for one interface. It does not change an interface that forwards, or for which another program handles router
// advertisements: there the kernel ignores them already.
func (s sysctls) keepRouterAdvertisementsOf(name string) error {
	forwards, err := s.get(preflight.ForwardsIPv6(name))
	if err != nil || forwards != "0" {
		return err
	}
	accepts, err := s.get(preflight.AcceptRA(name))
	if err != nil || accepts != preflight.AcceptRAUnlessForwarding {
		return err
	}
	return s.set(preflight.AcceptRA(name), preflight.AcceptRAAlways)
}

func (s sysctls) get(key string) (string, error) {
	value, err := os.ReadFile(filepath.Join(string(s), key))
	if err != nil {
		return "", fmt.Errorf("sysctl %s: %w", preflight.SysctlName(key), err)
	}
	return strings.TrimSpace(string(value)), nil
}

func (s sysctls) set(key, value string) error {
	if err := os.WriteFile(filepath.Join(string(s), key), []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl %s (this needs root, and in a container privileged mode): %w", preflight.SysctlName(key), err)
	}
	return nil
}
