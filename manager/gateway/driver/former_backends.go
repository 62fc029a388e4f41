package driver

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"kubelb.k8c.io/backends/plugin"
)

// retryPurge is how often a failed purge is tried again.
const (
	// retryPurge is how often a purge is tried again that failed.
	retryPurge = 30 * time.Second
	// purgeLimit bounds one purge, which may wait for connections to end.
	purgeLimit = time.Minute
)

// purgeFormerBackends waits until the present dataplane holds everything, and then purges former backends. It ends with ctx.
func (d *Driver) purgeFormerBackends(ctx context.Context, post Post) error {
	select {
	case <-d.purgeNow:
	case <-ctx.Done():
		return nil
	}
	for {
		unpurged := d.purgeFormer(ctx)
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

// purgeFormer returns why former backends could not be purged, by name.
func (d *Driver) purgeFormer(ctx context.Context) map[string]string {
	backend := d.options.Plugin
	all, err := d.installed.read()
	if err != nil {
		return map[string]string{"unknown": err.Error()}
	}
	unpurged := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if name == backend.Name() {
			continue
		}
		if err := d.purgeBackend(ctx, name, all[name]); err != nil {
			d.log.Error("purge a former backend", "backend", name, "error", err)
			unpurged[name] = fmt.Sprintf("the former backend %s still has state on this host: %v; put its binary back, or remove that state and the entry in %s",
				name, err, d.installed.path)
			continue
		}
		d.log.Info("a former backend is purged", "former", name, "backend", backend.Name())
	}
	return unpurged
}

func (d *Driver) purgeBackend(ctx context.Context, name string, b installedBackend) error {
	ctx, cancel := context.WithTimeout(ctx, purgeLimit)
	defer cancel()
	former := d.options.Plugin
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
