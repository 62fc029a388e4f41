package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/conformance"
)

// programs has the program and the bad plugin, which the first test that needs them builds.
var programs struct {
	once sync.Once
	dir  string
	err  error
}

func TestMain(m *testing.M) {
	status := m.Run()
	if programs.dir != "" {
		_ = os.RemoveAll(programs.dir)
	}
	os.Exit(status)
}

// suite is a run of the program with a bad plugin. It has directories of its own.
type suite struct {
	t       *testing.T
	tmp     string
	plugin  string
	report  string
	command *exec.Cmd
	output  bytes.Buffer
	began   time.Time
}

// start starts the program with a plugin that behaves as its name says. Other tests go on meanwhile.
func start(t *testing.T, how string, arguments ...string) *suite {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	programs.once.Do(func() { programs.err = build() })
	require.NoError(t, programs.err)
	tmp, err := os.MkdirTemp("", "kltest") // short, as paths of sockets are
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(tmp) })
	s := &suite{t: t, tmp: filepath.Join(tmp, "t"), plugin: filepath.Join(tmp, how), report: filepath.Join(tmp, "report.yaml")}
	require.NoError(t, os.Mkdir(s.tmp, 0o700))
	require.NoError(t, os.Link(filepath.Join(programs.dir, "bad"), s.plugin))
	s.run(arguments...)
	return s
}

func build() (err error) {
	if programs.dir, err = os.MkdirTemp("", "kltest"); err != nil {
		return err
	}
	for program, from := range map[string]string{"kubelb-conformance": ".", "bad": "./testdata/bad"} {
		output, err := exec.Command("go", "build", "-o", filepath.Join(programs.dir, program), from).CombinedOutput()
		if err != nil {
			return fmt.Errorf("build %s: %w: %s", program, err, output)
		}
	}
	return nil
}

// run starts the program, once more if it has ended.
func (s *suite) run(arguments ...string) {
	s.output.Reset()
	s.command = exec.Command(filepath.Join(programs.dir, "kubelb-conformance"), append([]string{"--backend=" + s.plugin, "--report=" + s.report}, arguments...)...)
	s.command.Env = append(os.Environ(), "TMPDIR="+s.tmp)
	s.command.Stdout, s.command.Stderr = &s.output, &s.output
	s.began = time.Now()
	require.NoError(s.t, s.command.Start())
}

// end waits for the end of the program, and returns its output and its exit status.
func (s *suite) end() (output string, status int) {
	s.t.Helper()
	err := s.command.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(s.t, err)
	}
	return s.output.String(), s.command.ProcessState.ExitCode()
}

// reported returns the report.
func (s *suite) reported() conformance.Report {
	s.t.Helper()
	text, err := os.ReadFile(s.report)
	require.NoError(s.t, err)
	r, err := conformance.ReadReport(text)
	require.NoError(s.t, err)
	return r
}

// namespaces returns the namespaces that this process of the program made.
func (s *suite) namespaces() []string {
	paths, err := filepath.Glob(fmt.Sprintf("/run/netns/klconf-%ds*", s.command.Process.Pid))
	require.NoError(s.t, err)
	return paths
}

// plugins returns the processes of the plugin, and the processes that it left.
func (s *suite) plugins() (pids []string) {
	found, err := filepath.Glob("/proc/[0-9]*/exe")
	require.NoError(s.t, err)
	for _, path := range found {
		if to, err := os.Readlink(path); err == nil && to == s.plugin {
			pids = append(pids, path)
		}
	}
	return pids
}

// requireNothingLeft requires that the program removed what it made.
func (s *suite) requireNothingLeft() {
	s.t.Helper()
	require.Empty(s.t, s.namespaces())
	require.Empty(s.t, s.plugins())
	left, err := os.ReadDir(s.tmp)
	require.NoError(s.t, err)
	require.Empty(s.t, left)
}

// eventually waits until the condition is true while the program runs.
func (s *suite) eventually(condition func() bool, what string) {
	s.t.Helper()
	require.Eventually(s.t, condition, time.Minute, 5*time.Millisecond, what)
}

func TestAPluginThatHangsInDescribeCannotBeTested(t *testing.T) {
	t.Parallel()
	s := start(t, "hangs-in-describe")
	output, status := s.end()
	require.Equal(t, 2, status, output)
	require.Contains(t, output, "the backend cannot be tested: expected an answer to Describe at host within 10s, seen: no answer: the backend hangs, and is killed")
	s.requireNothingLeft()
}

func TestAPluginThatDiesAtItsStartIsShownWithItsExitStatusAndItsOutput(t *testing.T) {
	t.Parallel()
	s := start(t, "dies-at-start")
	output, status := s.end()
	require.Equal(t, 2, status, output)
	require.Contains(t, output, "its process has ended (exit status 5)")
	require.Contains(t, output, "the backend at host wrote:\n  open /etc/bad.conf: no such file\n  cannot begin\n")
	s.requireNothingLeft()
}

