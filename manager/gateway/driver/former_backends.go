package driver

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"kubelb.k8c.io/backends/plugin"
)

const (
	// retryPurge is how often a purge is tried again that failed.
	retryPurge = 30 * time.Second
	// purgeLimit bounds one purge. A backend may let connections end meanwhile.
	purgeLimit = time.Minute
)

// purgeFormerBackends waits until this gateway's dataplane holds everything, and then purges what others hold. It ends with ctx.
func (d *Driver) purgeFormerBackends(ctx context.Context, post Post) error {
	select {
	case <-d.purgeNow:
	case <-ctx.Done():
		return nil
	}
	for {
		unpurged := d.purgeOthers(ctx)
		post(ctx, func() { d.unpurged = unpurged })
		if len(unpurged) == 0 {
			return nil
		}
		select {
		case <-time.After(retryPurge):
		case <-ctx.Done():
			return nil
		}
	}
}

// purgeOthers returns why former backends could not be purged, by name.
func (d *Driver) purgeOthers(ctx context.Context) map[string]string {
	backend := d.options.Backend
	all, err := d.installed.read()
	if err != nil {
		return map[string]string{"unknown": err.Error()}
	}
	unpurged := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if name == backend.Name() {
			continue
		}
		if err := d.purgeOther(ctx, name, all[name]); err != nil {
			d.log.Error("purge the backend that was here before", "backend", name, "error", err)
			unpurged[name] = fmt.Sprintf("the %s backend, which was here before, still holds its part of the dataplane: %v; put its binary back, or remove what it holds and its entry in %s",
				name, err, d.installed.path)
			continue
		}
		d.log.Info("another backend has taken over; the former one is purged", "former", name, "backend", backend.Name())
	}
	return unpurged
}

func (d *Driver) purgeOther(ctx context.Context, name string, b installedBackend) error {
	ctx, cancel := context.WithTimeout(ctx, purgeLimit)
	defer cancel()
	former := d.options.Backend
	former.Path, former.Checksum, former.Config.Options = b.Path, b.Checksum, b.Options
	process, err := d.options.Load(plugin.Options{Path: former.Path, Checksum: former.Checksum, SocketDir: former.socketDir(), Log: &lineLog{log: d.log}})
	if err != nil {
		return err
	}
	defer process.Stop()
	if err := process.Configure(ctx, former.config()); err != nil {
		return err
	}
	if err := process.Close(ctx, true); err != nil {
		return err
	}
	return d.installed.remove(name)
}
