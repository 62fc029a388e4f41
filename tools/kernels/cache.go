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

// Cache holds unpacked kernels, and what programs in them need. It lies outside of the checkout.
type Cache struct {
	Dir string
	// Log is told what is fetched.
	Log io.Writer
}

// Spec names a kernel: a series as 6.12, and an architecture as Go calls it.
type Spec struct{ Series, Arch string }

// ParseSpec reads SERIES/ARCH.
func ParseSpec(text string) (Spec, error) {
	series, arch, ok := strings.Cut(text, "/")
	if !ok || series == "" || machines[arch].binary == "" {
		return Spec{}, fmt.Errorf("kernel %q: write SERIES/amd64 or SERIES/arm64, such as 6.12/amd64 or 6.1/arm64", text)
	}
	return Spec{series, arch}, nil
}

// String returns SERIES/ARCH.
func (s Spec) String() string { return s.Series + "/" + s.Arch }

// Kernel is one that can be booted.
type Kernel struct {
	Spec
	// Release is what uname -r prints in it.
	Release string
	// image is its file, tree the directory of its modules, which are listed with paths relative to that.
	image, tree string
	modules     guest.Modules
}

// complete is the file that a directory of the cache has when all of it is there.
const complete = "complete"

// Kernel returns the newest kernel of the series that is in the cache. If there is none, or refresh is set, it fetches the newest one that Debian's
// archive has.
func (c Cache) Kernel(ctx context.Context, spec Spec, refresh bool) (Kernel, error) {
	dir := filepath.Join(c.Dir, spec.Series+"-"+spec.Arch)
	unlock, err := c.lock()
	if err != nil {
		return Kernel{}, err
	}
	defer unlock()
	if refresh || !exists(filepath.Join(dir, complete)) {
		if err := c.fetch(ctx, spec, dir); err != nil {
			return Kernel{}, fmt.Errorf("kernel %s: %w", spec, err)
		}
	}
	return open(spec, dir)
}

// lock waits until no other process fetches into the cache. The kernel ends the lock with the process.
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
		return fmt.Errorf("Debian's archive has none of this series for %s in %s", spec.Arch, strings.Join(suites, ", "))
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
	if err := os.WriteFile(filepath.Join(work, complete), []byte(names[len(names)-1]+"\n"), 0o644); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(work, dir)
}

// debian is the archive, with its lists read.
func (c Cache) debian(ctx context.Context, arch string) (*debian, error) {
	d := &debian{dir: filepath.Join(c.Dir, "apt-"+arch), arch: arch, log: c.Log}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return nil, err
	}
	return d, d.prepare(ctx)
}

// decompress has modules as the kernel takes them from an initramfs of ours.
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
		return k, fmt.Errorf("kernel %s: %s has %d images: remove that directory", spec, dir, len(images))
	}
	k.image = images[0]
	k.Release = strings.TrimPrefix(filepath.Base(k.image), "vmlinuz-")
	text, err := os.ReadFile(filepath.Join(dir, "modules.json"))
	if err != nil {
		return k, err
	}
	return k, json.Unmarshal(text, &k.modules)
}

// userlandPackages are nft, the names of protocols by which rules call them, and a shell with the tools that commands of the documentation need.
var userlandPackages = []string{"nftables", "netbase", "busybox-static"}

// Userland returns a directory with nft, and all that it needs, for the architecture.
func (c Cache) Userland(ctx context.Context, arch string) (string, error) {
	dir := filepath.Join(c.Dir, "userland-"+arch+"-"+strings.Join(userlandPackages, "-"))
	unlock, err := c.lock()
	if err != nil {
		return "", err
	}
	defer unlock()
	if exists(filepath.Join(dir, complete)) {
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
	if err := os.WriteFile(filepath.Join(work, complete), nil, 0o644); err != nil {
		return "", err
	}
	return dir, os.Rename(work, dir)
}

// DefaultCache is in the user's cache directory, or where $KUBELB_CACHE says.
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
