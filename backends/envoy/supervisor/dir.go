package supervisor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/statefile"
)

// Dir is a directory that a supervisor, its Envoy and a plugin share. It must be private to them.
type Dir string

// The sockets, the logs, the files and the lock of the directory.
func (d Dir) Admin() string            { return filepath.Join(string(d), "admin.sock") }
func (d Dir) XDS() string              { return filepath.Join(string(d), "xds.sock") }
func (d Dir) Log() string              { return filepath.Join(string(d), "envoy.log") }
func (d Dir) OwnLog() string           { return filepath.Join(string(d), "supervisor.log") }
func (d Dir) lock() string             { return filepath.Join(string(d), "supervisor.pid") }
func (d Dir) wanted() string           { return filepath.Join(string(d), "wanted.json") }
func (d Dir) running() string          { return filepath.Join(string(d), "running.json") }
func (d Dir) hotRestartSocket() string { return filepath.Join(string(d), "hot") }
func (d Dir) baseID() string           { return filepath.Join(string(d), "base-id") }
func (d Dir) bootstrap(launch int) string {
	return filepath.Join(string(d), fmt.Sprintf("bootstrap-%d.yaml", launch))
}

// sharedMemory returns the file by which Envoy processes of a hot restart find each other. Its name has ten times the base ID. Envoy never removes it.
func sharedMemory(base uint64) string { return fmt.Sprintf("/dev/shm/envoy_shared_memory_%d", 10*base) }

// base reads the base ID of the Envoy processes that were started last, by which those of a hot restart find each other.
func (d Dir) base() (uint64, error) {
	text, err := os.ReadFile(d.baseID())
	if err != nil {
		return 0, err
	}
	base, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("base id in %s: %w", d.baseID(), err)
	}
	return base, nil
}

// removeSharedMemory removes the shared memory of the Envoy processes that were started last.
func (d Dir) removeSharedMemory() error {
	base, err := d.base()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.Remove(sharedMemory(base)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// longestSocketPath is the maximum length of the path of a Unix socket (unix(7)).
const longestSocketPath = 107

// check returns an error if the directory's name is too long for sockets in it.
func (d Dir) check() error {
	if len(d.Admin()) > longestSocketPath {
		return fmt.Errorf("state directory %s: its name is too long for a Unix socket in it; use one of at most %d characters", d, longestSocketPath-len("/admin.sock"))
	}
	return nil
}

// Wanted says which Envoy is to run, and how.
type Wanted struct {
	// Envoy is the path of its binary.
	Envoy string `json:"envoy"`
	// Bootstrap is its configuration. LaunchMark in it is replaced by the number of the launch.
	Bootstrap string `json:"bootstrap"`
	// Concurrency is the number of its threads; 0 means one for each processor.
	Concurrency int `json:"concurrency,omitempty"`
	// DrainSeconds is how long connections may go on after their Envoy or their listener was replaced.
	DrainSeconds int `json:"drainSeconds"`
}

// LaunchMark is replaced by the number of the launch in a bootstrap.
const LaunchMark = "@LAUNCH@"

// identity returns a hash of everything that a running Envoy cannot change: if it differs, Envoy has to be replaced.
func (w Wanted) identity() (string, error) {
	binary, err := os.Stat(w.Envoy)
	if err != nil {
		return "", fmt.Errorf("Envoy's binary: %w", err)
	}
	text, err := json.Marshal(w)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(fmt.Appendf(text, "%d %d", binary.Size(), binary.ModTime().UnixNano()))
	return hex.EncodeToString(sum[:]), nil
}

// Running describes the Envoy that runs.
type Running struct {
	// Launch counts the Envoys that were started with the directory.
	Launch int `json:"launch"`
	// Identity is the identity of its Wanted.
	Identity string `json:"identity"`
	// Ended says how the last serving Envoy ended, empty if none has. Another one may run.
	Ended string `json:"ended,omitempty"`
	// Problem is why the wanted Envoy does not run. A former Envoy may run.
	Problem string `json:"problem,omitempty"`
}

// Want requests an Envoy. If no supervisor runs, it starts the binary as a process that outlives the caller. A running
// supervisor replaces its Envoy if it differs.
func (d Dir) Want(w Wanted, supervisor string) error {
	if err := d.check(); err != nil {
		return err
	}
	if err := writeJSON(d.wanted(), w); err != nil {
		return err
	}
	pid, err := d.Supervisor()
	if err != nil {
		return err
	}
	if pid == 0 {
		return d.start(supervisor)
	}
	identity, err := w.identity()
	if err != nil {
		return err
	}
	if running, err := d.Running(); err == nil && running.Identity == identity && running.Problem == "" {
		return nil
	}
	return syscall.Kill(pid, syscall.SIGHUP)
}

// Running returns what the supervisor runs.
func (d Dir) Running() (Running, error) {
	var r Running
	return r, readJSON(d.running(), &r)
}

// Supervisor returns the process number of the directory's supervisor, or 0.
func (d Dir) Supervisor() (int, error) {
	f, err := os.Open(d.lock())
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err == nil {
		return 0, nil // there is no supervisor; Close releases the lock
	}
	text, err := os.ReadFile(d.lock())
	if err != nil {
		return 0, err
	}
	pid, err := parseProcessID(text)
	if err != nil {
		return 0, fmt.Errorf("read the process id of Envoy's supervisor in %s: %w; end kubelb-envoy by hand", d.lock(), err)
	}
	return pid, nil
}

// parseProcessID parses the process id that a supervisor wrote into its lock, 0 if it has not written one yet. The process gets a signal, so the id
// must be greater than 1: for kill(2), 0 and negative numbers are process groups and all processes.
func parseProcessID(text []byte) (int, error) {
	if len(text) == 0 {
		return 0, nil
	}
	pid, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 32)
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("%.20q is not a process id", text)
	}
	return int(pid), nil
}

