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
func (d Dir) Admin() string   { return filepath.Join(string(d), "admin.sock") }
func (d Dir) XDS() string     { return filepath.Join(string(d), "xds.sock") }
func (d Dir) Log() string     { return filepath.Join(string(d), "envoy.log") }
func (d Dir) OwnLog() string  { return filepath.Join(string(d), "supervisor.log") }
func (d Dir) lock() string    { return filepath.Join(string(d), "supervisor.pid") }
func (d Dir) wanted() string  { return filepath.Join(string(d), "wanted.json") }
func (d Dir) running() string { return filepath.Join(string(d), "running.json") }
func (d Dir) hot() string     { return filepath.Join(string(d), "hot") }
func (d Dir) baseID() string  { return filepath.Join(string(d), "base-id") }
func (d Dir) bootstrap(launch int) string {
	return filepath.Join(string(d), fmt.Sprintf("bootstrap-%d.yaml", launch))
}

// sharedMemory is the file by which Envoy processes of a hot restart find each other. Envoy names it by ten times its base ID, and never removes it.
func sharedMemory(base uint64) string { return fmt.Sprintf("/dev/shm/envoy_shared_memory_%d", 10*base) }

// base reads the base ID of the Envoy processes that were launched last, by which those of a hot restart find each other.
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

// removeSharedMemory removes the shared memory of the Envoy processes that were launched last.
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

// longestSocketPath is what the kernel takes as the path of a Unix socket (unix(7)).
const longestSocketPath = 107

// check says whether the directory's name leaves room for sockets in it.
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
	// Bootstrap is its configuration; LaunchMark in it stands for the number of the launch.
	Bootstrap string `json:"bootstrap"`
	// Concurrency is the number of its threads; 0 means one for each processor.
	Concurrency int `json:"concurrency,omitempty"`
	// DrainSeconds is how long connections may go on that an Envoy holds which has been replaced, or whose listener has been.
	DrainSeconds int `json:"drainSeconds"`
}

// LaunchMark stands for the number of the launch in a bootstrap.
const LaunchMark = "@LAUNCH@"

// identity changes with everything that a running Envoy does not take over by itself.
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

// Running says what runs.
type Running struct {
	// Launch counts the Envoys that the directory has seen.
	Launch int `json:"launch"`
	// Identity is that of what was wanted, see Wanted.
	Identity string `json:"identity"`
	// Ended is how the last Envoy ended that served; empty if none has. Another one may run.
	Ended string `json:"ended,omitempty"`
	// Problem is why what is wanted does not run; an Envoy of before may.
	Problem string `json:"problem,omitempty"`
}

// Want asks for an Envoy. The supervisor, a binary, is started if none runs, as a process of its own that outlives the
// caller; one that runs replaces its Envoy if that is another one.
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
		return 0, nil // nobody holds it; closing gives it back
	}
	text, err := os.ReadFile(d.lock())
	if err != nil {
		return 0, err
	}
	pid, err := processNumber(text)
	if err != nil {
		return 0, fmt.Errorf("read which process is the supervisor of Envoy, in %s: %w; end kubelb-envoy by hand", d.lock(), err)
	}
	return pid, nil
}

// processNumber is what a supervisor wrote into its lock, 0 while it has not. It is signalled, so it must be a process', and not the first
// one's: for kill(2) 0 and less are groups, and all processes.
func processNumber(text []byte) (int, error) {
	if len(text) == 0 {
		return 0, nil
	}
	pid, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 32)
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("%.20q is no number of a process", text)
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
		return fmt.Errorf("start the supervisor of Envoy: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // so that it leaves no zombie if it ends first
	return d.awaitSupervisor(ended)
}

// startTimeout is how long a supervisor may take until it holds its lock.
const startTimeout = 10 * time.Second

// awaitSupervisor returns when the directory has a supervisor: until then Stop would not find it, and leave it to run without
// a directory.
func (d Dir) awaitSupervisor(ended <-chan error) error {
	for begin := time.Now(); time.Since(begin) < startTimeout; time.Sleep(5 * time.Millisecond) {
		if pid, err := d.Supervisor(); err != nil || pid != 0 {
			return err
		}
		select {
		case err := <-ended:
			return fmt.Errorf("the supervisor of Envoy ended at once (see %s): %w", d.OwnLog(), err)
		default:
		}
	}
	return fmt.Errorf("the supervisor of Envoy does not come up within %v (see %s)", startTimeout, d.OwnLog())
}

// Stop ends the directory's supervisor and its Envoys, and returns when they are gone.
func (d Dir) Stop(ctx context.Context) error {
	for signalled := 0; ; {
		pid, err := d.Supervisor()
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

// acquire makes this process the directory's supervisor; there is only one.
func (d Dir) acquire() (*os.File, error) {
	if err := errors.Join(d.check(), os.MkdirAll(string(d), 0o700)); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(d.lock(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lockAlone(f); err != nil {
		return nil, errors.Join(fmt.Errorf("%s has a supervisor already", d), f.Close())
	}
	// Emptied first: a part of a former number behind this one would be another process.
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// lockAlone tries for a moment: whoever asks for the supervisor holds the lock for as long as that takes, see Supervisor.
func lockAlone(f *os.File) error {
	var err error
	for range 50 {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

// writeJSON replaces the file; a reader sees the old content or the new.
func writeJSON(path string, content any) error {
	text, err := json.Marshal(content)
	if err != nil {
		return err
	}
	return statefile.Write(path, text)
}

// readJSON leaves the content as it is when there is no such file.
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
