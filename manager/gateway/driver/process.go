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
	backend   Plugin
	load      func(plugin.Options) (Process, error)
	installed *installedBackends
	log       *slog.Logger
	observer  Observer
	epoch     string
	// ended gets a process that has ended, or has lost its state.
	ended chan<- Process

	limits limits
	// calling is the call that the plugin has not answered yet. duringCall runs until the answer comes, or ctx ends. It may be nil.
	calling    *Call
	duringCall func(ctx context.Context, done <-chan struct{})

	process     Process
	stopWatch   context.CancelFunc
	description dataplane.Description
	// result is what the plugin has found of this host.
	result     preflightResult
	generation dataplane.Generation
	// number counts the generations of this epoch. It never goes back, whatever the plugin has lost.
	number uint64
}

// start starts the process and configures it. It does not change what the dataplane holds.
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
	err = r.installed.configure(r.backend.Name(), r.backend.installed(), func() error {
		_, err := call(ctx, r, "Configure", r.limits.configure, func(ctx context.Context) (struct{}, error) {
			return struct{}{}, process.Configure(ctx, r.backend.config())
		})
		return err
	})
	if err != nil {
		return r.explain(err)
	}
	if err := r.describe(ctx); err != nil { // again: its notes are complete now
		return err
	}
	notes := r.description.Notes
	r.description.Notes = nil
	r.setNotes(notes)
	watch, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r.stopWatch = cancel
	go func() {
		err := process.Watch(watch, func(f dataplane.Fault) {
			r.log.Error("the plugin reports a fault", "message", f.Message)
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
		return fmt.Errorf("describe the plugin: %w", err)
	}
	r.description = description
	return nil
}

// setNotes takes over the notes of the plugin, and logs new ones.
func (r *runner) setNotes(notes []string) {
	for _, note := range notes {
		if !slices.Contains(r.description.Notes, note) {
			r.log.Info("note of the plugin", "backend", r.description.Name, "note", note)
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
		r.log.Error("kill the plugin", "error", err)
	}
}

// stop ends the process. Its state in the kernel stays.
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

// running reports whether the process runs.
func (r *runner) running() bool { return r.process != nil && !r.process.Exited() }

// apply sends a delta to the dataplane, from its present generation.
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

// queryApplied returns what the dataplane holds. The next change starts from there.
func (r *runner) queryApplied(ctx context.Context) (dataplane.Applied, error) {
	held, err := call(ctx, r, "Applied", r.limits.applied, r.process.Applied)
	if err != nil {
		return dataplane.Applied{}, fmt.Errorf("read what the dataplane holds: %w", err)
	}
	r.generation = held.Generation
	return held, nil
}

// isResync reports whether a plugin has lost its place, and works otherwise.
func isResync(err error) bool { return errors.Is(err, dataplane.ErrResync) }

// lineLog logs each line that a plugin writes. plugin.Load writes from one goroutine at a time and never closes.
type lineLog struct {
	log     *slog.Logger
	partial []byte
}

// maxLine bounds a line without an end.
const maxLine = 64 << 10

// Write implements io.Writer and never fails.
func (l *lineLog) Write(p []byte) (int, error) {
	l.partial = append(l.partial, p...)
	for {
		line, rest, whole := bytes.Cut(l.partial, []byte("\n"))
		if !whole && len(l.partial) < maxLine {
			return len(p), nil
		}
		l.log.Debug("output of the plugin", "line", string(line))
		l.partial = rest
	}
}
