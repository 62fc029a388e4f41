// Package supervisor runs an Envoy: it starts it, starts it again at once when it ends, replaces it without refusing a
// connection (Envoy's hot restart), and ends it. It does not know Envoy's resources: the plugin says which Envoy is wanted, in a
// file of a shared directory, and sends the resources to Envoy over a socket there. So Envoy outlives the plugin and its
// upgrades.
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
	// restartPause keeps an Envoy that ends at once from using a whole processor.
	restartPause = 200 * time.Millisecond
	// stopTimeout is the deadline for Envoy to end.
	stopTimeout = 5 * time.Second
	// readyInterval is how often the supervisor checks whether a new Envoy serves.
	readyInterval = 50 * time.Millisecond
)

// Options of a supervisor.
type Options struct {
	Dir Dir
	// Envoy, if set, is the binary to run, whatever the plugin wants.
	Envoy string
	// Replace gets a signal when the wanted Envoy may have changed.
	Replace <-chan os.Signal
}

// supervisor is used only by the goroutine of Run.
type supervisor struct {
	Options
	running Running
	// serving is the Envoy that accepts connections, starting the one that is to replace it, draining those that only finish their connections.
	serving, starting *envoy
	draining          map[*envoy]bool
	// abandoned is an Envoy that is draining without having served. The next one to replace the serving Envoy needs its restart epoch.
	abandoned    *envoy
	exits, ready chan *envoy
	lastStart    time.Time
}

// envoy is a process.
type envoy struct {
	cmd      *exec.Cmd
	launch   int
	epoch    int
	identity string
	err      error
}

// Run keeps an Envoy running until ctx ends. The caller must be locked to an operating system thread that lives as long: the
// kernel sends SIGTERM to Envoy when the thread that started it ends.
func Run(ctx context.Context, o Options) error {
	lock, err := o.Dir.acquire()
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := raiseFileLimit(); err != nil {
		return err
	}
	s := &supervisor{Options: o, draining: map[*envoy]bool{}, exits: make(chan *envoy), ready: make(chan *envoy)}
	if err := readJSON(o.Dir.running(), &s.running); err != nil {
		// No Envoy runs yet, so the file's content is not needed.
		fmt.Fprintln(os.Stderr, "kubelb-envoy: replaces a damaged file:", errors.Join(err, statefile.SetAside(o.Dir.running())))
		s.running = Running{}
	}
	defer s.stopAll()
	restart := time.NewTimer(0)
	defer restart.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-restart.C:
			s.start()
		case <-o.Replace:
			s.replace()
		case e := <-s.ready:
			s.handleReady(e)
		case e := <-s.exits:
			s.handleExit(e)
		}
		if s.serving == nil && s.starting == nil {
			restart.Reset(max(0, restartPause-time.Since(s.lastStart)))
		}
	}
}

// raiseFileLimit raises the limit of open files to that of the host, or else to that of this process. Envoy needs a file for
// each connection, and for each frontend in each thread. systemd's default is 1024.
func raiseFileLimit() error {
	var current syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &current); err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	text, err := os.ReadFile("/proc/sys/fs/nr_open")
	if err != nil {
		return fmt.Errorf("read how many files a process may open: %w", err)
	}
	limit, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return fmt.Errorf("read how many files a process may open: %w", err)
	}
	err = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: limit, Max: limit})
	if errors.Is(err, syscall.EPERM) {
		err = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: current.Max, Max: current.Max})
	}
	if err != nil {
		return fmt.Errorf("raise the limit of open files: %w", err)
	}
	return nil
}

// readWanted reads which Envoy is wanted, and returns its identity.
func (s *supervisor) readWanted() (Wanted, string, error) {
	var w Wanted
	if err := readJSON(s.Dir.wanted(), &w); err != nil {
		return w, "", err
	}
	if s.Envoy != "" {
		w.Envoy = s.Envoy
	}
	if w.Envoy == "" || w.Bootstrap == "" {
		return w, "", errors.New("the plugin has not requested an Envoy yet")
	}
	identity, err := w.identity()
	return w, identity, err
}

// start starts the wanted Envoy if none serves.
func (s *supervisor) start() {
	s.lastStart = time.Now()
	w, identity, err := s.readWanted()
	if err == nil {
		s.serving, err = s.launch(w, identity, nil)
	}
	s.writeRunning(identity, err)
}

