package driver

import (
	"path/filepath"
	"strings"

	"kubelb.k8c.io/backends/dataplane"
)

// Plugin says which plugin to run, and how.
type Plugin struct {
	Path, Checksum string
	// Config is for the plugin. Its StateDir is the gateway's, where each backend gets a directory of its own.
	Config dataplane.Config
}

// Name returns the name of the backend, which is part of the name of its binary.
func (b Plugin) Name() string { return strings.TrimPrefix(filepath.Base(b.Path), "kubelb-backend-") }

// stateDir returns the backend's directory in the gateway's.
func (b Plugin) stateDir() string { return filepath.Join(b.Config.StateDir, b.Name()) }

func (b Plugin) socketDir() string { return filepath.Join(b.stateDir(), "run") }

// installed returns what is needed to start the backend again.
func (b Plugin) installed() installedBackend {
	return installedBackend{b.Path, b.Checksum, b.Config.Options}
}

// config returns the configuration of the plugin.
func (b Plugin) config() dataplane.Config {
	c := b.Config
	c.StateDir = b.stateDir()
	return c
}
