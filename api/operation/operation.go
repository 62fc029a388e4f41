// Package operation is what KubeLB's programs have in common for those who operate them: the log, its level, and profiles.
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

// NewLogHandler returns one that writes lines in that format, text or json, from that level on, which may change later.
func NewLogHandler(level, format string, w io.Writer) (slog.Handler, *slog.LevelVar, error) {
	var l slog.LevelVar
	w = plain.Writer(w) // JSON lines have signs in them that a terminal obeys, too
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

// DebugHandlers are what the metrics' address serves to the host, or the pod, itself, which kubectl port-forward makes one part of:
// profiles at /debug/pprof/ (see net/http/pprof), and the level of the log at /debug/log-level, where PUT changes it until the process ends.
func DebugHandlers(level *slog.LevelVar) map[string]http.Handler {
	handlers := map[string]http.Handler{"/debug/log-level": levelHandler(level), "/debug/pprof/": http.HandlerFunc(pprof.Index)}
	// The index serves what is sampled all the time; these have to be begun.
	for name, begin := range map[string]http.HandlerFunc{"profile": pprof.Profile, "trace": pprof.Trace} {
		handlers["/debug/pprof/"+name] = begin
	}
	for path, handler := range handlers {
		handlers[path] = fromLoopback(handler)
	}
	return handlers
}

// fromLoopback refuses whoever is elsewhere.
func fromLoopback(h http.Handler) http.Handler {
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
