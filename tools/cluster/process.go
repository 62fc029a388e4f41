package cluster

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
	"time"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/conformance/netlab"
)

// Process is a running program in a network namespace, which logs to a file.
type Process struct {
	Name string
	Log  string
	cmd  *exec.Cmd
	done chan struct{}
}

// Start starts a program in the namespace. Its output goes to NAME.log in dir.
func Start(ns *netlab.Namespace, dir, name string, argv ...string) (*Process, error) {
	p := &Process{Name: name, Log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := ns.Do(p.cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// PID returns the program's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Child is a child process of a program.
type Child struct {
	PID int
	// Command is the command line, separated by spaces.
	Command string
}

// Children returns the running child processes of the program.
func (p *Process) Children() ([]Child, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var out []Child
	for _, file := range stats {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // the process has ended
		}
		// The name, in parentheses, may contain any character: proc_pid_stat(5).
		text := string(stat)
		fields := strings.Fields(text[strings.LastIndex(text, ")")+1:])
		if len(fields) < 2 || fields[0] == "Z" || fields[1] != strconv.Itoa(p.PID()) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return nil, err
		}
		command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil {
			out = append(out, Child{pid, strings.TrimSpace(strings.ReplaceAll(string(command), "\x00", " "))})
		}
	}
	return out, nil
}

// Usage has the resources that a process uses.
type Usage struct {
	// ResidentKiB is the resident memory, Descriptors the number of open files.
	ResidentKiB, Descriptors int
}

// UsageOf returns the resources that a process uses.
func UsageOf(pid int) (u Usage, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	_, resident, _ := strings.Cut(string(status), "VmRSS:")
	if _, err := fmt.Sscan(resident, &u.ResidentKiB); err != nil {
		return u, fmt.Errorf("resident memory of process %d: %w", pid, err)
	}
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	u.Descriptors = len(open)
	return u, err
}

// Kill ends the program at once, like a crash, and waits for its end.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Terminate asks the program to end, and does not wait.
func (p *Process) Terminate() error { return p.cmd.Process.Signal(syscall.SIGTERM) }

// Stop asks the program to end, and kills it if it does not.
func (p *Process) Stop() {
	_ = p.Terminate() // the program may have ended by itself
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		p.Kill()
	}
}

// Freeze suspends the program until Thaw. When it returns, no thread of the program runs.
func (p *Process) Freeze() error {
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	return unix.Waitid(unix.P_PID, p.PID(), nil, unix.WSTOPPED|unix.WNOWAIT, nil)
}

// Thaw lets the program continue.
func (p *Process) Thaw() error { return p.cmd.Process.Signal(syscall.SIGCONT) }

// Exited reports whether the program has ended.
func (p *Process) Exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Tail returns the end of the program's log.
func (p *Process) Tail() string {
	content, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// await polls until done returns true. It fails at once if one of the programs ends.
func await(ctx context.Context, what string, limit time.Duration, done func() bool, programs ...*Process) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for !done() {
		for _, p := range programs {
			if p.Exited() {
				return fmt.Errorf("%s: %s ended:\n%s", what, p.Name, p.Tail())
			}
		}
		select {
		case <-ctx.Done():
			err := fmt.Errorf("%s: not within %s", what, limit)
			for _, p := range programs {
				err = errors.Join(err, fmt.Errorf("%s logs:\n%s", p.Name, p.Tail()))
			}
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
	return nil
}

// run runs a program in the namespace, and returns its output.
func run(ctx context.Context, ns *netlab.Namespace, stdin string, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	var output []byte
	err := ns.Do(func() (err error) {
		output, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		return string(output), fmt.Errorf("%s: %w: %s", filepath.Base(argv[0]), err, strings.TrimSpace(string(output)))
	}
	return string(output), nil
}
