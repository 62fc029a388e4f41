// Package operation has the log, its level and the profiles of all programs.
package operation

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"

	"kubelb.k8c.io/api/plain"
)

// NewLogHandler returns a handler that writes lines of the level and above in the format text or json. The returned level can be changed later.
func NewLogHandler(level, format string, w io.Writer) (slog.Handler, *slog.LevelVar, error) {
	var l slog.LevelVar
	w = plain.Writer(w) // JSON does not escape all control characters of terminals
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, nil, fmt.Errorf("--log-level=%s: use debug, info, warn or error", level)
	}
	switch format {
	case "text":
		return slog.NewTextHandler(w, &slog.HandlerOptions{Level: &l}), &l, nil
	case "json":
		return slog.NewJSONHandler(w, &slog.HandlerOptions{Level: &l}), &l, nil
	}
	return nil, nil, fmt.Errorf("--log-format=%s: use text or json", format)
}

// DebugHandlers are served at the address of the metrics, to loopback addresses only, such as those of kubectl port-forward: profiles at
// /debug/pprof/ (see net/http/pprof), and the level of the log at /debug/log-level. PUT changes the level until the process ends.
func DebugHandlers(level *slog.LevelVar) map[string]http.Handler {
	handlers := map[string]http.Handler{"/debug/log-level": levelHandler(level), "/debug/pprof/": http.HandlerFunc(pprof.Index)}
	// The index serves what the runtime samples all the time. These two begin a measurement.
	for name, handler := range map[string]http.HandlerFunc{"profile": pprof.Profile, "trace": pprof.Trace} {
		handlers["/debug/pprof/"+name] = handler
	}
	for path, handler := range handlers {
		handlers[path] = onlyLoopback(handler)
	}
	return handlers
}

// onlyLoopback refuses requests from addresses that are not loopback.
func onlyLoopback(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		if address, err := netip.ParseAddr(host); err != nil || !address.Unmap().IsLoopback() {
			http.Error(w, "only from a loopback address: use kubectl port-forward", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func levelHandler(level *slog.LevelVar) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodGet:
		case http.MethodPut:
			text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 16))
			if err == nil {
				err = level.UnmarshalText(text)
			}
			if err != nil {
				http.Error(w, fmt.Sprintf("%q: use debug, info, warn or error", text), http.StatusBadRequest)
				return
			}
		default:
			http.Error(w, "use GET or PUT", http.StatusMethodNotAllowed)
			return
		}
		fmt.Fprintln(w, level.Level())
	})
}
