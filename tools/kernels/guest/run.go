package guest

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Run is the first process of a kernel: it runs the plan, sends the results to the host, and turns the machine off.
func Run() {
	if err := run(); err != nil {
		printLine("%s%v", Failed, err)
	} else {
		printLine(AllEnded)
	}
	unix.Sync()
	fmt.Println("kernels: cannot turn the machine off:", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

// printLine prints a line for the host. It begins with a newline, because the last output may not end with one.
func printLine(format string, args ...any) { fmt.Printf("\n"+format+"\n", args...) }

func run() error {
	if err := prepare(); err != nil {
		return err
	}
	var plan Plan
	modules := Modules{}
	if err := errors.Join(readJSON(PlanPath, &plan), readJSON(ModulesPath, &modules)); err != nil {
		return err
	}
	for _, name := range plan.Modules {
		if err := modules.load(name); err != nil {
			return err
		}
	}
	fmt.Printf("kernels: Linux %s, %d modules loaded by name\n", release(), len(plan.Modules))
	results, err := openResults(modules)
	if err != nil {
		return err
	}
	defer results.port.to.Close()
	if err := runSteps(plan.Steps, results.send); err != nil {
		return err
	}
	return results.archive.Close()
}

// runSteps runs the steps. It sends the results of a step before it reports the step's end and the number of sent bytes.
func runSteps(steps []Step, send func() (int64, error)) error {
	for _, step := range steps {
		printLine("%s%s", StepBegan, step.Name)
		status, err := step.run(terminationTime)
		if err != nil {
			return fmt.Errorf("step %s: %w", step.Name, err)
		}
		sent, err := send()
		if err != nil {
			return fmt.Errorf("results of step %s: %w", step.Name, err)
		}
		printLine("%s%s %d %d", StepEnded, step.Name, status, sent)
	}
	return nil
}

func release() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(name.Release[:])
}

// prepare mounts the file systems that programs need, and sets the loopback interface up.
func prepare() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/dev/shm"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"}, {"bpf", "/sys/fs/bpf"}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	if err := errors.Join(os.Chmod("/tmp", 0o1777), os.MkdirAll(ResultsDir, 0o755)); err != nil {
		return err
	}
	return loopbackUp()
}

func loopbackUp() error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("loopback interface: %w", err)
	}
	return nil
}

// progressInterval is how often the guest reports that a step runs. The host treats a guest that is silent for longer as hung.
const progressInterval = 30 * time.Second

// terminationTime is how long a step may take to end after it has reached its limit.
const terminationTime = 20 * time.Second

// run runs the step and returns its exit status. That is 128 plus the number of a signal that ended the step, or StatusLimit if the step exceeded its limit.
// At its limit, the step gets SIGTERM, and is killed after terminationTime.
func (s Step) run(terminationTime time.Duration) (int, error) {
	env := append([]string{"PATH=/bin:/sbin:/usr/sbin:/usr/bin", "HOME=/tmp"}, s.Env...)
	began := time.Now()
	// A process group of its own, so that the programs that the step started end with it.
	pid, err := syscall.ForkExec(s.Args[0], s.Args, &syscall.ProcAttr{Dir: "/", Env: env, Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setpgid: true}})
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", s.Args[0], err)
	}
	ended := make(chan int, 1)
	go func() { ended <- reap(pid) }()
	ticker := time.NewTicker(progressInterval)
	defer ticker.Stop()
	var limit, kill <-chan time.Time
	if s.Limit > 0 {
		limit = time.After(s.Limit)
	}
	tooLong := false
	for {
		select {
		case status := <-ended:
			if !tooLong {
				return status, nil
			}
			_ = syscall.Kill(-pid, syscall.SIGKILL) // the rest of the process group
			return StatusLimit, nil
		case <-limit:
			fmt.Printf("kernels: %s exceeded its limit of %s and is stopped\n", s.Name, s.Limit)
			tooLong, kill = true, time.After(terminationTime)
			_ = syscall.Kill(-pid, syscall.SIGTERM)
		case <-kill:
			_ = syscall.Kill(-pid, syscall.SIGKILL)
		case <-ticker.C:
			fmt.Printf("kernels: %s has run for %s\n", s.Name, time.Since(began).Round(time.Second))
		}
	}
}

// reap waits for the process, and for orphaned processes that end before.
func reap(pid int) int {
	for {
		var status unix.WaitStatus
		ended, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return -1
		case ended == pid && status.Signaled():
			return 128 + int(status.Signal())
		case ended == pid:
			return status.ExitStatus()
		}
	}
}

// Panic is the argument with which command init makes the kernel panic, for a test of the host.
const Panic = "panic"

// PanicNow makes the kernel panic (kernel documentation, admin-guide/sysrq). It returns only if that fails.
func PanicNow() error { return os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0) }
