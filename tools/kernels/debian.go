package kernels

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// debian fetches packages of one architecture from Debian's archive, with the sources of this machine's apt. It does not change installed packages.
type debian struct {
	dir  string
	arch string
	log  io.Writer
}

// aptSources are the files with apt's sources, in both formats (sources.list(5)).
var aptSources = []string{"/etc/apt/sources.list", "/etc/apt/sources.list.d/*.list", "/etc/apt/sources.list.d/*.sources"}

const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// suites are searched for kernels, as well as their suites in the security archive.
var suites = []string{"bullseye", "bookworm", "bookworm-backports", "trixie"}

// listsMaxAge is the age from which the archive's lists are read again.
const listsMaxAge = time.Hour

// prepare reads the archive's lists.
func (d *debian) prepare(ctx context.Context) error {
	readAt := filepath.Join(d.dir, "lists-read")
	if at, err := os.Stat(readAt); err == nil && time.Since(at.ModTime()) < listsMaxAge {
		return nil
	}
	mirror, security, err := mirrors()
	if err != nil {
		return err
	}
	var sources strings.Builder
	for _, suite := range suites {
		fmt.Fprintf(&sources, "deb [signed-by=%s] %s %s main\n", debianKeyring, mirror, suite)
		if !strings.Contains(suite, "-") {
			fmt.Fprintf(&sources, "deb [signed-by=%s] %s %s-security main\n", debianKeyring, security, suite)
		}
	}
	for _, dir := range []string{"state/lists/partial", "cache/archives/partial", "empty"} {
		if err := os.MkdirAll(filepath.Join(d.dir, dir), 0o755); err != nil {
			return err
		}
	}
	if err := errors.Join(os.WriteFile(filepath.Join(d.dir, "sources.list"), []byte(sources.String()), 0o644), os.WriteFile(filepath.Join(d.dir, "status"), nil, 0o644)); err != nil {
		return err
	}
	fmt.Fprintf(d.log, "reading the lists of Debian's archive for %s ...\n", d.arch)
	if _, err := d.run(ctx, d.dir, "apt-get", "update"); err != nil {
		return err
	}
	return os.WriteFile(readAt, nil, 0o644)
}

// mirrors returns the addresses of Debian's archive and of its security archive in this machine's sources.
func mirrors() (archive, security string, err error) {
	uri := regexp.MustCompile(`https?://\S+/debian(-security)?/?(\s|$)`)
	for _, pattern := range aptSources {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return "", "", err
			}
			for _, found := range uri.FindAllString(string(text), -1) {
				found = strings.TrimSuffix(strings.TrimSpace(found), "/")
				if base, is := strings.CutSuffix(found, "-security"); is {
					security = found
				} else {
					archive = base
				}
			}
		}
	}
	if archive == "" || security == "" {
		return "", "", errors.New("apt's sources must name Debian's archive and its security archive, from which kernels are fetched: run this on Debian")
	}
	return archive, security, nil
}

// run runs a tool of apt with the lists of this archive only.
func (d *debian) run(ctx context.Context, in string, tool string, args ...string) (string, error) {
	options := []string{
		"Dir::Etc::sourcelist=" + filepath.Join(d.dir, "sources.list"), "Dir::Etc::sourceparts=-", "Dir::State=" + filepath.Join(d.dir, "state"),
		"Dir::State::status=" + filepath.Join(d.dir, "status"), "Dir::Cache=" + filepath.Join(d.dir, "cache"), "APT::Architecture=" + d.arch, "APT::Architectures=" + d.arch,
		"APT::Sandbox::User=root", "Debug::NoLocking=1", "APT::Install-Recommends=0", "Acquire::Retries=3",
	}
	var flags []string
	for _, o := range options {
		flags = append(flags, "-o", o)
	}
	cmd := exec.CommandContext(ctx, tool, append(flags, args...)...)
	cmd.Dir = in
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", tool, strings.Join(args, " "), err, problem.String())
	}
	return out.String(), nil
}

// kernels returns the names of the archive's kernel packages of a series, the newest one last. It selects the flavour for clouds, which has the network stack of
// all flavours and few drivers.
func (d *debian) kernels(ctx context.Context, series string) ([]string, error) {
	out, err := d.run(ctx, d.dir, "apt-cache", "pkgnames", "linux-image-"+series+".")
	if err != nil {
		return nil, err
	}
	var names []string
	wanted := regexp.MustCompile(`^linux-image-` + regexp.QuoteMeta(series) + `\.[0-9.]+([-+][^-]*)?-cloud-` + d.arch + `$`)
	for _, name := range strings.Fields(out) {
		if wanted.MatchString(name) {
			names = append(names, name)
		}
	}
	versions := map[string]string{}
	for _, name := range names {
		shown, err := d.run(ctx, d.dir, "apt-cache", "show", "--no-all-versions", name)
		if err != nil {
			return nil, err
		}
		_, rest, _ := strings.Cut(shown, "\nVersion: ")
		versions[name], _, _ = strings.Cut(rest, "\n")
	}
	slices.SortFunc(names, func(a, b string) int { return compareVersions(ctx, versions[a], versions[b]) })
	return names, nil
}

// compareVersions orders versions like dpkg.
func compareVersions(ctx context.Context, a, b string) int {
	if exec.CommandContext(ctx, "dpkg", "--compare-versions", a, "lt", b).Run() == nil {
		return -1
	}
	if exec.CommandContext(ctx, "dpkg", "--compare-versions", a, "gt", b).Run() == nil {
		return 1
	}
	return 0
}

// unpack fetches a package, with or without its dependencies, and unpacks it into the directory.
func (d *debian) unpack(ctx context.Context, into string, dependencies bool, name string) error {
	work, err := os.MkdirTemp(d.dir, "fetch")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := os.MkdirAll(filepath.Join(work, "partial"), 0o755); err != nil {
		return err
	}
	fmt.Fprintf(d.log, "fetching %s for %s ...\n", name, d.arch)
	if dependencies {
		_, err = d.run(ctx, work, "apt-get", "-o", "Dir::Cache::archives="+work, "install", "--download-only", "-y", name)
	} else {
		_, err = d.run(ctx, work, "apt-get", "download", name)
	}
	if err != nil {
		return err
	}
	packages, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil {
		return err
	}
	for _, p := range packages {
		if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", p, into).CombinedOutput(); err != nil {
			return fmt.Errorf("unpack %s: %w\n%s", filepath.Base(p), err, out)
		}
	}
	return nil
}
