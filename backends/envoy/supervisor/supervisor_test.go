package supervisor

import (
	"context"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/statefile"
)

func TestAnEnvoyThatEndsIsStartedAgain(t *testing.T) {
	b, identity := newServing(t)
	require.Empty(t, b.now().Ended)
	require.NoError(t, syscall.Kill(b.process(1), syscall.SIGKILL))
	b.serving(2, 0, identity)
	require.Equal(t, "Envoy ended: signal: killed", b.now().Ended)
	require.Contains(t, b.written(2, "arguments"), "--use-dynamic-base-id", "there is no Envoy that it could replace")
	require.NoFileExists(t, b.Dir.bootstrap(1), "the bootstrap of an Envoy that has ended")
	text, err := os.ReadFile(b.Dir.bootstrap(2))
	require.NoError(t, err)
	require.Equal(t, "serve as launch 2", string(text))
}

func TestEnvoyGetsWhatThePluginWants(t *testing.T) {
	b, _ := newServing(t)
	arguments := b.written(1, "arguments")
	require.Contains(t, arguments, "--config-path "+b.Dir.bootstrap(1)+" ")
	require.Contains(t, arguments, "--concurrency 2")
	require.Contains(t, arguments, "--drain-time-s 7 --parent-shutdown-time-s 67", "connections may go on for seven seconds, and their Envoy ends a minute later")
}

func TestAnotherEnvoyReplacesTheFormerOneWhenItServes(t *testing.T) {
	b, former := newServing(t)
	next := b.replaceBy(waits)
	require.Contains(t, b.written(2, "arguments"), "--base-id 4000000000 --restart-epoch 1")
	require.Equal(t, former, b.now().Identity, "the new one does not serve yet")
	require.True(t, runs(b.process(1)))
	require.NoError(t, os.WriteFile(string(b.Dir)+"/may-serve", nil, 0o600))
	b.serving(2, 1, next)
	require.True(t, runs(b.process(1)), "its connections go on")

	last := b.replaceBy(serves)
	b.serving(3, 2, last)
	drained := b.process(1)
	b.eventually("Envoy allows three at a time, so the first one has to end", func() bool { return !runs(drained) })
	require.True(t, runs(b.process(2)))
}

func TestTheFormerEnvoyServesWhileTheWantedOneCannot(t *testing.T) {
	b, former := newServing(t)
	b.replaceBy(fails)
	b.eventually("the failure is reported", func() bool {
		return strings.Contains(b.now().Problem, "the new Envoy ended before it served (see "+b.Dir.Log()+")") && strings.Contains(b.now().Problem, "exit status 3")
	})
	require.Contains(t, b.now().Problem, "Envoy ended: exit status 3", "one line, since a status has no others")
	missing := b.wanted(serves)
	missing.Envoy = "/does/not/exist"
	require.NoError(t, writeJSON(b.Dir.wanted(), missing))
	b.replaceNow()
	require.Contains(t, b.now().Problem, "Envoy's binary: stat /does/not/exist")
	require.Equal(t, former, b.now().Identity)
	require.True(t, runs(b.process(1)))
	b.replaceBy(serves)
	r := b.now()
	require.Equal(t, []string{former, ""}, []string{r.Identity, r.Problem})
}

func TestAnEnvoyThatStartsIsNotStartedAgain(t *testing.T) {
	b, _ := newServing(t)
	next := b.replaceBy(waits)
	b.replaceNow()
	starting := b.process(2)
	require.NoError(t, os.WriteFile(string(b.Dir)+"/may-serve", nil, 0o600))
	b.serving(2, 1, next)
	require.True(t, runs(starting))
}

func TestARequestThatIsTakenBackReplacesNothing(t *testing.T) {
	b, former := newServing(t)
	b.replaceBy(waits)
	starting := b.process(2)
	b.replaceBy(serves)
	b.eventually("the starting Envoy ends, since it is not wanted any more", func() bool { return !runs(starting) })
	require.Equal(t, former, b.now().Identity)
	require.True(t, runs(b.process(1)))
}

// Both replace the same Envoy, so they have the same restart epoch, by which Envoys find each other.
func TestAnEnvoyStartsWhenTheAbandonedOneOfItsEpochHasEnded(t *testing.T) {
	b, former := newServing(t)
	b.replaceBy(lingers)
	abandoned := b.process(2)
	next := b.replaceBy(serves + " again")
	require.Equal(t, Running{Launch: 2, Identity: former}, b.now(), "the abandoned one runs")
	require.True(t, runs(abandoned))
	require.NoError(t, os.WriteFile(string(b.Dir)+"/may-end", nil, 0o600))
	b.serving(3, 1, next)
	require.False(t, runs(abandoned))
	require.Contains(t, b.written(3, "arguments"), "--restart-epoch 1")
}

