// Package supervisor owns an Envoy: it starts it, starts it again at once when it dies, replaces it by another one without
// refusing a connection (Envoy's hot restart), and ends it when asked to. It knows nothing of what Envoy serves: the plugin
// says which Envoy is wanted, by a file in a directory that they share, and tells Envoy the rest over a socket there. So Envoy
// outlives the plugin and its upgrades.
package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"kubelb.k8c.io/backends/statefile"
)

const (
	// restartPause keeps an Envoy that dies at once from taking the whole processor.
	restartPause = 200 * time.Millisecond
	// stopTimeout is how long Envoy may take to end.
	stopTimeout = 5 * time.Second
	// readyInterval is how often a new Envoy is asked whether it serves.
	readyInterval = 50 * time.Millisecond
)

// Options of a supervisor.
type Options struct {
	Dir Dir
	// Envoy, if set, is the binary to run, whatever the plugin wants.
	Envoy string
	// Replace is sent on when something else may be wanted.
	Replace <-chan os.Signal
}

// supervisor is used by the goroutine of Run alone.
type supervisor struct {
	Options
	running Running
	// serving is the Envoy that takes connections, coming the one that is about to, leaving those that only keep theirs.
	serving, coming *envoy
	leaving         map[*envoy]bool
	exits, ready    chan *envoy
	lastStart       time.Time
}

// envoy is a process.
type envoy struct {
	cmd      *exec.Cmd
	launch   int
	epoch    int
	identity string
	err      error
}

// Run keeps an Envoy running until ctx ends. The caller must be locked to an operating system thread that lives as long: Envoy
// asks the kernel for SIGTERM when the thread that started it ends.
func Run(ctx context.Context, o Options) error {
	lock, err := o.Dir.acquire()
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := raiseFileLimit(); err != nil {
		return err
	}
	s := &supervisor{Options: o, leaving: map[*envoy]bool{}, exits: make(chan *envoy), ready: make(chan *envoy)}
	if err := readJSON(o.Dir.running(), &s.running); err != nil {
		// No Envoy runs that it could tell of.
		fmt.Fprintln(os.Stderr, "kubelb-envoy: begins anew:", errors.Join(err, statefile.SetAside(o.Dir.running())))
		s.running = Running{}
	}
	defer s.end()
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
			s.start()
		case <-o.Replace:
			s.replace()
		case e := <-s.ready:
			s.takenOver(e)
		case e := <-s.exits:
			s.ended(e)
		}
		if s.serving == nil && s.coming == nil {
			again.Reset(max(0, restartPause-time.Since(s.lastStart)))
		}
	}
}

// raiseFileLimit lets Envoy open as many files as the host allows, or else as many as this process may: it needs one for each
// connection and, for each thread, one for each frontend. systemd's default is 1024.
func raiseFileLimit() error {
	var now syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &now); err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	text, err := os.ReadFile("/proc/sys/fs/nr_open")
	if err != nil {
		return fmt.Errorf("read how many files a process may open: %w", err)
	}
	most, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return fmt.Errorf("how many files a process may open: %w", err)
	}
	err = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: most, Max: most})
	if errors.Is(err, syscall.EPERM) {
		err = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: now.Max, Max: now.Max})
	}
	if err != nil {
		return fmt.Errorf("raise the limit of open files: %w", err)
	}
	return nil
}

// want reads what is wanted.
func (s *supervisor) want() (Wanted, string, error) {
	var w Wanted
	if err := readJSON(s.Dir.wanted(), &w); err != nil {
		return w, "", err
	}
	if s.Envoy != "" {
		w.Envoy = s.Envoy
	}
	if w.Envoy == "" || w.Bootstrap == "" {
		return w, "", errors.New("the plugin has not said yet what is wanted")
	}
	identity, err := w.identity()
	return w, identity, err
}

// start runs what is wanted when nothing serves.
func (s *supervisor) start() {
	s.lastStart = time.Now()
	w, identity, err := s.want()
	if err == nil {
		s.serving, err = s.launch(w, identity, nil)
	}
	s.note(identity, err)
}

// replace begins to replace the Envoy that serves if another one is wanted. Until the new one is ready, the old one serves.
func (s *supervisor) replace() {
	if s.serving == nil {
		return // start will find it
	}
	w, identity, err := s.want()
	if err == nil && identity == s.serving.identity {
		s.note(identity, nil)
		return
	}
	// Envoy has room for three at a time, and one that comes in vain leaves its place.
	for e := range s.leaving {
		e.stop()
	}
	if s.coming != nil {
		s.coming.stop()
		s.coming = nil
	}
	if err == nil {
		s.coming, err = s.launch(w, identity, s.serving)
	}
	s.note(s.serving.identity, err)
}

// takenOver: the Envoy that was coming serves now.
func (s *supervisor) takenOver(e *envoy) {
	if e != s.coming {
		return
	}
	s.leaving[s.serving] = true
	s.serving, s.coming = e, nil
	s.note(e.identity, nil)
}

