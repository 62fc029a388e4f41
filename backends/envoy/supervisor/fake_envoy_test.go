package supervisor

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestMain lets this binary be the supervisor and the Envoy of its tests. The arguments tell them apart.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if dir, ok := strings.CutPrefix(os.Args[1], "--state-dir="); ok {
			superviseAsProgram(Dir(dir))
			return
		}
		if os.Args[1] == "--config-path" {
			fakeEnvoy(os.Args[1:])
			return
		}
	}
	os.Exit(m.Run())
}

func superviseAsProgram(dir Dir) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	replace := make(chan os.Signal, 1)
	signal.Notify(replace, syscall.SIGHUP)
	if err := Run(ctx, Options{Dir: dir, Replace: replace}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// What a fake Envoy does, in its bootstrap.
const (
	serves = "serve as launch " + LaunchMark
	fails  = "fail"
	waits  = "wait for the file may-serve"
	// lingers ends on SIGTERM only when there is the file may-end.
	lingers = "end with the file may-end"
)

// fakeEnvoy does what the supervisor sees of Envoy: it writes its base ID, and serves at the admin socket, also during a hot restart.
func fakeEnvoy(arguments []string) {
	set := flag.NewFlagSet("envoy", flag.ExitOnError)
	config, baseFile, epoch := set.String("config-path", "", ""), set.String("base-id-path", "", ""), set.Int("restart-epoch", 0, "")
	for _, ignored := range []string{"log-level", "log-path", "socket-path", "socket-mode", "drain-time-s", "parent-shutdown-time-s", "concurrency", "base-id"} {
		set.String(ignored, "", "")
	}
	set.Bool("use-dynamic-base-id", false, "")
	_ = set.Parse(arguments)
	text, err := os.ReadFile(*config)
	if err != nil {
		os.Exit(4)
	}
	dir := Dir(filepath.Dir(*config))
	if *baseFile != "" {
		_ = os.WriteFile(*baseFile, []byte(strconv.FormatUint(fakeBase, 10)+"\n"), 0o600)
	}
	asked := make(chan os.Signal, 1)
	if string(text) == lingers {
		signal.Notify(asked, syscall.SIGTERM)
	}
	_ = os.WriteFile(*config+".arguments", []byte(strings.Join(arguments, " ")), 0o600)
	_ = os.WriteFile(*config+".pid", []byte(strconv.Itoa(os.Getpid())), 0o600)
	if string(text) == fails {
		os.Exit(3)
	}
	switch string(text) {
	case waits:
		awaitFile(filepath.Join(string(dir), "may-serve"))
	case lingers:
		<-asked
		awaitFile(filepath.Join(string(dir), "may-end"))
		return
	}
	_ = os.Remove(dir.Admin())
	socket, err := net.Listen("unix", dir.Admin())
	if err != nil {
		os.Exit(5)
	}
	_ = http.Serve(socket, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"state":"LIVE","command_line_options":{"restart_epoch":%d}}`, *epoch)
	}))
}

// awaitFile waits for a file, for a minute at most: nothing else ends this process if its test was killed.
func awaitFile(path string) {
	for begun := time.Now(); time.Since(begun) < time.Minute; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return
		}
	}
	os.Exit(6)
}

// fakeBase is a base ID that no Envoy uses: Envoy chooses small ones.
const fakeBase = uint64(4_000_000_000)

// bench is a directory with a supervisor in this process.
type bench struct {
	*testing.T
	Dir
	replace chan os.Signal
	end     context.CancelFunc
	ended   chan error
}

// newBench makes a directory. Its path is short, since it has sockets.
func newBench(t *testing.T) *bench {
	path, err := os.MkdirTemp("", "klsup")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(path) })
	return &bench{T: t, Dir: Dir(path), replace: make(chan os.Signal), ended: make(chan error, 1)}
}

// newServing makes a directory whose supervisor runs an Envoy that serves, as launch 1 with this identity.
func newServing(t *testing.T) (b *bench, identity string) {
	b = newBench(t)
	identity = b.request(b.wanted(serves))
	b.run()
	b.serving(1, 0, identity)
	return b, identity
}

func (b *bench) run() {
	ctx, cancel := context.WithCancel(context.Background())
	b.end = cancel
	go func() { b.ended <- Run(ctx, Options{Dir: b.Dir, Replace: b.replace}) }()
	b.Cleanup(b.stop)
}

func (b *bench) stop() {
	if b.end(); b.ended != nil {
		require.NoError(b, <-b.ended)
		b.ended = nil
	}
}

// wanted returns a request for an Envoy with this bootstrap.
func (b *bench) wanted(bootstrap string) Wanted {
	program, err := os.Executable()
	require.NoError(b, err)
	return Wanted{Envoy: program, Bootstrap: bootstrap, Concurrency: 2, DrainSeconds: 7}
}

func (b *bench) request(w Wanted) (identity string) {
	require.NoError(b, writeJSON(b.Dir.wanted(), w))
	identity, err := w.identity()
	require.NoError(b, err)
	return identity
}

// replaceNow tells the supervisor that another Envoy may be wanted, and returns once it has handled that: it receives the second signal after the first.
func (b *bench) replaceNow() {
	for range 2 {
		b.replace <- syscall.SIGHUP
	}
}

// replaceBy requests an Envoy with this bootstrap, and returns once the supervisor knows of the request.
func (b *bench) replaceBy(bootstrap string) (identity string) {
	identity = b.request(b.wanted(bootstrap))
	b.replaceNow()
	return identity
}

func (b *bench) eventually(what string, is func() bool) {
	b.Helper()
	require.Eventually(b, is, 30*time.Second, 2*time.Millisecond, what)
}

func (b *bench) now() Running {
	r, err := b.Dir.Running()
	require.NoError(b, err)
	return r
}

// serving waits for the Envoy of this restart epoch, and then for the launch in the file about it.
func (b *bench) serving(launch, epoch int, identity string) {
	b.Helper()
	b.eventually(fmt.Sprintf("launch %d serves", launch), func() bool {
		at, live := b.Dir.servingEpoch()
		r := b.now()
		return live && at == epoch && r.Launch == launch && r.Identity == identity && r.Problem == ""
	})
}

// written waits for a file that the Envoy of a launch writes, and returns its text.
func (b *bench) written(launch int, name string) (text string) {
	b.Helper()
	b.eventually(name, func() bool {
		content, err := os.ReadFile(b.Dir.bootstrap(launch) + "." + name)
		text = string(content)
		return err == nil && text != ""
	})
	return text
}

func (b *bench) process(launch int) int {
	b.Helper()
	pid, err := strconv.Atoi(b.written(launch, "pid"))
	require.NoError(b, err)
	return pid
}

func runs(pid int) bool { return syscall.Kill(pid, 0) == nil }

// catch receives SIGTERM instead of ending this process.
func catch(to chan os.Signal) (stop func()) {
	signal.Notify(to, syscall.SIGTERM)
	return func() { signal.Stop(to) }
}
