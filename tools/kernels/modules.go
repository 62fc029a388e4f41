package kernels

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"kubelb.k8c.io/tools/kernels/guest"
)

// readModules returns the modules under a directory, with their metadata. Paths are relative to the directory.
func readModules(dir string) (guest.Modules, error) {
	modules := guest.Modules{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".ko" {
			return err
		}
		relative, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		module, err := readModule(path)
		if err != nil {
			return fmt.Errorf("module %s: %w", relative, err)
		}
		module.Path = relative
		modules[guest.ModuleName(strings.TrimSuffix(filepath.Base(path), ".ko"))] = module
		return nil
	})
	return modules, err
}

// readModule reads the section .modinfo, which is a list of key=value (kernel source, include/linux/moduleparam.h).
func readModule(path string) (module guest.Module, err error) {
	file, err := elf.Open(path)
	if err != nil {
		return module, err
	}
	defer file.Close()
	section := file.Section(".modinfo")
	if section == nil {
		return module, fmt.Errorf("the file has no section .modinfo")
	}
	content, err := section.Data()
	if err != nil {
		return module, err
	}
	for entry := range bytes.SplitSeq(content, []byte{0}) {
		switch key, value, _ := strings.Cut(string(entry), "="); key {
		case "alias":
			// Aliases of buses are for devices. Guests need no drivers by these.
			if !strings.Contains(value, ":") {
				module.Aliases = append(module.Aliases, value)
			}
		case "depends":
			for need := range strings.SplitSeq(value, ",") {
				if need != "" {
					module.Needs = append(module.Needs, guest.ModuleName(need))
				}
			}
		}
	}
	return module, nil
}
