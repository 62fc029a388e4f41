// Package supervisor owns an Envoy: it starts it, starts it again at once when it dies, and ends it when asked to. It knows
// nothing of what Envoy serves; that comes from the plugin, over a socket in the same directory. So Envoy outlives the
// plugin and its upgrades.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/template"
	"time"

	"golang.org/x/sys/unix"
)

// Dir is a directory that a supervisor, its Envoy and a plugin share. It must be private to them.
type Dir string

// The sockets, the log and the lock of the directory.
func (d Dir) Admin() string     { return filepath.Join(string(d), "admin.sock") }
func (d Dir) XDS() string       { return filepath.Join(string(d), "xds.sock") }
func (d Dir) Log() string       { return filepath.Join(string(d), "envoy.log") }
func (d Dir) lock() string      { return filepath.Join(string(d), "supervisor.pid") }
func (d Dir) bootstrap() string { return filepath.Join(string(d), "bootstrap.yaml") }

// longestSocketPath is what the kernel takes as the path of a Unix socket (unix(7)).
const longestSocketPath = 107

// restartPause keeps an Envoy that dies at once from taking the whole processor.
const restartPause = 200 * time.Millisecond

// stopTimeout is how long Envoy may take to end.
const stopTimeout = 5 * time.Second

// Run starts Envoy and keeps it running until ctx ends. The caller must be locked to an operating system thread that lives
// as long: Envoy asks the kernel for SIGTERM when the thread that started it ends.
func Run(ctx context.Context, dir Dir, envoy string) error {
	lock, err := dir.acquire()
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := writeBootstrap(dir); err != nil {
		return err
	}
	for ctx.Err() == nil {
		begin := time.Now()
		if err := runOnce(ctx, dir, envoy); err != nil && ctx.Err() == nil {
			fmt.Fprintf(os.Stderr, "kubelb-envoy: %v; starting it again\n", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(restartPause - time.Since(begin)):
		}
	}
	return nil
}

// runOnce runs Envoy until it ends, or ends it when ctx does.
func runOnce(ctx context.Context, dir Dir, envoy string) error {
	cmd := exec.CommandContext(ctx, envoy, "--config-path", dir.bootstrap(), "--use-dynamic-base-id", "--log-level", "warning", "--log-path", dir.Log())
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTimeout
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start Envoy: %w", err)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("Envoy ended (see %s): %w", dir.Log(), err)
	}
	return errors.New("Envoy ended")
}

// acquire makes this process the directory's supervisor; there is only one.
func (d Dir) acquire() (*os.File, error) {
	if len(d.Admin()) > longestSocketPath {
		return nil, fmt.Errorf("state directory %s: its name is too long for a Unix socket in it; use one of at most %d characters", d, longestSocketPath-len("/admin.sock"))
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(d.lock(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s has a supervisor already", d), f.Close())
	}
	if err := errors.Join(f.Truncate(0), writeAll(f, strconv.Itoa(os.Getpid()))); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func writeAll(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

// Running returns the process number of the directory's supervisor, or 0.
func (d Dir) Running() (int, error) {
	f, err := os.Open(d.lock())
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err == nil {
		return 0, nil // nobody holds it; closing gives it back
	}
	text, err := os.ReadFile(d.lock())
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, nil // it is just writing
	}
	return pid, nil
}

// Start starts the supervisor, a binary, as a process of its own that outlives the caller.
func (d Dir) Start(binary, envoy string) error {
	log, err := os.OpenFile(filepath.Join(string(d), "supervisor.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(binary, "--state-dir="+string(d), "--envoy="+envoy)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the supervisor of Envoy: %w", err)
	}
	go func() { _ = cmd.Wait() }() // so that it leaves no zombie if it ends first
	return nil
}

// Stop ends the directory's supervisor and its Envoy, and returns when they are gone.
func (d Dir) Stop(ctx context.Context) error {
	for signalled := 0; ; {
		pid, err := d.Running()
		if err != nil || pid == 0 {
			return err
		}
		if pid != signalled {
			if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("end the supervisor of Envoy, process %d: %w", pid, err)
			}
			signalled = pid
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the supervisor of Envoy, process %d, does not end: %w", pid, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func writeBootstrap(d Dir) error {
	f, err := os.OpenFile(d.bootstrap(), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(bootstrap.Execute(f, d), f.Close())
}

// bootstrap: everything comes over one stream from the plugin's socket. Statistics are those that the plugin reads.
var bootstrap = template.Must(template.New("bootstrap").Parse(`node: {id: kubelb, cluster: kubelb}
admin:
  address: {pipe: {path: "{{.Admin}}", mode: 384}}
dynamic_resources:
  ads_config: &ads
    api_type: DELTA_GRPC
    transport_api_version: V3
    grpc_services:
    - envoy_grpc:
        cluster_name: xds
        retry_policy: {retry_back_off: {base_interval: 0.05s, max_interval: 0.5s}}
  cds_config: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s}
  lds_config: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s}
static_resources:
  clusters:
  - name: xds
    connect_timeout: 1s
    load_assignment: {cluster_name: xds, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: "{{.XDS}}"}}}}]}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
stats_config:
  stats_matcher: {inclusion_list: {patterns: [{prefix: "listener_manager."}, {prefix: "cluster_manager."}, {prefix: "control_plane."}, {suffix: "downstream_cx_total"}, {suffix: "downstream_sess_total"}]}}
`))
