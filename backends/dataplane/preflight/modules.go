package preflight

import (
	"bufio"
	"compress/gzip"
	"io"
	"os"
	"path"
	"strings"
)

// Presence is where a module is.
type Presence int

// Where modules are.
const (
	// Untold: there is no list of modules to look it up in, as in a container.
	Untold Presence = iota
	BuiltIn
	Loaded
	// Loadable: the file is there, and the module is not loaded.
	Loadable
	// NotInstalled: the kernel was built with it as a module, or may have been, and the file is not there.
	NotInstalled
	// NotBuilt: the kernel was built without it.
	NotBuilt
	// OtherRelease: there are modules on this host, and none for the running kernel.
	OtherRelease
)

// Modules is what the kernel of a host has of modules. Host.Modules reads it.
type Modules struct {
	host     Host
	release  string
	loaded   map[string]bool
	builtIn  map[string]bool
	loadable map[string]bool
	// options has the options of the kernel's build, by name; nil if no file tells them.
	options map[string]string
	// listed: there is a list of all modules for the running kernel. others: there are lists for other kernels alone.
	listed, others bool
	// frozen: the kernel loads no modules until it is booted again.
	frozen bool
}

// Modules reads the lists of modules. What is not there to be read is not known afterwards.
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

// eachLine calls f for the lines of a file, and tells whether there is one.
func (m Modules) eachLine(name string, f func(string)) bool {
	file, err := os.Open(name)
	if err != nil {
		return false
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20) // a line of modules.dep names all that the module depends on
	for lines.Scan() {
		f(lines.Text())
	}
	return lines.Err() == nil
}

// moduleOf is the module whose file this is: kernel/net/netfilter/nft_ct.ko.zst holds nft_ct. A module has the same name with
// hyphens and with underscores.
func moduleOf(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// options reads how the kernel was built, from where distributions keep that.
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

func parseOptions(text io.Reader) map[string]string {
	options := map[string]string{}
	lines := bufio.NewScanner(text)
	for lines.Scan() {
		if name, value, is := strings.Cut(lines.Text(), "="); is {
			options[strings.TrimPrefix(name, "CONFIG_")] = value
		}
	}
	return options
}

// Option tells what the kernel was built with, as y or m, or nothing; known is false where nothing tells. The name is without CONFIG_.
func (m Modules) Option(name string) (value string, known bool) {
	return m.options[name], m.options != nil
}

// Presence tells where a module is that the kernel option, without CONFIG_, builds.
func (m Modules) Presence(name, option string) Presence {
	value, known := m.Option(option)
	// The kernel says this of every module that is loaded, and of no other, even where /proc/modules is hidden.
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
	return Untold
}