func TestAPluginThatDiesInACaseIsShownInFull(t *testing.T) {
	t.Parallel()
	s := start(t, "dies-in-apply", "--case=refusal", "--patience=1.5", "--backend-option=note=it's here")
	output, status := s.end()
	require.Equal(t, 1, status, output)
	var all strings.Builder
	for i := range 200 {
		fmt.Fprintf(&all, "  line %d of the plugin\n", i+1)
	}
	all.WriteString("  to standard output\n  fatal: the table is full\n")
	require.Contains(t, output, "the backend at g0 ended by itself (exit status 7) wrote:\n"+all.String())
	require.NotContains(t, output, "Error Trace")
	require.NotContains(t, output, "the last packets")

	lines := strings.Split(output, "\n")
	for i, line := range lines {
		if !strings.HasPrefix(line, "failed ") {
			continue
		}
		require.Regexp(t, `^failed +refusal +IPv[46] .*  not true: `, line)
		require.Regexp(t, `^  expected: an answer to Apply at g0, change 1 of the case, with \d+ records$`, lines[i+1])
		require.Equal(t, "  seen:     the backend's process has ended by itself: exit status 7", lines[i+2])
		command, is := strings.CutPrefix(lines[i+3], "  alone:    ")
		require.True(t, is, lines[i+3])
		require.Equal(t, fmt.Sprintf(`%s --backend=%s --backend-option='note=it'\''s here' --patience=1.5 --case=refusal -v`, s.command.Path, s.plugin), command)
		if strings.Contains(line, "IPv4") {
			again := exec.Command("sh", "-c", command)
			again.Env = s.command.Env
			text, err := again.CombinedOutput()
			require.Error(t, err)
			require.Equal(t, 1, again.ProcessState.ExitCode(), string(text))
			require.Contains(t, string(text), "the last packets at", "-v shows all")
		}
	}
	r := s.reported()
	require.Len(t, r.Runs, 2)
	require.Equal(t, conformance.Failed, r.Runs[0].Outcome)
	require.Contains(t, r.Runs[0].Reason, "seen: the backend's process has ended by itself: exit status 7")
	require.Contains(t, r.Runs[0].Command, "--case=refusal -v")
	s.requireNothingLeft()
}

func TestThePanicOfAPluginIsShown(t *testing.T) {
	t.Parallel()
	s := start(t, "panics-in-apply", "--case=generations")
	output, status := s.end()
	require.Equal(t, 1, status, output)
	require.Contains(t, output, "the backend at g0 ended by itself (exit status 2) wrote:")
	require.Contains(t, output, "panic: the table is full")
	s.requireNothingLeft()
}

func TestThreeCasesInARowInWhichThePluginHangsEndTheSuite(t *testing.T) {
	t.Parallel()
	s := start(t, "hangs-once-configured", "--case=tcp-echo,tcp-reset,udp-reply,switching,hairpin")
	output, status := s.end()
	require.Equal(t, 2, status, output)
	require.Contains(t, output, "the backend hangs in 3 cases in a row, the last time in Describe at g0 (case udp-reply): the other 2 cases did not run; --keep-going goes on")
	r := s.reported()
	require.Equal(t, map[conformance.Outcome]int{conformance.Failed: 6}, r.Counts)
	require.Contains(t, r.Partial, "hangs in 3 cases in a row")
	require.Contains(t, r.Runs[0].Reason, "Describe at g0")
	s.requireNothingLeft()
}

func TestTheSuiteKeepsGoingOnDemand(t *testing.T) {
	t.Parallel()
	s := start(t, "hangs-once-configured", "--keep-going", "--case=tcp-echo,tcp-reset,udp-reply,hairpin")
	output, status := s.end()
	require.Equal(t, 1, status, output)
	r := s.reported()
	require.Equal(t, map[conformance.Outcome]int{conformance.Failed: 8}, r.Counts)
	require.Empty(t, r.Partial)
	require.True(t, r.Judgement.KeepGoing)
	s.requireNothingLeft()
}

func TestWhatTakesLongIsShownInAPipe(t *testing.T) {
	t.Parallel()
	s := start(t, "hangs-in-configure", "--case=tcp-echo")
	output, status := s.end()
	require.Equal(t, 1, status, output)
	require.Regexp(t, `(?m)^running     tcp-echo +IPv4 +1[5-9]s  Configure at g0, for 1\ds$`, output)
	require.Contains(t, output, "an answer to Configure at g0 within 30s")
	s.requireNothingLeft()
}

func TestAChangeThatHangsIsNamedWithItsNumberAndItsRecords(t *testing.T) {
	t.Parallel()
	s := start(t, "hangs-in-apply", "--case=hairpin")
	output, status := s.end()
	require.Equal(t, 1, status, output)
	require.Regexp(t, `expected: an answer to Apply at g0, change 1 of the case, with \d records within 1m0\.\d+s`, output)
	s.requireNothingLeft()
}

