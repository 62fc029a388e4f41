// Package forwarding has a host forward packets.
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

// forwardsIPv4 is the sysctl without which a host forwards no IPv4 (ip-sysctl.rst).
const forwardsIPv4 = "net/ipv4/ip_forward"

// TurnOn has this host forward packets. What forwards already is not written: the kernel forgets other settings of a host then.
func TurnOn() error { return settings("/proc/sys").forward() }

// settings is the directory of sysctls.
type settings string

func (s settings) forward() error {
	if err := s.turnOn(forwardsIPv4, func() error { return nil }); err != nil {
		return err
	}
	return s.turnOn(preflight.ForwardsIPv6("all"), s.keepRouters)
}

// turnOn sets a sysctl that is 0 to 1, after what is to come before. A kernel without the family does not have it.
func (s settings) turnOn(key string, before func() error) error {
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

// keepRouters has interfaces go on to take router advertisements. Of those that do so unless they forward, the kernel would remove the routes
// that it has learned, and the host would lose IPv6. It leaves "default", the settings of interfaces that come later: on a host that forwards
// the kernel lets no container that is connected by one become the host's router.
func (s settings) keepRouters() error {
	interfaces, err := os.ReadDir(filepath.Join(string(s), "net/ipv6/conf"))
	if err != nil {
		return fmt.Errorf("interfaces with IPv6: %w", err)
	}
	for _, i := range interfaces {
		switch i.Name() {
		case "all", "default", "lo":
			continue
		}
		if err := s.keepRouter(i.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) { // the interface has just gone
			return err
		}
	}
	return nil
}

// keepRouter leaves an interface as it is that forwards or where another program handles router advertisements: the kernel ignores them there.
func (s settings) keepRouter(name string) error {
	forwards, err := s.get(preflight.ForwardsIPv6(name))
	if err != nil || forwards != "0" {
		return err
	}
	accepts, err := s.get(preflight.AcceptRA(name))
	if err != nil || accepts != preflight.HearsUnlessForwarding {
		return err
	}
	return s.set(preflight.AcceptRA(name), preflight.HearsAlways)
}

func (s settings) get(key string) (string, error) {
	value, err := os.ReadFile(filepath.Join(string(s), key))
	if err != nil {
		return "", fmt.Errorf("sysctl %s: %w", preflight.SysctlName(key), err)
	}
	return strings.TrimSpace(string(value)), nil
}

func (s settings) set(key, value string) error {
	if err := os.WriteFile(filepath.Join(string(s), key), []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl %s (needs root, and a container that is privileged): %w", preflight.SysctlName(key), err)
	}
	return nil
}
