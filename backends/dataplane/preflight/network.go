package preflight

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// InNetworkNamespace calls f in a new network namespace (network_namespaces(7)), on a new thread. Both end with f. If the kernel does not allow that, it
// returns false and does not call f.
func InNetworkNamespace(f func()) bool {
	called := make(chan bool)
	go func() {
		runtime.LockOSThread()
		// The runtime never ends the process's first thread, and /proc/self shows that thread's namespace: the whole process would read /proc/self/net of
		// this namespace from now on. While the first thread is locked here, the next goroutine gets another one.
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			called <- InNetworkNamespace(f)
			return
		}
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			called <- false
			return
		}
		f()
		called <- true // the thread stays locked, so that it ends
	}()
	return <-called
}
