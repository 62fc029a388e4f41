package preflight

import (
	"bufio"
	"compress/gzip"
	"io"
	"os"
	"path"
	"strings"
)

// Presence says whether a module is available.
type Presence int

// The values of Presence.
const (
	// Unknown: there is no list of modules, as in a container.
	Unknown Presence = iota
	BuiltIn
	Loaded
	// Loadable means that the file exists, and the module is not loaded.
	Loadable
	// NotInstalled means that the kernel was built with it as a module, or may have been, and the file does not exist.
	NotInstalled
	// NotBuilt means that the kernel was built without it.
	NotBuilt
	// OtherRelease means that this host has modules for other kernels only.
	OtherRelease
)

// Modules has the modules of a host's kernel. Host.Modules reads it.
type Modules struct {
	host     Host
	release  string
	loaded   map[string]bool
	builtIn  map[string]bool
	loadable map[string]bool
	// options has the options of the kernel's build, by name; nil if no file has them.
	options map[string]string
	// listed is set if there is a list of all modules for the running kernel, others if there are lists for other kernels only.
	listed, others bool
	// frozen is set if the kernel loads no modules until the next boot.
	frozen bool
}

// Modules reads the lists of modules. Files that cannot be read are ignored.
func (h Host) Modules() Modules {
	m := Modules{host: h, loaded: map[string]bool{}, builtIn: map[string]bool{}, loadable: map[string]bool{}}
	m.release, _ = h.KernelRelease()
	m.eachLine(h.path("proc/modules"), func(line string) {
		name, _, _ := strings.Cut(line, " ")
		m.loaded[name] = true
	})
	dir := h.path("lib/modules", m.release)
	m.eachLine(path.Join(dir, "modules.builtin"), func(line string) { m.builtIn[moduleOf(line)] = true })
	m.listed = m.eachLine(path.Join(dir, "modules.dep"), func(line string) {
		file, _, _ := strings.Cut(line, ":")
		m.loadable[moduleOf(file)] = true
	})
	if others, err := os.ReadDir(h.path("lib/modules")); err == nil && len(others) > 0 && !m.listed {
		m.others = true
	}
	m.options = h.options(m.release)
	frozen, _ := h.read("proc/sys/kernel/modules_disabled")
	m.frozen = strings.TrimSpace(frozen) == "1"
	return m
}

// eachLine calls f for the lines of a file, and reports whether the file could be read.
func (m Modules) eachLine(name string, f func(string)) bool {
	file, err := os.Open(name)
	if err != nil {
		return false
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20) // a line of modules.dep has all dependencies of a module
	for lines.Scan() {
		f(lines.Text())
	}
	return lines.Err() == nil
}

// moduleOf returns the module of a file: nft_ct for kernel/net/netfilter/nft_ct.ko.zst. Hyphens in the name are the same as
// underscores.
func moduleOf(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// options reads the options of the kernel's build from the files where distributions have them.
func (h Host) options(release string) map[string]string {
	if file, err := os.Open(h.path("proc/config.gz")); err == nil {
		defer file.Close()
		if text, err := gzip.NewReader(file); err == nil {
			return parseOptions(text)
		}
	}
	for _, name := range []string{h.path("boot/config-" + release), h.path("lib/modules", release, "config")} {
		if file, err := os.Open(name); err == nil {
			defer file.Close()
			return parseOptions(file)
		}
	}
	return nil
}

// parseOptions returns nil if the text cannot be read to its end.
func parseOptions(text io.Reader) map[string]string {
	options := map[string]string{}
	lines := bufio.NewScanner(text)
	for lines.Scan() {
		if name, value, ok := strings.Cut(lines.Text(), "="); ok {
			options[strings.TrimPrefix(name, "CONFIG_")] = value
		}
	}
	if lines.Err() != nil {
		return nil
	}
	return options
}

// Option returns the value of an option of the kernel's build: y, m or nothing. known is false if no file has the options. The name is without CONFIG_.
func (m Modules) Option(name string) (value string, known bool) {
	return m.options[name], m.options != nil
}

// Presence returns whether a module is available that is built by the kernel option, whose name is without CONFIG_.
func (m Modules) Presence(name, option string) Presence {
	value, known := m.Option(option)
	// The kernel has this file for loaded modules only, even if /proc/modules is hidden.
	_, err := os.Stat(m.host.path("sys/module", name, "initstate"))
	switch {
	case m.loaded[name] || err == nil:
		return Loaded
	case m.builtIn[name] || value == "y":
		return BuiltIn
	case m.loadable[name]:
		return Loadable
	case known && value == "":
		return NotBuilt
	case m.listed:
		return NotInstalled
	case m.others:
		return OtherRelease
	case value == "m":
		return NotInstalled
	}
	return Unknown
}