func (d Dir) start(binary string) error {
	log, err := os.OpenFile(d.OwnLog(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(binary, "--state-dir="+string(d))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start Envoy's supervisor: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // avoids a zombie if it ends before this process
	return d.awaitSupervisor(ended)
}

// startTimeout is the deadline for a supervisor to take its lock.
const startTimeout = 10 * time.Second

// awaitSupervisor returns when the directory has a supervisor. Before that Stop would not find it, and would leave it running
// without a directory.
func (d Dir) awaitSupervisor(ended <-chan error) error {
	for begin := time.Now(); time.Since(begin) < startTimeout; time.Sleep(5 * time.Millisecond) {
		if pid, err := d.Supervisor(); err != nil || pid != 0 {
			return err
		}
		select {
		case err := <-ended:
			if err == nil {
				err = errors.New("exit status 0")
			}
			return fmt.Errorf("Envoy's supervisor ended at once (see %s): %w", d.OwnLog(), err)
		default:
		}
	}
	return fmt.Errorf("Envoy's supervisor did not start within %v (see %s)", startTimeout, d.OwnLog())
}

// Stop ends the directory's supervisor and its Envoys, and returns when they have ended.
func (d Dir) Stop(ctx context.Context) error {
	for signalled := 0; ; {
		pid, err := d.Supervisor()
		if err != nil || pid == 0 {
			return err
		}
		if pid != signalled {
			if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("end Envoy's supervisor, process %d: %w", pid, err)
			}
			signalled = pid
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("Envoy's supervisor, process %d, does not end: %w", pid, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// acquire makes this process the only supervisor of the directory.
func (d Dir) acquire() (*os.File, error) {
	if err := errors.Join(d.check(), os.MkdirAll(string(d), 0o700)); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(d.lock(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lockExclusive(f); err != nil {
		return nil, errors.Join(fmt.Errorf("%s already has a supervisor", d), f.Close())
	}
	// Truncated first: with digits of a former id behind it, this id would be that of another process.
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// lockExclusive tries several times: Supervisor holds a shared lock for a moment.
func lockExclusive(f *os.File) error {
	var err error
	for range 50 {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

// writeJSON replaces the file. A reader sees the old content or the new.
func writeJSON(path string, content any) error {
	text, err := json.Marshal(content)
	if err != nil {
		return err
	}
	return statefile.Write(path, text)
}

// readJSON does not change the content if there is no such file.
func readJSON(path string, content any) error {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, content); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}
