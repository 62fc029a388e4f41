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

// debian fetches packages of one architecture from Debian's archive, as this machine's apt reaches it, without changing what is installed here.
type debian struct {
	dir  string
	arch string
	log  io.Writer
}

// aptSources is where this machine's apt has its sources, in both of their formats (sources.list(5)).
var aptSources = []string{"/etc/apt/sources.list", "/etc/apt/sources.list.d/*.list", "/etc/apt/sources.list.d/*.sources"}

const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// suites are asked for kernels. Those of the security archive come beside them.
var suites = []string{"bullseye", "bookworm", "bookworm-backports", "trixie"}

// listsLast is for how long the archive's lists are not read again.
const listsLast = time.Hour

// prepare reads the archive's lists.
func (d *debian) prepare(ctx context.Context) error {
	readAt := filepath.Join(d.dir, "lists-read")
	if at, err := os.Stat(readAt); err == nil && time.Since(at.ModTime()) < listsLast {
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

// mirrors are the addresses of Debian's archive and of its security archive, of this machine's sources.
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
		return "", "", errors.New("apt's sources name no archive of Debian's and its security archive: kernels are fetched from there, on a machine that runs Debian")
	}
	return archive, security, nil
}

// run runs a tool of apt on the lists of this archive alone.
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

// kernels returns the names of the archive's kernel packages of a series, the newest last. The flavour is that for clouds, which has the same network stack
// as the others and few drivers.
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

// compareVersions orders versions as dpkg does.
func compareVersions(ctx context.Context, a, b string) int {
	if exec.CommandContext(ctx, "dpkg", "--compare-versions", a, "lt", b).Run() == nil {
		return -1
	}
	if exec.CommandContext(ctx, "dpkg", "--compare-versions", a, "gt", b).Run() == nil {
		return 1
	}
	return 0
}

// unpack fetches a package, with all that it depends on if so asked, and unpacks it into the directory.
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
