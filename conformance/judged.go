package conformance

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/cases"
)

// Version is the version of the suite.
const Version = "0.1.0"

// Suite says which suite judged.
type Suite struct {
	// Version has the commit, if the program knows it.
	Version string `json:"version"`
	// SHA256 is the checksum of the suite's program.
	SHA256 string `json:"sha256"`
}

// Program is the file of a plugin.
type Program struct {
	// Path is relative if the file is below the working directory.
	Path string `json:"path"`
	// SHA256 is the file's checksum.
	SHA256 string `json:"sha256"`
}

// Judgement says how a backend was judged: with which options, and by which cases.
type Judgement struct {
	// Program is the file of the tested plugin. It is nil for a dataplane in a test's own process.
	Program *Program `json:"program,omitempty"`
	// BackendOptions are the options of the tested plugin.
	BackendOptions map[string]string `json:"backendOptions,omitempty"`
	// UpgradeTo is the other build of the plugin, if there is one. SwitchTo are the other plugins.
	UpgradeTo *Program  `json:"upgradeTo,omitempty"`
	SwitchTo  []Program `json:"switchTo,omitempty"`
	// Patience is the factor of all timeouts.
	Patience float64 `json:"patience"`
	// Parallel is the number of cases that ran side by side.
	Parallel  int  `json:"parallel"`
	KeepGoing bool `json:"keepGoing,omitempty"`
	// Cases and Feature are the filters. Without filters all cases ran.
	Cases   []string          `json:"cases,omitempty"`
	Feature dataplane.Feature `json:"feature,omitempty"`
}

// programOf returns the file and the options of a backend, if it has them.
func programOf(b cases.Backend) (*Program, map[string]string, error) {
	switch b := b.(type) {
	case Plugin:
		p, err := b.program()
		return &p, nil, err
	case backendWithOptions:
		p, _, err := programOf(b.Backend)
		return p, b.options, err
	}
	return nil, nil, nil
}

// program identifies the plugin's file.
func (p Plugin) program() (Program, error) {
	sum, err := checksumOf(string(p))
	return Program{Path: shortPath(string(p)), SHA256: sum}, err
}

// shortPath returns a path below the working directory as a relative one, so that reports of different machines can be compared.
func shortPath(path string) string {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	here, err := os.Getwd()
	if err != nil {
		return absolute
	}
	if relative, err := filepath.Rel(here, absolute); err == nil && filepath.IsLocal(relative) {
		return relative
	}
	return absolute
}

func checksumOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// judgement describes a run of the suite before it begins.
func judgement(tested cases.Backend, o Options) (j Judgement, err error) {
	j = Judgement{Patience: max(1, float64(o.Patience)), Parallel: max(1, o.Parallel), KeepGoing: o.KeepGoing, Cases: slices.Clone(o.Cases), Feature: o.Feature}
	if j.Program, j.BackendOptions, err = programOf(tested); err != nil {
		return j, err
	}
	if o.UpgradeTo != nil {
		if j.UpgradeTo, _, err = programOf(o.UpgradeTo); err != nil {
			return j, fmt.Errorf("the build to upgrade to: %w", err)
		}
	}
	for _, other := range o.SwitchTo {
		p, _, err := programOf(other)
		if err != nil {
			return j, fmt.Errorf("a backend to switch to: %w", err)
		}
		if p != nil {
			j.SwitchTo = append(j.SwitchTo, *p)
		}
	}
	return j, nil
}

// errChanged says that a report is not about one program.
var errChanged = errors.New("the plugin's file has changed while it was judged: run the suite again")

// unchanged returns an error if the tested plugin is another one than at the beginning.
func (j Judgement) unchanged(tested cases.Backend) error {
	now, _, err := programOf(tested)
	if err != nil || now == nil {
		return err
	}
	if *now != *j.Program {
		return errChanged
	}
	return nil
}

// suite identifies this program.
func suite() Suite {
	s := Suite{Version: Version}
	if info, ok := debug.ReadBuildInfo(); ok {
		s.Version += commitOf(info.Settings)
	}
	s.SHA256, _ = checksumOf("/proc/self/exe") // without it the version has to do
	return s
}

// commitOf returns the commit of a build as the end of a version.
func commitOf(settings []debug.BuildSetting) string {
	var commit, modified string
	for _, s := range settings {
		switch {
		case s.Key == "vcs.revision":
			commit = "+" + s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			modified = "-modified"
		}
	}
	if commit == "" {
		return ""
	}
	return commit + modified
}

// kernel returns the release of the kernel and the architecture of the machine.
func kernel() (release, machine string) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "unknown", "unknown"
	}
	return unix.ByteSliceToString(name.Release[:]), unix.ByteSliceToString(name.Machine[:])
}

// Describe writes what was judged, in a few lines.
func (r Report) Describe() string {
	var b strings.Builder
	j := r.Judgement
	fmt.Fprintf(&b, "suite %s judges %s %s on Linux %s (%s)\n", r.Suite.Version, r.Backend.Name, r.Backend.Version, r.Kernel, r.Machine)
	if j.Program != nil {
		fmt.Fprintf(&b, "plugin: %s, SHA-256 %s\n", j.Program.Path, j.Program.SHA256)
	}
	return b.String()
}
