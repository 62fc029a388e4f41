// Command bad is a plugin that behaves badly. The name of its file says how.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/plugin"
)

func main() {
	b := &bad{how: filepath.Base(os.Args[0])}
	if b.how == "hangs-at-start" {
		select {}
	}
	if b.how == "dies-at-start" {
		fmt.Fprintln(os.Stderr, "open /etc/bad.conf: no such file")
		fmt.Fprint(os.Stderr, "cannot begin")
		os.Exit(5)
	}
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	plugin.Serve(b)
	select {} // it does not end in good order
}

type bad struct {
	dataplane.Fake
	how        string
	configured bool
}

// Describe implements dataplane.Dataplane.
func (b *bad) Describe(ctx context.Context) (dataplane.Description, error) {
	if b.how == "hangs-in-describe" || b.how == "hangs-once-configured" && b.configured {
		select {}
	}
	d, err := b.Fake.Describe(ctx)
	d.Name = b.how
	return d, err
}

// Configure implements dataplane.Dataplane.
func (b *bad) Configure(ctx context.Context, config dataplane.Config) error {
	b.configured = true
	switch b.how {
	case "hangs-in-configure":
		select {}
	case "leaves-much":
		if err := leaveMuch(config); err != nil {
			return err
		}
	}
	return b.Fake.Configure(ctx, config)
}

// Apply implements dataplane.Dataplane.
func (b *bad) Apply(ctx context.Context, change dataplane.Change) (dataplane.Result, error) {
	switch b.how {
	case "hangs-in-apply", "leaves-much":
		select {}
	case "dies-in-apply":
		for i := range 200 {
			fmt.Fprintf(os.Stderr, "line %d of the plugin\n", i+1)
		}
		fmt.Println("to standard output")
		fmt.Fprint(os.Stderr, "fatal: the table is full")
		os.Exit(7)
	case "panics-in-apply":
		panic("the table is full")
	}
	return b.Fake.Apply(ctx, change)
}

// leaveMuch starts a process that does not end with this one, and makes files, a mount and a pinned object.
func leaveMuch(config dataplane.Config) error {
	stays := exec.Command("/bin/sleep", "1000")
	stays.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stays.Stderr = os.Stderr
	if err := stays.Start(); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(config.StateDir, "state"), nil, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile("/dev/shm/of-a-bad-plugin", nil, 0o600); err != nil {
		return err
	}
	if err := os.Mkdir("/sys/fs/bpf/of-a-bad-plugin", 0o700); err != nil {
		return err
	}
	mount := filepath.Join(config.StateDir, "mount")
	if err := os.Mkdir(mount, 0o700); err != nil {
		return err
	}
	return unix.Mount("tmpfs", mount, "tmpfs", 0, "")
}
