package operation

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheLogLevelChangesAtRunTimeFromLoopbackOnly(t *testing.T) {
	var level slog.LevelVar
	request := func(from, method, body string) (int, string) {
		r := httptest.NewRequest(method, "/debug/log-level", strings.NewReader(body))
		r.RemoteAddr = from
		w := httptest.NewRecorder()
		DebugHandlers(&level)["/debug/log-level"].ServeHTTP(w, r)
		return w.Code, strings.TrimSpace(w.Body.String())
	}
	code, text := request("127.0.0.1:5", http.MethodGet, "")
	require.Equal(t, http.StatusOK, code)
	require.Equal(t, "INFO", text)
	code, text = request("[::1]:5", http.MethodPut, "debug")
	require.Equal(t, http.StatusOK, code)
	require.Equal(t, "DEBUG", text)
	require.Equal(t, slog.LevelDebug, level.Level())

	for _, wrong := range []string{"", "loud", strings.Repeat("debug", 100)} {
		code, text = request("127.0.0.1:5", http.MethodPut, wrong)
		require.Equal(t, http.StatusBadRequest, code)
		require.Contains(t, text, "use debug, info, warn or error")
	}
	for _, elsewhere := range []string{"192.0.2.1:5", "[2001:db8::1]:5", "", "@"} {
		code, text = request(elsewhere, http.MethodPut, "error")
		require.Equal(t, http.StatusForbidden, code)
		require.Contains(t, text, "kubectl port-forward")
	}
	require.Equal(t, slog.LevelDebug, level.Level())
}

func TestProfilesAreServedToLoopbackOnly(t *testing.T) {
	server := httptest.NewServer(DebugHandlers(&slog.LevelVar{})["/debug/pprof/"])
	defer server.Close()
	response, err := server.Client().Get(server.URL + "/debug/pprof/goroutine?debug=1")
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusOK, response.StatusCode)
	for path, handler := range DebugHandlers(&slog.LevelVar{}) {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.RemoteAddr = "192.0.2.1:5"
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		require.Equal(t, http.StatusForbidden, w.Code, path)
	}
}

func TestFlagsSetFormatAndLevelOfTheLog(t *testing.T) {
	for format, line := range map[string]string{"text": `level=WARN msg=m key=v`, "json": `"level":"WARN","msg":"m","key":"v"}`} {
		var out strings.Builder
		handler, level, err := NewLogHandler("warn", format, &out)
		require.NoError(t, err)
		log := slog.New(handler)
		log.Info("suppressed")
		log.Warn("m", "key", "v")
		require.Equal(t, 1, strings.Count(out.String(), "\n"))
		require.Contains(t, out.String(), line)
		level.Set(slog.LevelDebug)
		log.Debug("written")
		require.Contains(t, out.String(), "written")
	}
	_, _, err := NewLogHandler("loud", "text", nil)
	require.EqualError(t, err, "--log-level=loud: use debug, info, warn or error")
	_, _, err = NewLogHandler("info", "xml", nil)
	require.EqualError(t, err, "--log-format=xml: use text or json")
}
