package kernels

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/tools/kernels/guest"
)

// Cache has unpacked kernels, and the files that programs on them need. It is outside the checkout.
type Cache struct {
	Dir string
	// Log gets a line for each download.
	Log io.Writer
}

// Spec names a kernel by its series, such as 6.12, and by Go's name of the architecture.
type Spec struct{ Series, Arch string }

// ParseSpec reads SERIES/ARCH.
func ParseSpec(text string) (Spec, error) {
	series, arch, ok := strings.Cut(text, "/")
	if !ok || series == "" || machines[arch].binary == "" {
		return Spec{}, fmt.Errorf("kernel %q: give SERIES/amd64 or SERIES/arm64, such as 6.12/amd64 or 6.1/arm64", text)
	}
	return Spec{series, arch}, nil
}

// String returns SERIES/ARCH.
func (s Spec) String() string { return s.Series + "/" + s.Arch }

// Kernel is a kernel that can be booted, or the kernel of this machine.
type Kernel struct {
	Spec
	// Release is the output of uname -r.
	Release string
	// image is the path of the kernel's file, tree the directory of its modules. Paths in modules are relative to tree.
	image, tree string
	modules     guest.Modules
}

// completeFile marks a directory of the cache that is complete.
const completeFile = "complete"

// Kernel returns the newest kernel of the series in the cache. If there is none, or if refresh is set, it fetches the newest one from Debian's archive.
func (c Cache) Kernel(ctx context.Context, spec Spec, refresh bool) (Kernel, error) {
	dir := filepath.Join(c.Dir, spec.Series+"-"+spec.Arch)
	unlock, err := c.lock()
	if err != nil {
		return Kernel{}, err
	}
	defer unlock()
	if refresh || !exists(filepath.Join(dir, completeFile)) {
		if err := c.fetch(ctx, spec, dir); err != nil {
			return Kernel{}, fmt.Errorf("kernel %s: %w", spec, err)
		}
	}
	return open(spec, dir)
}

// lock waits until no other process fetches into the cache. The lock ends with the process.
func (c Cache) lock() (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(c.Dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (c Cache) fetch(ctx context.Context, spec Spec, dir string) error {
	d, err := c.debian(ctx, spec.Arch)
	if err != nil {
		return err
	}
	names, err := d.kernels(ctx, spec.Series)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return fmt.Errorf("Debian's archive has no kernel of this series for %s in %s", spec.Arch, strings.Join(suites, ", "))
	}
	work, err := os.MkdirTemp(c.Dir, "unpack")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := d.unpack(ctx, work, false, names[len(names)-1]); err != nil {
		return err
	}
	if err := decompress(ctx, work); err != nil {
		return err
	}
	modules, err := readModules(work)
	if err != nil {
		return err
	}
	text, err := json.Marshal(modules)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(work, "modules.json"), text, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(work, completeFile), []byte(names[len(names)-1]+"\n"), 0o644); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(work, dir)
}

// debian returns the archive, after reading its lists.
func (c Cache) debian(ctx context.Context, arch string) (*debian, error) {
	d := &debian{dir: filepath.Join(c.Dir, "apt-"+arch), arch: arch, log: c.Log}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return nil, err
	}
	return d, d.prepare(ctx)
}

// decompress decompresses the modules, because the guest loads uncompressed ones.
func decompress(ctx context.Context, dir string) error {
	var compressed []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(path, ".ko.xz") {
			compressed = append(compressed, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	for chunk := range slices.Chunk(compressed, 200) {
		if out, err := exec.CommandContext(ctx, "xz", append([]string{"-d", "--"}, chunk...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("decompress modules: %w\n%s", err, out)
		}
	}
	return nil
}

func open(spec Spec, dir string) (Kernel, error) {
	k := Kernel{Spec: spec, tree: dir}
	images, err := filepath.Glob(filepath.Join(dir, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return k, fmt.Errorf("kernel %s: %s has %d images, want 1: remove the directory", spec, dir, len(images))
	}
	k.image = images[0]
	k.Release = strings.TrimPrefix(filepath.Base(k.image), "vmlinuz-")
	text, err := os.ReadFile(filepath.Join(dir, "modules.json"))
	if err != nil {
		return k, err
	}
	return k, json.Unmarshal(text, &k.modules)
}

// userlandPackages have nft, the names of protocols for its rules, and a shell with the tools for commands of the documentation.
var userlandPackages = []string{"nftables", "netbase", "busybox-static"}

// Userland returns a directory with nft and its dependencies for the architecture.
func (c Cache) Userland(ctx context.Context, arch string) (string, error) {
	dir := filepath.Join(c.Dir, "userland-"+arch+"-"+strings.Join(userlandPackages, "-"))
	unlock, err := c.lock()
	if err != nil {
		return "", err
	}
	defer unlock()
	if exists(filepath.Join(dir, completeFile)) {
		return dir, nil
	}
	d, err := c.debian(ctx, arch)
	if err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(c.Dir, "unpack")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	for _, name := range userlandPackages {
		if err := d.unpack(ctx, work, true, name); err != nil {
			return "", err
		}
	}
	if err := os.WriteFile(filepath.Join(work, completeFile), nil, 0o644); err != nil {
		return "", err
	}
	return dir, os.Rename(work, dir)
}

// DefaultCache returns the cache in $KUBELB_CACHE, or in the user's cache directory.
func DefaultCache(log io.Writer) (Cache, error) {
	dir := os.Getenv("KUBELB_CACHE")
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return Cache{}, err
		}
		dir = filepath.Join(user, "kubelb")
	}
	dir = filepath.Join(dir, "kernels")
	return Cache{Dir: dir, Log: log}, os.MkdirAll(dir, 0o755)
}