// interrupts are the ways to interrupt a suite. The plugin ignores all signals.
var interrupts = []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}

func TestAnInterruptEndsWithinFiveSecondsAndKeepsAPartialReport(t *testing.T) {
	for i, how := range []string{"hangs-in-apply", "hangs-in-configure", "leaves-much"} {
		t.Run(how, func(t *testing.T) {
			s := start(t, how, "--case=undeclared-features,switching,tcp-echo")
			s.eventually(func() bool { return len(s.plugins()) >= 2 && time.Since(s.began) > 3*time.Second }, "the plugins of both families run")
			interrupted := time.Now()
			require.NoError(t, s.command.Process.Signal(interrupts[i]))
			output, status := s.end()
			require.Less(t, time.Since(interrupted), 5*time.Second)
			t.Logf("it ended after %s", time.Since(interrupted))
			require.Equal(t, 2, status, output)
			require.Contains(t, output, "interrupted during case ")
			require.NotContains(t, output, "failed ")
			r := s.reported()
			require.Contains(t, r.Partial, "interrupted during case ")
			s.requireNothingLeft()
		})
	}
}

func TestAnInterruptedStartEndsWithinFiveSeconds(t *testing.T) {
	for _, how := range []string{"hangs-at-start", "hangs-in-describe"} {
		s := start(t, how)
		s.eventually(func() bool { return len(s.plugins()) == 1 }, "the plugin runs")
		interrupted := time.Now()
		require.NoError(t, s.command.Process.Signal(os.Interrupt))
		output, status := s.end()
		require.Less(t, time.Since(interrupted), 5*time.Second)
		require.Equal(t, 2, status, output)
		require.Contains(t, output, "interrupted before the first case")
		require.NoFileExists(t, s.report, "nothing is known of the plugin")
		s.requireNothingLeft()
	}
}

func TestTheSuiteEndsWhenNobodyReadsItsOutput(t *testing.T) {
	s := start(t, "dies-at-start")
	s.end()
	read, write, err := os.Pipe()
	require.NoError(t, err)
	require.NoError(t, os.Link(filepath.Join(programs.dir, "bad"), filepath.Join(filepath.Dir(s.plugin), "hangs-in-apply")))
	s.plugin = filepath.Join(filepath.Dir(s.plugin), "hangs-in-apply")
	s.command = exec.Command(filepath.Join(programs.dir, "kubelb-conformance"), "--backend="+s.plugin, "--case=tcp-echo")
	s.command.Env = append(os.Environ(), "TMPDIR="+s.tmp)
	s.command.Stdout = write
	require.NoError(t, s.command.Start())
	require.NoError(t, write.Close())
	require.NoError(t, read.Close())
	_, status := s.end()
	require.Equal(t, 2, status)
	s.requireNothingLeft()
}

func TestTheNextRunRemovesWhatAKilledOneLeft(t *testing.T) {
	s := start(t, "leaves-much", "--case=tcp-echo")
	left := func() (n int) {
		found, err := filepath.Glob(filepath.Join(s.tmp, "kubelb-*", "*", "state"))
		require.NoError(t, err)
		return len(found)
	}
	s.eventually(func() bool { return left() == 2 }, "the plugins of both families have a state")
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	require.NotContains(t, string(mounts), s.tmp, "the host's mounts are its own")
	require.NoError(t, s.command.Process.Kill())
	_, status := s.end()
	require.Equal(t, -1, status)
	require.Equal(t, 2, left())
	killed := s.namespaces()
	require.NotEmpty(t, killed)
	before := s.command.Process.Pid

	s.run("--case=no-such-case")
	_, status = s.end()
	require.Equal(t, 2, status)
	require.Equal(t, 2, left(), "the options are wrong, so nothing ran")
	require.NoError(t, os.Remove(s.plugin))
	require.NoError(t, os.Link(filepath.Join(programs.dir, "bad"), s.plugin+"-no-more"))
	s.plugin += "-no-more"
	s.run("--case=tcp-echo")
	output, status := s.end()
	require.Equal(t, 1, status, "a plugin that moves no packets fails")
	require.Contains(t, output, "removed what an earlier run left: ")
	s.requireNothingLeft()
	for _, path := range killed {
		require.NoFileExists(t, path)
	}
	found, err := filepath.Glob(fmt.Sprintf("/run/netns/klconf-%ds*", before))
	require.NoError(t, err)
	require.Empty(t, found)
	require.NoFileExists(t, "/dev/shm/of-a-bad-plugin")
	require.NoFileExists(t, "/sys/fs/bpf/of-a-bad-plugin")
	require.Empty(t, sleepers(t), "processes that the plugin started")
}

// sleepers returns processes that the plugin leaves.
func sleepers(t *testing.T) (pids []string) {
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, path := range found {
		if text, err := os.ReadFile(path); err == nil && string(text) == "/bin/sleep\x001000\x00" {
			pids = append(pids, path)
		}
	}
	return pids
}