// ended takes note of a process that is gone.
func (s *supervisor) ended(e *envoy) {
	_ = os.Remove(s.Dir.bootstrap(e.launch))
	delete(s.leaving, e)
	switch e {
	case s.coming:
		s.coming = nil
		s.note(s.identity(), fmt.Errorf("the new Envoy ended before it served (see %s): %w", s.Dir.Log(), e.err))
	case s.serving:
		fmt.Fprintf(os.Stderr, "kubelb-envoy: Envoy ended (see %s): %v; starting it again\n", s.Dir.Log(), e.err)
		s.serving = nil
		s.running.Ended = strings.ReplaceAll(e.err.Error(), "\n", ": ")
		s.note("", nil)
		if s.coming != nil {
			// It waits for one that is no more.
			s.coming.stop()
			s.coming = nil
		}
		// They have the UDP sockets, too, which nobody would read any longer.
		for old := range s.leaving {
			old.stop()
		}
	}
}

func (s *supervisor) identity() string {
	if s.serving == nil {
		return ""
	}
	return s.serving.identity
}

// note writes down what runs, and what is wrong.
func (s *supervisor) note(identity string, problem error) {
	before := s.running.Problem
	s.running.Identity, s.running.Problem = identity, ""
	if problem != nil {
		s.running.Problem = problem.Error()
	}
	if s.running.Problem != before && problem != nil {
		fmt.Fprintln(os.Stderr, "kubelb-envoy:", problem)
	}
	if err := writeJSON(s.Dir.running(), s.running); err != nil {
		fmt.Fprintln(os.Stderr, "kubelb-envoy:", err)
	}
}

// launch starts an Envoy, in the place of another one if given.
func (s *supervisor) launch(w Wanted, identity string, before *envoy) (*envoy, error) {
	s.running.Launch++
	e := &envoy{launch: s.running.Launch, identity: identity}
	bootstrap := strings.ReplaceAll(w.Bootstrap, LaunchMark, strconv.Itoa(e.launch))
	if err := statefile.Write(s.Dir.bootstrap(e.launch), []byte(bootstrap)); err != nil {
		return nil, err
	}
	// The old one ends by itself a minute after all that it keeps has been ended.
	args := []string{"--config-path", s.Dir.bootstrap(e.launch), "--log-level", "warning", "--log-path", s.Dir.Log(), "--socket-path", s.Dir.hot(), "--socket-mode", "0600",
		"--drain-time-s", strconv.Itoa(w.DrainSeconds), "--parent-shutdown-time-s", strconv.Itoa(w.DrainSeconds + 60)}
	if w.Concurrency > 0 {
		args = append(args, "--concurrency", strconv.Itoa(w.Concurrency))
	}
	if before == nil {
		s.removeSharedMemory()
		args = append(args, "--use-dynamic-base-id", "--base-id-path", s.Dir.baseID())
	} else {
		base, err := s.Dir.base()
		if err != nil {
			return nil, fmt.Errorf("which Envoy to replace: %w", err)
		}
		e.epoch = before.epoch + 1
		args = append(args, "--base-id", strconv.FormatUint(base, 10), "--restart-epoch", strconv.Itoa(e.epoch))
	}
	e.cmd = exec.Command(w.Envoy, args...)
	e.cmd.Stderr = os.Stderr
	if err := e.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start Envoy: %w", err)
	}
	done := make(chan struct{})
	go func() {
		e.err = errors.Join(errors.New("Envoy ended"), e.cmd.Wait())
		close(done)
		s.exits <- e
	}()
	if before != nil {
		go s.awaitReady(e, done)
	}
	return e, nil
}

// awaitReady tells when the Envoy serves, which it asks at the socket that Envoys hand over to each other.
func (s *supervisor) awaitReady(e *envoy, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case <-time.After(readyInterval):
		}
		if epoch, live := s.Dir.whoServes(); live && epoch == e.epoch {
			select {
			case s.ready <- e:
			case <-done:
			}
			return
		}
	}
}

// whoServes asks the admin socket which Envoy is behind it.
func (d Dir) whoServes() (epoch int, live bool) {
	response, err := d.Client().Get("http://envoy/server_info")
	if err != nil {
		return 0, false
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, false
	}
	var info struct {
		State   string `json:"state"`
		Options struct {
			Epoch int `json:"restart_epoch"`
		} `json:"command_line_options"`
	}
	err = json.Unmarshal(text, &info)
	return info.Options.Epoch, err == nil && info.State == "LIVE"
}

// Client asks Envoy's admin interface, whatever the host in the URL.
func (d Dir) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", d.Admin())
	}}}
}

// stop asks the process to end; what it does is told on exits.
func (e *envoy) stop() { _ = e.cmd.Process.Signal(syscall.SIGTERM) }

// end ends all processes.
func (s *supervisor) end() {
	all := s.leaving
	for _, e := range []*envoy{s.serving, s.coming} {
		if e != nil {
			all[e] = true
		}
	}
	for e := range all {
		e.stop()
	}
	kill := time.After(stopTimeout)
	for len(all) > 0 {
		select {
		case e := <-s.exits:
			delete(all, e)
		case <-s.ready:
		case <-kill:
			for e := range all {
				_ = e.cmd.Process.Kill()
			}
		}
	}
	s.removeSharedMemory()
}

// removeSharedMemory removes the shared memory of former Envoy processes. It is called while no Envoy runs.
func (s *supervisor) removeSharedMemory() {
	if err := s.Dir.removeSharedMemory(); err != nil {
		fmt.Fprintln(os.Stderr, "kubelb-envoy: remove the shared memory of Envoy:", err)
	}
}