func TestAnAbandonedEnvoyEndsWithTheSupervisor(t *testing.T) {
	b, former := newServing(t)
	b.replaceBy(lingers)
	abandoned := b.process(2)
	b.replaceBy(serves)
	require.Equal(t, Running{Launch: 2, Identity: former}, b.now(), "the request is taken back")
	require.NoError(t, os.WriteFile(string(b.Dir)+"/may-end", nil, 0o600))
	b.stop()
	require.False(t, runs(abandoned))
}

func TestTheEndOfTheServingEnvoyEndsThoseThatNeedIt(t *testing.T) {
	b, _ := newServing(t)
	b.replaceBy(waits)
	serving, starting := b.process(1), b.process(2)
	last := b.request(b.wanted(serves + " again"))
	require.NoError(t, syscall.Kill(serving, syscall.SIGKILL))
	b.serving(3, 0, last)
	b.eventually("the starting Envoy ends, since it waits for the serving one", func() bool { return !runs(starting) })
}

func TestTheSameEnvoyIsNotReplaced(t *testing.T) {
	b, identity := newServing(t)
	b.replaceNow()
	require.Equal(t, Running{Launch: 1, Identity: identity}, b.now())
}

func TestASupervisorWaitsForTheFirstRequest(t *testing.T) {
	b := newBench(t)
	b.run()
	b.eventually("it says so", func() bool { return b.now().Problem == "the plugin has not requested an Envoy yet" })
	b.replaceNow()
	require.Zero(t, b.now().Launch)
	identity := b.request(b.wanted(serves))
	b.serving(1, 0, identity)
}

func TestTheEndOfTheSupervisorEndsItsEnvoys(t *testing.T) {
	b, _ := newServing(t)
	next := b.replaceBy(serves + " again")
	b.serving(2, 1, next)
	require.NoError(t, os.WriteFile(sharedMemory(fakeBase), nil, 0o600))
	b.stop()
	require.False(t, runs(b.process(1)))
	require.False(t, runs(b.process(2)))
	require.NoFileExists(t, sharedMemory(fakeBase), "Envoy never removes it")
	pid, err := b.Dir.Supervisor()
	require.NoError(t, err)
	require.Zero(t, pid)
	require.NoError(t, b.Dir.Stop(t.Context()), "nothing is left to stop")
}

func TestADirectoryHasOneSupervisor(t *testing.T) {
	b := newBench(t)
	b.run()
	b.eventually("it has the lock", func() bool { pid, err := b.Dir.Supervisor(); return err == nil && pid == os.Getpid() })
	require.EqualError(t, Run(t.Context(), Options{Dir: b.Dir}), string(b.Dir)+" already has a supervisor")
}

func TestLaunchesAreCountedBeyondTheEndOfTheSupervisor(t *testing.T) {
	b := newBench(t)
	identity := b.request(b.wanted(serves))
	require.NoError(t, writeJSON(b.Dir.running(), Running{Launch: 41, Identity: identity}))
	b.run()
	b.serving(42, 0, identity)
}

func TestADamagedFileOfAFormerSupervisorIsSetAside(t *testing.T) {
	b := newBench(t)
	require.NoError(t, os.WriteFile(b.Dir.running(), []byte("{"), 0o600))
	identity := b.request(b.wanted(serves))
	b.run()
	b.eventually("Envoy runs", func() bool { r, err := b.Dir.Running(); return err == nil && r.Identity == identity })
	text, err := os.ReadFile(statefile.Aside(b.Dir.running()))
	require.NoError(t, err)
	require.Equal(t, "{", string(text))
}

