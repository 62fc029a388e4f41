package cases

import (
	"os"
	"path/filepath"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

func preflight() Case {
	return Case{
		Name:      "preflight",
		OneFamily: true,
		Shows: "on a host on which the backend works, its preflight says that nothing required is missing; it changes nothing on the host, before the backend is " +
			"configured as well as beside a process that serves",
		Run: func(c *C) {
			c.Serve(30080)
			c.Apply([]model.Pool{c.Pool("all", 0)}, c.Frontend(model.TCP, 1, 80, 30080, "all"))
			c.requirePreflight(c.Gateway)
			c.Equal(map[int]int{0: 3}, c.Request(3, "tcp", c.At(1, 80)))
			c.requirePreflight(c.gateway(1)) // no process of the backend has run there
		},
	}
}

// requirePreflight requires that a new process makes its preflight on the gateway and changes nothing.
func (c *C) requirePreflight(g *Gateway) {
	before, files := g.footprint(), c.filesIn(g.state)
	process, config := g.loadUnconfigured()
	checks, err := process.Preflight(c.ctx, config)
	c.NoError(err)
	process.Stop()
	c.NoError(dataplane.MissingError(checks))
	for _, check := range checks {
		c.requireWellFormed(check)
	}
	g.requireNothingLeft(before)
	c.Equal(files, c.filesIn(g.state), "the preflight has changed the state directory")
}

// requireWellFormed requires that operators learn from a check what it is about, what was found, and what to do.
func (c *C) requireWellFormed(check dataplane.Check) {
	c.Contains(dataplane.Groups(), check.Group, "%s", check)
	c.NotEmpty(check.Subject, "a check of the group %s", check.Group)
	c.Contains([]dataplane.CheckState{dataplane.CheckOK, dataplane.CheckMissing, dataplane.CheckUnknown}, check.State, "%s", check)
	c.NotEmpty(check.Found, "the check of %s", check.Subject)
	c.True(check.State != dataplane.CheckMissing || check.Fix() != "", "%s is missing, without a command and without advice", check.Subject)
}

// filesIn returns the paths below the directory.
func (c *C) filesIn(dir string) []string {
	var paths []string
	c.NoError(filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	}))
	return paths
}

// loadUnconfigured starts another process of the backend, and returns its configuration.
func (g *Gateway) loadUnconfigured() (Process, dataplane.Config) {
	process, err := g.load(g.c.backends.Tested)
	g.c.NoError(err)
	config, err := g.config(process)
	g.c.NoError(err)
	return process, config
}

func unknownOption() Case {
	return Case{
		Name:      "unknown-option",
		Gateways:  2,
		OneFamily: true,
		Shows:     "an option that the backend does not know is an error that names it, of the preflight and of the configuration; the next process works without it",
		Run: func(c *C) {
			c.Serve(30080)
			g := c.Gateways[1]
			g.Process.Stop()
			process, config := g.loadUnconfigured()
			config.Options = map[string]string{"flwos": "1024"}
			_, err := process.Preflight(c.ctx, config)
			c.ErrorContains(err, "flwos", "Preflight")
			c.ErrorContains(process.Configure(c.ctx, config), "flwos", "Configure")
			process.Stop()
			g.Start()
			c.Apply([]model.Pool{c.Pool("all", 0)}, c.Frontend(model.TCP, 1, 80, 30080, "all"))
			c.routeVIPsTo(1)
			c.Equal(map[int]int{0: 3}, c.Request(3, "tcp", c.At(1, 80)))
		},
	}
}
