package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// forwarding are the sysctls without which a host forwards nothing (ip-sysctl.rst).
var forwarding = [...]string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"}

// PrepareHost has this host forward packets. What forwards already is not written: the kernel forgets other settings of a host then.
func PrepareHost() error { return prepareHost("/proc/sys") }

func prepareHost(sysctls string) error {
	for _, name := range forwarding {
		path := filepath.Join(sysctls, name)
		value, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without that family
		}
		if err != nil {
			return fmt.Errorf("sysctl %s: %w", name, err)
		}
		if !bytes.Equal(bytes.TrimSpace(value), []byte("0")) {
			continue
		}
		if err := os.WriteFile(path, []byte("1"), 0); err != nil {
			return fmt.Errorf("set sysctl %s (needs root, and a container that is privileged): %w", name, err)
		}
	}
	return nil
}
