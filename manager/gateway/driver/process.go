package driver

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

// runner runs the plugin's process: it starts it, calls it with deadlines, and stops it. It belongs to the gateway's loop and is not safe for
// concurrent use.
type runner struct {
	backend   Backend
	load      func(plugin.Options) (Process, error)
	installed *installedBackends
	log       *slog.Logger
	observer  Observer
	epoch     string
	// ended is sent a process that ends, or reports that its state was taken away.
	ended chan<- Process

	limits limits
	// calling is the call that the plugin has not answered yet. duringCall is called until it has answered, or ctx ends. Nil does nothing.
	calling    *Call
	duringCall func(ctx context.Context, done <-chan struct{})

	process     Process
	stopWatch   context.CancelFunc
	description dataplane.Description
	// found is what the plugin has found of this host.
	found      findings
	generation dataplane.Generation
	// number counts the generations of this epoch. It never goes back, whatever the plugin has forgotten.
	number uint64
}

// start runs the process and configures it. It does not touch what the dataplane holds.
func (r *runner) start(ctx context.Context) error {
	r.stop()
	process, err := call(ctx, r, "its start", r.limits.load, func(context.Context) (Process, error) {
		return r.load(plugin.Options{Path: r.backend.Path, Checksum: r.backend.Checksum, SocketDir: r.backend.socketDir(), Log: &lineLog{log: r.log}})
	})
	if err != nil {
		return err
	}
	r.process = process
	r.observer.Started()
	if err := r.describe(ctx); err != nil {
		return err
	}
	r.preflight(ctx)
	err = r.installed.recordWhile(r.backend.Name(), r.backend.installed(), func() error {
		_, err := call(ctx, r, "Configure", r.limits.configure, func(ctx context.Context) (struct{}, error) {
			return struct{}{}, process.Configure(ctx, r.backend.config())
		})
		return err
	})
	if err != nil {
		return r.explain(err)
	}
	if err := r.describe(ctx); err != nil { // again, as its notes are complete now
		return err
	}
	notes := r.description.Notes
	r.description.Notes = nil
	r.setNotes(notes)
	watch, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r.stopWatch = cancel
	go func() {
		err := process.Watch(watch, func(f dataplane.Fault) {
			r.log.Error("backend reports a fault", "message", f.Message)
			if f.Resync {
				r.notify(watch, process)
			}
		})
		if err != nil && watch.Err() == nil {
			r.notify(watch, process)
		}
	}()
	return nil
}

func (r *runner) describe(ctx context.Context) error {
	description, err := call(ctx, r, "Describe", r.limits.describe, r.process.Describe)
	if err != nil {
		return fmt.Errorf("describe backend: %w", err)
	}
	r.description = description
	return nil
}

// setNotes takes over what the plugin notes now, and logs what is new.
func (r *runner) setNotes(notes []string) {
	for _, note := range notes {
		if !slices.Contains(r.description.Notes, note) {
			r.log.Info("backend notes", "backend", r.description.Name, "note", note)
		}
	}
	r.description.Notes = notes
}

func (r *runner) notify(ctx context.Context, process Process) {
	select {
	case r.ended <- process:
	case <-ctx.Done():
	}
}

// kill ends a process that does not answer.
func (r *runner) kill() {
	if r.process == nil {
		return
	}
	if err := r.process.Kill(); err != nil && !r.process.Exited() {
		r.log.Error("end the backend by force", "error", err)
	}
}

// stop ends the process; what it holds in the kernel stays.
func (r *runner) stop() {
	if r.stopWatch != nil {
		r.stopWatch()
		r.stopWatch = nil
	}
	if r.process != nil {
		r.process.Stop()
		r.process = nil
	}
}

// running reports whether there is a process to talk to.
func (r *runner) running() bool { return r.process != nil && !r.process.Exited() }

// apply sends a delta from the generation that the dataplane is at.
func (r *runner) apply(ctx context.Context, d model.Delta) ([]dataplane.RecordError, error) {
	r.number++
	next := dataplane.Generation{Epoch: r.epoch, Number: r.number}
	began := time.Now()
	change := dataplane.Change{Base: r.generation, Next: next, Delta: d}
	result, err := call(ctx, r, fmt.Sprintf("Apply of %d records", d.Len()), r.limits.forChange(d), func(ctx context.Context) (dataplane.Result, error) {
		return r.process.Apply(ctx, change)
	})
	if err != nil {
		return nil, err
	}
	r.observer.Applied(time.Since(began))
	r.generation = result.Generation
	r.log.Debug("applied", "pools", len(d.UpsertPools)+len(d.DeletePools), "frontends", len(d.UpsertFrontends)+len(d.DeleteFrontends),
		"operations", result.Operations, "microseconds", time.Since(began).Microseconds())
	return result.Failed, nil
}

// applied asks what the dataplane holds. The next change goes on from there.
func (r *runner) applied(ctx context.Context) (dataplane.Applied, error) {
	held, err := call(ctx, r, "Applied", r.limits.applied, r.process.Applied)
	if err != nil {
		return dataplane.Applied{}, fmt.Errorf("ask the backend what it holds: %w", err)
	}
	r.generation = held.Generation
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