// replace starts another Envoy if the wanted one differs. The old one serves until the new one is ready.
func (s *supervisor) replace() {
	if s.serving == nil {
		return // start reads it
	}
	w, identity, err := s.readWanted()
	if err == nil && s.starting != nil && identity == s.starting.identity {
		return // another one would need what the starting one still has
	}
	s.abandonStarting()
	if err == nil && identity == s.serving.identity {
		s.writeRunning(identity, nil)
		return
	}
	// Envoy allows three at a time.
	for e := range s.draining {
		e.stop()
	}
	if err == nil && s.abandoned != nil {
		return // its end replaces
	}
	if err == nil {
		s.starting, err = s.launch(w, identity, s.serving)
	}
	s.writeRunning(s.serving.identity, err)
}

// abandonStarting ends the Envoy that is to replace the serving one.
func (s *supervisor) abandonStarting() {
	e := s.starting
	if e == nil {
		return
	}
	s.starting, s.abandoned = nil, e
	s.draining[e] = true
	e.stop()
	time.AfterFunc(stopTimeout, func() { _ = e.cmd.Process.Kill() }) // others wait for its end
}

// handleReady makes the new Envoy the serving one.
func (s *supervisor) handleReady(e *envoy) {
	if e != s.starting {
		return
	}
	s.draining[s.serving] = true
	s.serving, s.starting = e, nil
	s.writeRunning(e.identity, nil)
}

// handleExit handles the end of an Envoy.
func (s *supervisor) handleExit(e *envoy) {
	_ = os.Remove(s.Dir.bootstrap(e.launch))
	delete(s.draining, e)
	switch e {
	case s.starting:
		s.starting = nil
		s.writeRunning(s.identity(), fmt.Errorf("the new Envoy ended before it served (see %s): %w", s.Dir.Log(), e.err))
	case s.abandoned:
		s.abandoned = nil
		s.replace()
	case s.serving:
		fmt.Fprintf(os.Stderr, "kubelb-envoy: Envoy ended (see %s): %v; starting it again\n", s.Dir.Log(), e.err)
		s.serving = nil
		s.running.Ended = oneLine(e.err)
		s.writeRunning("", nil)
		s.abandonStarting() // it would wait for the Envoy that has ended
		// They also have the UDP sockets, from which nothing would read any more.
		for old := range s.draining {
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

// writeRunning writes which Envoy runs, and what is wrong.
func (s *supervisor) writeRunning(identity string, problem error) {
	before := s.running.Problem
	s.running.Identity, s.running.Problem = identity, ""
	if problem != nil {
		s.running.Problem = oneLine(problem)
	}
	if s.running.Problem != before && problem != nil {
		fmt.Fprintln(os.Stderr, "kubelb-envoy:", problem)
	}
	if err := writeJSON(s.Dir.running(), s.running); err != nil {
		fmt.Fprintln(os.Stderr, "kubelb-envoy:", err)
	}
}

// oneLine returns the text of an error for a status, which is a line. Joined errors are on a line each.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", ": ") }

// launch starts an Envoy. If before is not nil, it replaces that one.
func (s *supervisor) launch(w Wanted, identity string, before *envoy) (*envoy, error) {
	s.running.Launch++
	e := &envoy{launch: s.running.Launch, identity: identity}
	bootstrap := strings.ReplaceAll(w.Bootstrap, LaunchMark, strconv.Itoa(e.launch))
	if err := statefile.Write(s.Dir.bootstrap(e.launch), []byte(bootstrap)); err != nil {
		return nil, err
	}
	// The old Envoy ends its connections after DrainSeconds, and itself a minute later.
	args := []string{"--config-path", s.Dir.bootstrap(e.launch), "--log-level", "warning", "--log-path", s.Dir.Log(), "--socket-path", s.Dir.hotRestartSocket(), "--socket-mode", "0600",
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
			return nil, fmt.Errorf("find the Envoy to replace: %w", err)
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

// awaitReady sends the Envoy to s.ready once it serves. It checks that at the admin socket, which the new Envoy takes over.
func (s *supervisor) awaitReady(e *envoy, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case <-time.After(readyInterval):
		}
		if epoch, live := s.Dir.servingEpoch(); live && epoch == e.epoch {
			select {
			case s.ready <- e:
			case <-done:
			}
			return
		}
	}
}

// servingEpoch returns the restart epoch of the Envoy at the admin socket, and whether it is live.
func (d Dir) servingEpoch() (epoch int, live bool) {
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

// Client returns a client of Envoy's admin interface. It ignores the host in the URL.
func (d Dir) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", d.Admin())
	}}}
}

// stop sends SIGTERM. The end of the process is sent to exits.
func (e *envoy) stop() { _ = e.cmd.Process.Signal(syscall.SIGTERM) }

// stopAll ends all processes.
func (s *supervisor) stopAll() {
	all := s.draining
	for _, e := range []*envoy{s.serving, s.starting} {
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