// Want starts a supervisor as another process, which is this binary.
func TestARequestStartsASupervisorOnceAndReplacesItsEnvoy(t *testing.T) {
	b := newBench(t)
	program, err := os.Executable()
	require.NoError(t, err)
	require.NoError(t, b.Dir.Want(b.wanted(serves), program))
	supervisor, err := b.Dir.Supervisor()
	require.NoError(t, err)
	require.NotContains(t, []int{0, os.Getpid()}, supervisor)
	t.Cleanup(func() { _ = b.Dir.Stop(context.Background()) })
	identity, err := b.wanted(serves).identity()
	require.NoError(t, err)
	b.serving(1, 0, identity)

	require.NoError(t, b.Dir.Want(b.wanted(serves), "/does/not/exist"), "no other supervisor is started")
	require.NoError(t, b.Dir.Want(b.wanted(serves+" again"), "/does/not/exist"))
	identity, err = b.wanted(serves + " again").identity()
	require.NoError(t, err)
	b.serving(2, 1, identity)

	envoys := []int{b.process(1), b.process(2)}
	require.NoError(t, b.Dir.Stop(t.Context()))
	for _, pid := range append(envoys, supervisor) {
		b.eventually("all have ended", func() bool { return !runs(pid) })
	}
}

func TestARequestThatCannotBeMetSaysWhatToLookAt(t *testing.T) {
	b := newBench(t)
	require.ErrorContains(t, b.Dir.Want(b.wanted(serves), "/does/not/exist"), "start Envoy's supervisor: fork/exec /does/not/exist")
	require.EqualError(t, b.Dir.Want(b.wanted(serves), "/bin/false"), "Envoy's supervisor ended at once (see "+b.Dir.OwnLog()+"): exit status 1")
	require.EqualError(t, b.Dir.Want(b.wanted(serves), "/bin/true"), "Envoy's supervisor ended at once (see "+b.Dir.OwnLog()+"): exit status 0")
	long := Dir("/tmp/" + strings.Repeat("x", 100))
	want := "state directory " + string(long) + ": its name is too long for a Unix socket in it; use one of at most 96 characters"
	require.EqualError(t, long.Want(b.wanted(serves), "/bin/false"), want)
	require.EqualError(t, Run(t.Context(), Options{Dir: long}), want)
}

func TestASupervisorThatDoesNotEndIsNamed(t *testing.T) {
	b := newBench(t)
	lock, err := b.Dir.acquire()
	require.NoError(t, err)
	defer lock.Close()
	stopped := make(chan os.Signal, 1)
	defer catch(stopped)()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = b.Dir.Stop(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "Envoy's supervisor, process ")
	require.Equal(t, syscall.SIGTERM, <-stopped)
	require.Empty(t, stopped, "one signal is enough")
}

func TestAnEnvoyIsReplacedIfAnythingThatItCannotChangeDiffers(t *testing.T) {
	b := newBench(t)
	binary := string(b.Dir) + "/envoy"
	require.NoError(t, os.WriteFile(binary, []byte("one"), 0o700))
	w := Wanted{Envoy: binary, Bootstrap: "a", Concurrency: 1, DrainSeconds: 1}
	seen := map[string]string{}
	differs := func(what string) {
		identity, err := w.identity()
		require.NoError(t, err)
		require.NotContains(t, seen, identity, what)
		seen[identity] = what
		again, err := w.identity()
		require.NoError(t, err)
		require.Equal(t, identity, again)
	}
	differs("the first")
	w.Bootstrap = "b"
	differs("bootstrap")
	w.Concurrency = 2
	differs("threads")
	w.DrainSeconds = 2
	differs("drain time")
	require.NoError(t, os.WriteFile(binary, []byte("three"), 0o700))
	differs("size of the binary")
	require.NoError(t, os.Chtimes(binary, time.Time{}, time.Unix(1_000_000_000, 0)))
	differs("time of the binary")
}

func TestSharedMemoryIsFoundByTheBaseIDOfTheLastEnvoys(t *testing.T) {
	b := newBench(t)
	require.NoError(t, b.Dir.removeSharedMemory(), "no Envoy was started")
	require.NoError(t, os.WriteFile(b.Dir.baseID(), []byte("seven\n"), 0o600))
	require.ErrorContains(t, b.Dir.removeSharedMemory(), "base id in "+b.Dir.baseID())
	require.NoError(t, os.WriteFile(b.Dir.baseID(), []byte("4000000001\n"), 0o600))
	require.NoError(t, b.Dir.removeSharedMemory(), "it is gone already")
	require.NoError(t, os.WriteFile("/dev/shm/envoy_shared_memory_40000000010", nil, 0o600))
	require.NoError(t, b.Dir.removeSharedMemory())
	require.NoFileExists(t, "/dev/shm/envoy_shared_memory_40000000010")
}

func TestASupervisorMayOpenAsManyFilesAsItsLimitAllows(t *testing.T) {
	require.NoError(t, raiseFileLimit())
	var limit syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	require.Equal(t, limit.Max, limit.Cur)
}
