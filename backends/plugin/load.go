package plugin

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"

	"kubelb.k8c.io/backends/dataplane"
)

// Options say which plugin to start, and how.
type Options struct {
	// Path is the plugin's binary.
	Path string
	// Checksum is the binary's SHA-256 in hexadecimal. If it is empty, the binary is not checked.
	Checksum string
	// SocketDir is a directory for the socket of this plugin only. Load makes it with mode 0700 and removes old sockets. The
	// path of a socket has at most 107 bytes.
	SocketDir string
	// Log gets what the plugin writes to its standard error, and while it serves, also to its standard output. Nil drops it.
	Log io.Writer
}

// Process is a plugin that runs.
type Process struct {
	dataplane.Dataplane
	client   *goplugin.Client
	command  *exec.Cmd
	lifeline *os.File
	stop     sync.Once
}

// Find returns the path of a plugin. A name such as nftables is looked up as kubelb-backend-nftables in the directory of
// the running binary, and then in PATH. A name with a slash is a path already.
func Find(nameOrPath string) (string, error) {
	if filepath.Base(nameOrPath) != nameOrPath {
		return filepath.Abs(nameOrPath)
	}
	binary := "kubelb-backend-" + nameOrPath
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), binary)
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath(binary)
	if err != nil {
		return "", fmt.Errorf("backend %q: no binary %s beside this one or in PATH; install it or give a path", nameOrPath, binary)
	}
	return path, nil
}

// workingDirectory is that of each plugin, wherever the process runs that starts it.
const workingDirectory = "/"

// Load starts a plugin. The plugin inherits no environment, no working directory, and only one descriptor, the lifeline: when
// this process ends, for whatever reason, so does the plugin. The caller ends it with Stop.
func Load(options Options) (*Process, error) {
	if err := emptySocketDir(options.SocketDir); err != nil {
		return nil, fmt.Errorf("socket directory: %w", err)
	}
	path, err := filepath.Abs(options.Path)
	if err != nil {
		return nil, fmt.Errorf("start backend %s: %w", options.Path, err)
	}
	secure, err := checksum(options.Checksum)
	if err != nil {
		return nil, err
	}
	readEnd, writeEnd, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("lifeline: %w", err)
	}
	defer readEnd.Close()
	cmd := exec.Command(path)
	cmd.Dir = workingDirectory
	cmd.ExtraFiles = []*os.File{readEnd}
	// go-plugin has a setting for this, but ignores it for a process that it starts itself.
	cmd.Env = []string{goplugin.EnvUnixSocketDir + "=" + options.SocketDir}
	log := &sharedLog{to: options.Log}
	client := goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig:  handshake,
		VersionedPlugins: map[int]goplugin.PluginSet{protocolVersion: {pluginName: &grpcPlugin{}}},
		Cmd:              cmd,
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		AutoMTLS:         true,
		SkipHostEnv:      true,
		SecureConfig:     secure,
		Stderr:           log,
		// A plugin that does not serve by Serve of this package sends its later output here.
		SyncStdout: log,
		SyncStderr: log,
		Logger:     hclog.NewNullLogger(),
	})
	p := &Process{client: client, command: cmd, lifeline: writeEnd}
	if err := p.connect(); err != nil {
		p.Stop()
		if status := p.ExitStatus(); status != "" {
			err = fmt.Errorf("its process has ended (%s): %w", status, err)
		}
		return nil, fmt.Errorf("start backend %s: %w", options.Path, err)
	}
	return p, nil
}

// sharedLog lets several goroutines write to one log: go-plugin reads the standard error, and what a plugin that serves without Serve
// writes to its standard output and error, which it sends over gRPC.
type sharedLog struct {
	mu sync.Mutex // guards to
	to io.Writer
}

// Write implements io.Writer.
func (l *sharedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.to == nil {
		return len(p), nil
	}
	return l.to.Write(p)
}

// emptySocketDir makes the private directory, and removes sockets of processes that were killed.
func emptySocketDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type()&os.ModeSocket != 0 {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *Process) connect() error {
	protocol, err := p.client.Client()
	if err != nil {
		return err
	}
	raw, err := protocol.Dispense(pluginName)
	if err != nil {
		return err
	}
	d, ok := raw.(dataplane.Dataplane)
	if !ok {
		return fmt.Errorf("it serves %T, not a dataplane", raw)
	}
	p.Dataplane = d
	return nil
}

func checksum(text string) (*goplugin.SecureConfig, error) {
	if text == "" {
		return nil, nil
	}
	sum, err := hex.DecodeString(text)
	if err != nil || len(sum) != sha256.Size {
		return nil, fmt.Errorf("checksum %q is not a SHA-256 in hexadecimal", text)
	}
	return &goplugin.SecureConfig{Checksum: sum, Hash: sha256.New()}, nil
}

// Pid returns the id of the process, 0 if it never ran.
func (p *Process) Pid() int {
	pid, err := strconv.Atoi(p.client.ID())
	if err != nil {
		return 0
	}
	return pid
}

// Exited reports whether the process has ended.
func (p *Process) Exited() bool { return p.client.Exited() }

// ExitStatus says how the process ended, such as "exit status 2" or "signal: killed". It is empty while the process runs. If it is not, the log
// has the process's last words, unless another process has its standard error open.
func (p *Process) ExitStatus() (status string) {
	for range 50 {
		if p.client.Exited() {
			return p.command.ProcessState.String()
		}
		if p.command.Process == nil {
			return ""
		}
		if status = zombieStatus(p.command.Process.Pid); status == "" {
			return ""
		}
		time.Sleep(10 * time.Millisecond) // go-plugin reads what the process wrote
	}
	return status
}

// zombieStatus returns how a process ended that nobody has waited for yet. go-plugin does not wait for a process while
// another one, which the plugin started, has its standard error open.
func zombieStatus(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The second field is a name in parentheses, which may contain anything. The state follows. The last field is the status (proc_pid_stat(5)).
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) == 0 || fields[0] != "Z" {
		return ""
	}
	code, err := strconv.Atoi(fields[len(fields)-1])
	if err != nil {
		return ""
	}
	status := syscall.WaitStatus(code)
	if status.Signaled() {
		return "signal: " + status.Signal().String()
	}
	return fmt.Sprintf("exit status %d", status.ExitStatus())
}

// A process is asked to end, and killed after stopLimit. After stopWait nobody waits for it any more: a process in the kernel may not end.
const (
	stopLimit = 3 * time.Second
	stopWait  = 2 * stopLimit
)

// Stop ends the process. Its state in the kernel stays. Stop takes a few seconds at most, even if the process does not answer.
func (p *Process) Stop() {
	p.stop.Do(func() {
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			p.client.Kill()
			p.lifeline.Close()
		}()
		force := time.AfterFunc(stopLimit, func() { _ = p.kill() })
		defer force.Stop()
		select {
		case <-ended:
		case <-time.After(stopWait):
		}
	})
}

// Kill kills the process, as in a crash.
func (p *Process) Kill() error {
	err := p.kill()
	p.Stop()
	return err
}

func (p *Process) kill() error {
	pid := p.Pid()
	if pid == 0 {
		return errors.New("the plugin has no process")
	}
	process, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	return process.Kill()
}
