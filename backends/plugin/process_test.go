package plugin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// TestMain lets this binary be the plugin of its tests: a plugin is started with the cookie in its environment.
func TestMain(m *testing.M) {
	if os.Getenv(handshake.MagicCookieKey) == handshake.MagicCookieValue {
		fmt.Fprintln(os.Stderr, "the plugin begins")
		Serve(&environment{})
		return
	}
	os.Exit(m.Run())
}

// environment is a dataplane whose notes are the names of the variables of its environment, and its working directory.
type environment struct{ dataplane.Fake }

// Configure writes lines, as a plugin does while it serves.
func (e *environment) Configure(ctx context.Context, config dataplane.Config) error {
	fmt.Fprintln(os.Stderr, "an error line")
	fmt.Println("an output line")
	log.Println("a log line")
	return e.Fake.Configure(ctx, config)
}

// Describe implements dataplane.Dataplane.
func (e *environment) Describe(ctx context.Context) (dataplane.Description, error) {
	d, err := e.Fake.Describe(ctx)
	if err != nil {
		return d, err
	}
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		d.Notes = append(d.Notes, name)
	}
	dir, err := os.Getwd()
	d.Notes = append(d.Notes, "working directory "+dir)
	return d, err
}

// Stats ends the process, as a crash does.
func (e *environment) Stats(context.Context) (dataplane.Stats, error) {
	fmt.Println("last words, to standard output")
	fmt.Fprint(os.Stderr, "last words without a line's end")
	os.Exit(3)
	return dataplane.Stats{}, nil
}

// Render ends the process, but leaves another one that has its standard error open.
func (e *environment) Render(context.Context, model.Snapshot) (string, error) {
	sleep := exec.Command("/bin/sleep", "5")
	sleep.Stderr = os.Stderr
	if err := sleep.Start(); err != nil {
		return "", err
	}
	os.Exit(4)
	return "", nil
}

// lines collects what a plugin writes.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) contains(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), text)
}

// socketDir returns a directory with a short path, as sockets need.
func socketDir(t *testing.T) string {
	t.Helper()
	path, err := os.MkdirTemp("", "klplug")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(path) })
	return filepath.Join(path, "sockets")
}

// load starts this binary as a plugin.
func load(t *testing.T, change func(*Options)) *Process {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	options := Options{Path: self, SocketDir: socketDir(t), Log: &lines{}}
	change(&options)
	p, err := Load(options)
	require.NoError(t, err)
	t.Cleanup(p.Stop)
	return p
}

func unchanged(*Options) {}

func exists(pid int) bool { return syscall.Kill(pid, 0) == nil }

// docs/plugin.md says so.
func TestAPluginInheritsNoEnvironmentAndNoDirectoryOfTheManager(t *testing.T) {
	t.Setenv("KUBELB_SECRET", "token")
	d, err := load(t, unchanged).Describe(t.Context())
	require.NoError(t, err)
	require.Equal(t, "fake", d.Name)
	require.Contains(t, d.Notes, handshake.MagicCookieKey)
	require.Contains(t, d.Notes, "working directory /")
	for _, name := range d.Notes[:len(d.Notes)-1] {
		require.True(t, name == handshake.MagicCookieKey || strings.HasPrefix(name, "PLUGIN_"), "the plugin has the variable %s", name)
	}
}

func TestAPluginMayBeNamedByARelativePath(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	t.Chdir(filepath.Dir(self))
	load(t, func(o *Options) { o.Path = "./" + filepath.Base(self) })
}

func TestAPluginServesTheContract(t *testing.T) {
	p := load(t, unchanged)
	require.NoError(t, p.Configure(t.Context(), dataplane.Config{StateDir: t.TempDir()}))
	s := bigSnapshot(1, 1, 1)
	next := dataplane.Generation{Epoch: "e", Number: 1}
	result, err := p.Apply(t.Context(), dataplane.Change{Next: next, Delta: model.Difference(model.NewDigests(), s)})
	require.NoError(t, err)
	require.Empty(t, result.Failed)
	held, err := p.Applied(t.Context())
	require.NoError(t, err)
	require.Equal(t, s.Digests(), held.Digests)
	require.Equal(t, next, held.Generation)
	_, err = p.Apply(t.Context(), dataplane.Change{Base: dataplane.Generation{Epoch: "f", Number: 3}, Next: next})
	require.ErrorIs(t, err, dataplane.ErrResync, "each plugin checks generations")
}

