package driver

import (
	"path/filepath"
	"strings"

	"kubelb.k8c.io/backends/dataplane"
)

// Backend says which plugin to run, and how.
type Backend struct {
	Path, Checksum string
	// Config is for the plugin. Its StateDir is the gateway's, in which each backend has a directory of its own.
	Config dataplane.Config
}

// Name is the backend's, by the name of its binary.
func (b Backend) Name() string { return strings.TrimPrefix(filepath.Base(b.Path), "kubelb-backend-") }

// stateDir is the backend's own part of the gateway's directory.
func (b Backend) stateDir() string { return filepath.Join(b.Config.StateDir, b.Name()) }

func (b Backend) socketDir() string { return filepath.Join(b.stateDir(), "run") }

// installed is what it takes to start the backend again.
func (b Backend) installed() installedBackend {
	return installedBackend{b.Path, b.Checksum, b.Config.Options}
}

// config is what the plugin is configured with.
func (b Backend) config() dataplane.Config {
	c := b.Config
	c.StateDir = b.stateDir()
	return c
}
