package kernels

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"kubelb.k8c.io/tools/kernels/guest"
)

// moduleDirs are the directories whose modules a guest gets, with their dependencies.
var moduleDirs = []string{"/kernel/net/", "/kernel/lib/", "/kernel/crypto/", "/kernel/arch/", "/kernel/drivers/net/", "/kernel/drivers/virtio/", "/kernel/drivers/char/"}

// writeInitramfs writes the initramfs of the guest.
func (k Kernel) writeInitramfs(to string, r Run) (err error) {
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	a := newArchive(out)
	for _, dir := range []string{"/proc", "/sys", "/dev", "/tmp", "/run", "/etc", "/etc/sysctl.d", "/etc/modules-load.d", "/bin", "/boot", "/root"} {
		a.directory(dir)
	}
	for _, dir := range []string{"lib", "lib64"} {
		a.directory("/usr/" + dir)
		a.link("/"+dir, "usr/"+dir)
	}
	a.file("/init", r.Init)
	a.link("/sbin/modprobe", "/init")
	if err := k.addModules(a); err != nil {
		return err
	}
	plan, err := json.Marshal(r.Plan)
	if err != nil {
		return err
	}
	a.write(guest.PlanPath, plan)
	if err := addUserland(a, r.Userland); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(r.Files)) {
		a.file(name, r.Files[name])
	}
	return a.close()
}

func (k Kernel) addModules(a *archive) error {
	chosen := guest.Modules{}
	for name, module := range k.modules {
		if !slices.ContainsFunc(moduleDirs, func(dir string) bool { return strings.Contains(module.Path, dir) }) {
			continue
		}
		for _, one := range k.modules.Order(name) {
			if is, ok := k.modules[one]; ok {
				chosen[one] = is
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(chosen)) {
		module := chosen[name]
		source := filepath.Join(k.tree, module.Path)
		module.Path = underUsr("/" + module.Path)
		chosen[name] = module
		a.file(module.Path, source)
	}
	text, err := json.Marshal(chosen)
	if err != nil {
		return err
	}
	a.write(guest.ModulesPath, text)
	return k.addLists(a, chosen)
}

// addLists adds the lists of modules that hosts of a distribution have (depmod(8)), and the kernel's configuration.
func (k Kernel) addLists(a *archive, modules guest.Modules) error {
	dir := "/usr/lib/modules/" + k.Release
	var dependencies strings.Builder
	for _, name := range slices.Sorted(maps.Keys(modules)) {
		fmt.Fprintf(&dependencies, "%s:\n", strings.TrimPrefix(modules[name].Path, dir+"/"))
	}
	a.write(dir+"/modules.dep", []byte(dependencies.String()))
	for _, at := range []string{"lib", "usr/lib"} {
		if file := filepath.Join(k.tree, at, "modules", k.Release, "modules.builtin"); exists(file) {
			a.file(dir+"/modules.builtin", file)
		}
	}
	a.file("/boot/config-"+k.Release, filepath.Join(k.tree, "boot/config-"+k.Release))
	return a.err
}

// busybox is the program of all tools below, with which the guest runs commands of the documentation.
const busybox = "/usr/bin/busybox"

var busyboxTools = []string{"cat", "ip", "mount", "sh", "sysctl", "umount", "unshare"}

// userlandFiles are the files of a userland that programs need.
var userlandFiles = []string{"usr/sbin/nft", "usr/bin/busybox", "etc/protocols", "lib/*/*.so*", "lib/ld-linux*", "lib64/*", "usr/lib/*/*.so*", "usr/lib/ld-linux*", "usr/lib64/*"}

// addUserland adds programs and libraries under /usr, to which /lib and /lib64 are links.
func addUserland(a *archive, dir string) error {
	if dir == "" {
		return nil
	}
	seen := map[string]bool{}
	for _, pattern := range userlandFiles {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, file := range found {
			info, err := os.Lstat(file)
			if err != nil {
				return err
			}
			name := underUsr(strings.TrimPrefix(file, dir))
			if !info.IsDir() && !seen[name] {
				seen[name] = true
				a.file(name, file)
			}
		}
	}
	if seen[busybox] {
		for _, tool := range busyboxTools {
			a.link("/bin/"+tool, busybox)
		}
	}
	return a.err
}

// underUsr returns the path of a file in a system whose /lib and /lib64 are links.
func underUsr(path string) string {
	if strings.HasPrefix(path, "/lib") {
		return "/usr" + path
	}
	return path
}

// extract unpacks the results that a guest has sent so far.
func extract(archive, into string) error {
	if into == "" {
		return nil
	}
	file, err := os.Open(archive)
	if errors.Is(err, os.ErrNotExist) {
		return nil // no machine has run
	}
	if err != nil {
		return err
	}
	defer file.Close()
	for r := tar.NewReader(file); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil // the archive of a running or crashed machine has no end
		}
		if err != nil {
			return fmt.Errorf("results: %w", err)
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		content, err := io.ReadAll(r)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("results: %w", err)
		}
		if err := os.WriteFile(filepath.Join(into, path.Base(header.Name)), content, 0o644); err != nil {
			return err
		}
	}
}
