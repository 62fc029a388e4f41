package guest

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ModuleName returns the name of a module in the kernel's spelling.
func ModuleName(name string) string { return strings.ReplaceAll(name, "-", "_") }

// Find returns the names of the modules with a name or an alias.
func (m Modules) Find(name string) []string {
	if _, ok := m[ModuleName(name)]; ok {
		return []string{ModuleName(name)}
	}
	var found []string
	for _, module := range slices.Sorted(maps.Keys(m)) {
		if slices.ContainsFunc(m[module].Aliases, func(pattern string) bool {
			matches, err := path.Match(ModuleName(pattern), ModuleName(name))
			return err == nil && matches
		}) {
			found = append(found, module)
		}
	}
	return found
}

// Order returns the modules to load for a module, in order. The module itself is the last one.
func (m Modules) Order(name string) []string {
	var order []string
	seen := map[string]bool{}
	var add func(string)
	add = func(name string) {
		if seen[name] {
			return
		}
		seen[name] = true
		for _, need := range m[name].Needs {
			add(need)
		}
		order = append(order, name)
	}
	add(name)
	return order
}

// load loads the modules with a name or an alias, and their dependencies.
func (m Modules) load(name string) error {
	found := m.Find(name)
	if len(found) == 0 {
		return fmt.Errorf("no module %s", name)
	}
	var errs []error
	for _, module := range found {
		for _, one := range m.Order(module) {
			if err := insert(m[one].Path); err != nil {
				errs = append(errs, fmt.Errorf("module %s: %w", one, err))
			}
		}
	}
	return errors.Join(errs...)
}

func insert(path string) error {
	if path == "" {
		return nil // the module is built in
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.FinitModule(int(file.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// Modprobe loads modules for the kernel, which calls modprobe -q -- NAME.
func Modprobe(args []string) error {
	modules := Modules{}
	if err := readJSON(ModulesPath, &modules); err != nil {
		return err
	}
	var errs []error
	for _, name := range args {
		if !strings.HasPrefix(name, "-") {
			errs = append(errs, modules.load(name))
		}
	}
	return errors.Join(errs...)
}
