package envoy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// The backend options.
const (
	optionEnvoy       = "envoy-path"
	optionTable       = "table"
	optionConcurrency = "concurrency"
	optionDrainTime   = "drain-time"
	optionCloseTime   = "close-time"
	optionIdle        = "idle-timeout"
	optionUDPIdle     = "udp-idle-timeout"
	optionMemory      = "memory-mib"
)

// settings are the parsed options.
type settings struct {
	// envoy is the path of the binary. If it is empty, findEnvoy searches for one.
	envoy string
	// table is the name of the nftables tables.
	table string
	// concurrency is the number of Envoy's threads; 0 means one for each processor.
	concurrency int
	// drainTime is how long connections may go on after their listener was changed or their Envoy was replaced.
	drainTime time.Duration
	// closeTime is how long connections may go on when everything is removed.
	closeTime time.Duration
	// memoryMiB is how much of Envoy's memory frontends and their endpoints may take, in MiB. 0 means a third of the available memory.
	memoryMiB int
	timeouts
}

// timeouts are the idle timeouts of frontends without their own.
type timeouts struct {
	// idle is for TCP connections; 0 means never. Keepalive finds connections whose peer is gone.
	idle time.Duration
	// udpIdle is for UDP sessions.
	udpIdle time.Duration
}

func defaults() settings {
	return settings{table: "kubelb-envoy", drainTime: time.Hour, closeTime: 5 * time.Second, timeouts: timeouts{udpIdle: time.Minute}}
}

// parseOptions parses the --backend-option pairs.
func parseOptions(pairs map[string]string) (settings, error) {
	s := defaults()
	var errs []error
	for name, text := range pairs {
		var err error
		switch name {
		case optionEnvoy:
			s.envoy = text
		case optionTable:
			s.table = text
		case optionConcurrency:
			s.concurrency, err = strconv.Atoi(text)
			if err != nil || s.concurrency < 1 {
				err = errors.New("give a number of threads, such as 4")
			}
		case optionDrainTime:
			s.drainTime, err = parseDuration(text, time.Second)
		case optionCloseTime:
			s.closeTime, err = parseDuration(text, 0)
		case optionIdle:
			s.idle, err = parseDuration(text, 0)
		case optionUDPIdle:
			s.udpIdle, err = parseDuration(text, time.Second)
		case optionMemory:
			s.memoryMiB, err = strconv.Atoi(text)
			if err != nil || s.memoryMiB < 1 {
				err = errors.New("give a number of MiB, such as 2048")
			}
		default:
			err = fmt.Errorf("no such option; the Envoy dataplane has %s", strings.Join([]string{optionEnvoy, optionTable, optionConcurrency, optionDrainTime, optionCloseTime, optionIdle, optionUDPIdle, optionMemory}, ", "))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("backend option %s=%s: %w", name, text, err))
		}
	}
	return s, errors.Join(errs...)
}

func parseDuration(text string, shortest time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d < shortest {
		return 0, fmt.Errorf("give a duration of at least %s, such as 90s", shortest)
	}
	return d, nil
}

// installEnvoy says what to do if there is no Envoy.
const installEnvoy = "install one, or name it with --backend-option " + optionEnvoy + "=/path/to/envoy"

// findEnvoy finds Envoy's binary: by the option, in the directory of this binary, or where packages install it.
func findEnvoy(ctx context.Context, option string) (string, error) {
	candidates := []string{option}
	if option == "" {
		candidates = []string{besideThis("envoy"), "/usr/local/bin/envoy", "/usr/bin/envoy"}
	}
	for _, path := range candidates {
		found, err := exec.LookPath(path)
		if err != nil {
			continue
		}
		if found, err = filepath.Abs(found); err != nil {
			return "", err
		}
		return found, checkVersion(ctx, found)
	}
	return "", fmt.Errorf("no Envoy in any of %v: %s", candidates, installEnvoy)
}

// oldestMinor is the oldest minor version of Envoy 1 that accepts this configuration: 1.38 has no UDP session filter ext_authz. Before 1.40 Envoy loses
// datagrams for a second or two when it is replaced.
const oldestMinor = 39

// versionTimeout is the deadline for envoy --version.
const versionTimeout = time.Minute

// versionLine matches the output of envoy --version: commit/version/state of the tree/kind of build/TLS library.
var versionLine = regexp.MustCompile(`version: [0-9a-f]+/1\.(\d+)\.(\d+)`)

func checkVersion(ctx context.Context, envoy string) error {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	output, err := exec.CommandContext(ctx, envoy, "--version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s --version: %w: %s", envoy, err, strings.TrimSpace(string(output)))
	}
	found := versionLine.FindSubmatch(output)
	if found == nil {
		return fmt.Errorf("%s --version does not print a version of Envoy, but %q", envoy, strings.TrimSpace(string(output)))
	}
	if minor, err := strconv.Atoi(string(found[1])); err != nil || minor < oldestMinor {
		return fmt.Errorf("%s is Envoy 1.%s.%s; the Envoy dataplane needs 1.%d or later", envoy, found[1], found[2], oldestMinor)
	}
	return nil
}

// besideThis returns the path of a binary in the directory of this one.
func besideThis(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}