func TestLinesThatAPluginWritesReachTheLog(t *testing.T) {
	written := &lines{}
	p := load(t, func(o *Options) { o.Log = written })
	require.NoError(t, p.Configure(t.Context(), dataplane.Config{StateDir: t.TempDir()}))
	for _, line := range []string{"the plugin begins", "an error line", "an output line", "a log line"} {
		require.Eventually(t, func() bool { return written.contains(line) }, 30*time.Second, time.Millisecond, line)
	}
}

func TestAPluginEndsWithStop(t *testing.T) {
	p := load(t, unchanged)
	pid := p.Pid()
	require.True(t, exists(pid))
	require.False(t, p.Exited())
	p.Stop()
	require.False(t, exists(pid))
	require.True(t, p.Exited())
	p.Stop() // a second time does nothing
	_, err := p.Describe(t.Context())
	require.Error(t, err)
}

func TestAKilledPluginHasEnded(t *testing.T) {
	p := load(t, unchanged)
	pid := p.Pid()
	require.NoError(t, p.Kill())
	require.False(t, exists(pid))
	require.True(t, p.Exited())
}

// If the manager is killed, the kernel closes its end of the pipe.
func TestAPluginEndsWhenItsLifelineIsClosed(t *testing.T) {
	p := load(t, unchanged)
	require.NoError(t, p.lifeline.Close())
	require.Eventually(t, p.Exited, 30*time.Second, time.Millisecond)
}

func TestTheLastWordsOfAPluginReachTheLog(t *testing.T) {
	log := &lines{}
	p := load(t, func(o *Options) { o.Log = log })
	require.Empty(t, p.ExitStatus())
	_, err := p.Stats(t.Context())
	require.ErrorIs(t, err, ErrUnreachable)
	require.Eventually(t, p.Exited, 30*time.Second, time.Millisecond)
	require.Equal(t, "exit status 3", p.ExitStatus())
	require.True(t, log.contains("last words, to standard output"))
	require.True(t, log.contains("last words without a line's end"))
}

func TestTheExitStatusOfAPluginIsKnownAlthoughItLeftAnotherProcess(t *testing.T) {
	p := load(t, unchanged)
	_, err := p.Render(t.Context(), model.Snapshot{})
	require.ErrorIs(t, err, ErrUnreachable)
	require.Eventually(t, func() bool { return p.ExitStatus() == "exit status 4" }, 4*time.Second, time.Millisecond)
	require.False(t, p.Exited(), "the other process has its standard error open")
}

func TestTheExitStatusOfAKilledPluginIsItsSignal(t *testing.T) {
	p := load(t, unchanged)
	require.NoError(t, p.Kill())
	require.Equal(t, "signal: killed", p.ExitStatus())
}

func TestAPluginWithTheRightChecksumStarts(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	text, err := os.ReadFile(self)
	require.NoError(t, err)
	p := load(t, func(o *Options) { o.Checksum = fmt.Sprintf("%x", sha256.Sum256(text)) })
	_, err = p.Describe(t.Context())
	require.NoError(t, err)
}

func TestAProgramThatIsNoPluginIsNamed(t *testing.T) {
	_, err := Load(Options{Path: "/bin/true", SocketDir: socketDir(t)})
	require.ErrorContains(t, err, "start backend /bin/true: ")
	_, err = Load(Options{Path: "/bin/false", SocketDir: socketDir(t)})
	require.ErrorContains(t, err, "start backend /bin/false: its process has ended (exit status 1): ")
	_, err = Load(Options{Path: "/nowhere/backend", SocketDir: socketDir(t)})
	require.ErrorContains(t, err, "start backend /nowhere/backend: ")
}

func TestTheSocketDirectoryIsPrivateAndLosesOldSocketsOnly(t *testing.T) {
	dir := socketDir(t)
	require.NoError(t, os.Mkdir(dir, 0o755))
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "old"), Net: "unix"})
	require.NoError(t, err)
	old.SetUnlinkOnClose(false) // as if the process was killed
	require.NoError(t, old.Close())
	require.NoError(t, os.WriteFile(filepath.Join(dir, "notes"), nil, 0o600))
	require.NoError(t, emptySocketDir(dir))
	require.NoFileExists(t, filepath.Join(dir, "old"))
	require.FileExists(t, filepath.Join(dir, "notes"))
	is, err := os.Stat(dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), is.Mode().Perm())
	require.Error(t, emptySocketDir(filepath.Join(dir, "notes")), "it is a file")
}

func TestAPluginIsFoundInPATH(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "kubelb-backend-mine")
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755))
	t.Setenv("PATH", dir)
	found, err := Find("mine")
	require.NoError(t, err)
	require.Equal(t, path, found)
}
