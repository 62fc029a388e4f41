package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/plugin"
	"kubelb.k8c.io/core/model"
)

// BackendOptions say which backend to run and how.
type BackendOptions struct {
	Path, Checksum string
	// Config is for the backend; its StateDir is the gateway's, in which each backend has a directory of its own.
	Config dataplane.Config
}

// host runs the backend's process: it starts it, brings it to the model, and does so again when it ends. It belongs to
// the gateway's loop and is not safe for concurrent use.
type host struct {
	options BackendOptions
	holders *holders
	log     *slog.Logger
	metrics *metrics
	epoch   string
	// ended is sent on when a process ends or reports that its state was taken away.
	ended chan<- *plugin.Process

	limits limits
	// calling is what the backend is asked now; meanwhile is called until it has answered, or ctx ends. Without it nothing is done.
	calling   *call
	meanwhile func(ctx context.Context, done <-chan struct{})

	process     *plugin.Process
	stopWatch   context.CancelFunc
	description dataplane.Description
	// found is what the backend lacks of this host.
	found      findings
	generation dataplane.Generation
	// number counts the generations of this epoch; it never goes back, whatever the backend has forgotten.
	number uint64
}

// start runs the process and configures it. It does not touch what the dataplane holds.
func (h *host) start(ctx context.Context) error {
	h.stop()
	process, err := called(ctx, h, "its start", h.limits.load, func(context.Context) (*plugin.Process, error) {
		return plugin.Load(plugin.Options{Path: h.options.Path, Checksum: h.options.Checksum, SocketDir: h.options.socketDir(), Log: &lineLog{log: h.log}})
	})
	if err != nil {
		return err
	}
	h.process = process
	h.metrics.starts.Inc()
	if err := h.describe(ctx); err != nil {
		return err
	}
	h.preflight(ctx)
	err = h.holders.during(h.options.name(), h.options.holder(), func() error {
		_, err := called(ctx, h, "Configure", h.limits.configure, func(ctx context.Context) (struct{}, error) {
			return struct{}{}, process.Configure(ctx, h.options.config())
		})
		return err
	})
	if err != nil {
		return h.explain(err)
	}
	if err := h.describe(ctx); err != nil { // again, as its notes are complete now
		return err
	}
	notes := h.description.Notes
	h.description.Notes = nil
	h.noteAnew(notes)
	watch, cancel := context.WithCancel(context.WithoutCancel(ctx))
	h.stopWatch = cancel
	go func() {
		err := process.Watch(watch, func(f dataplane.Fault) {
			h.log.Error("backend reports a fault", "message", f.Message)
			if f.Resync {
				h.notify(watch, process)
			}
		})
		if err != nil && watch.Err() == nil {
			h.notify(watch, process)
		}
	}()
	return nil
}

func (h *host) describe(ctx context.Context) error {
	description, err := called(ctx, h, "Describe", h.limits.describe, h.process.Describe)
	if err != nil {
		return fmt.Errorf("describe backend: %w", err)
	}
	h.description = description
	return nil
}

// noteAnew takes over what the backend notes now, and logs what is new.
func (h *host) noteAnew(notes []string) {
	for _, note := range notes {
		if !slices.Contains(h.description.Notes, note) {
			h.log.Info("backend notes", "backend", h.description.Name, "note", note)
		}
	}
	h.description.Notes = notes
}

func (h *host) notify(ctx context.Context, process *plugin.Process) {
	select {
	case h.ended <- process:
	case <-ctx.Done():
	}
}

// kill ends a process that does not answer.
func (h *host) kill() {
	if h.process == nil {
		return
	}
	if err := h.process.Kill(); err != nil && !h.process.Exited() {
		h.log.Error("end the backend by force", "error", err)
	}
}

// stop ends the process; what it holds in the kernel stays.
func (h *host) stop() {
	if h.stopWatch != nil {
		h.stopWatch()
		h.stopWatch = nil
	}
	if h.process != nil {
		h.process.Stop()
		h.process = nil
	}
}

// running reports whether there is a process to talk to.
func (h *host) running() bool { return h.process != nil && !h.process.Exited() }

// apply sends a delta from the generation that the dataplane is at.
func (h *host) apply(ctx context.Context, d model.Delta) ([]dataplane.RecordError, error) {
	h.number++
	next := dataplane.Generation{Epoch: h.epoch, Number: h.number}
	began := time.Now()
	change := dataplane.Change{Base: h.generation, Next: next, Delta: d}
	result, err := called(ctx, h, fmt.Sprintf("Apply of %d records", d.Len()), h.limits.forChange(d), func(ctx context.Context) (dataplane.Result, error) {
		return h.process.Apply(ctx, change)
	})
	if err != nil {
		return nil, err
	}
	h.metrics.applies.Observe(time.Since(began).Seconds())
	h.generation = result.Generation
	h.log.Debug("applied", "pools", len(d.UpsertPools)+len(d.DeletePools), "frontends", len(d.UpsertFrontends)+len(d.DeleteFrontends),
		"operations", result.Operations, "microseconds", time.Since(began).Microseconds())
	return result.Failed, nil
}

// holds asks what the dataplane holds; the next change goes on from there.
func (h *host) holds(ctx context.Context) (dataplane.Applied, error) {
	held, err := called(ctx, h, "Applied", h.limits.applied, h.process.Applied)
	if err != nil {
		return dataplane.Applied{}, fmt.Errorf("ask the backend what it holds: %w", err)
	}
	h.generation = held.Generation
	return held, nil
}

// isResync tells a backend that lost its place from one that is broken.
func isResync(err error) bool { return errors.Is(err, dataplane.ErrResync) }

// lineLog logs what a backend writes to its standard error, each whole line that is written to it. go-plugin writes from one goroutine and never closes.
type lineLog struct {
	log     *slog.Logger
	partial []byte
}

// maxLine bounds what is kept of a line that does not end.
const maxLine = 64 << 10

// Write implements io.Writer and never fails.
func (l *lineLog) Write(p []byte) (int, error) {
	l.partial = append(l.partial, p...)
	for {
		line, rest, whole := bytes.Cut(l.partial, []byte("\n"))
		if !whole && len(l.partial) < maxLine {
			return len(p), nil
		}
		l.log.Debug("backend", "line", string(line))
		l.partial = rest
	}
}
