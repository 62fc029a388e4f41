package manager

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/rest"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/plugin"
	"kubelb.k8c.io/manager/bfd"
	"kubelb.k8c.io/manager/gateway/driver"
	"kubelb.k8c.io/manager/gateway/forwarding"
	"kubelb.k8c.io/manager/hostcheck"
)

// ExitStatus is the exit status of a command that has already printed its result.
type ExitStatus int

// Exit statuses of preflight.
const (
	// ExitMissing: the gateway does not work without something that is missing.
	ExitMissing ExitStatus = 1
	// ExitUnknown: something essential could not be checked, and nothing checked is missing.
	ExitUnknown ExitStatus = 2
)

// Error implements error.
func (s ExitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// preflightCommand is the first argument of the command that only checks the host.
const preflightCommand = "preflight"

const preflightUsage = `kubelb-manager preflight [flags] checks this host. It prints a line for each thing that the dataplane and the gateway need, and below a missing
thing the command that repairs it. It takes the gateway's flags and needs no cluster. Run it as root. The binary kubelb-backend-NAME must be in the same
directory or in PATH. Without --prepare-host it changes no rule, sysctl or interface, but the kernel may load modules of nftables during the checks.

Each line begins with
  ok       it exists, or nothing that you asked for needs it
  MISSING  the gateway does not work without it
  LIMITED  a feature does not work without it; the line names the feature
  unknown  it could not be checked

Exit status: 1 if a line says MISSING. Otherwise 2 if the dataplane could not be asked, or if something essential is unknown. Otherwise 0.

Flags:
`

// preflight checks this host.
func preflight(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var o options
	flags := flag.NewFlagSet("kubelb-manager preflight", flag.ContinueOnError)
	flags.SetOutput(stdout)
	flags.Usage = func() {
		fmt.Fprint(stdout, preflightUsage)
		flags.PrintDefaults()
	}
	o.register(flags)
	reportOnly := flags.Bool("report-only", false, "preflight: exit with status 0 whatever is missing, so that an init container does not block the gateway. The Gateway's conditions then say what is missing")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return errors.Join(err, ExitUnknown)
	}
	if !slices.Contains([]string{announceLayer2, announceBGP, announceNone}, o.announce) {
		fmt.Fprintln(stderr, "kubelb-manager:", errAnnounce(o.announce))
		return ExitUnknown
	}
	if o.prepareHost {
		if err := forwarding.Enable(); err != nil {
			fmt.Fprintln(stderr, "kubelb-manager:", err) // the report says what to do
		}
	}
	checks, err := o.checks(ctx)
	if err != nil {
		fmt.Fprintln(stderr, "kubelb-manager: cannot run the checks of the dataplane:", err)
	}
	report(stdout, checks)
	if status := exitStatus(checks, err); status != 0 && !*reportOnly {
		return status
	}
	return nil
}

// exitStatus returns the exit status for the checks.
func exitStatus(checks []dataplane.Check, err error) ExitStatus {
	switch {
	case dataplane.MissingError(checks) != nil:
		return ExitMissing
	case err != nil, slices.ContainsFunc(checks, func(c dataplane.Check) bool { return c.Required() && c.State == dataplane.CheckUnknown }):
		return ExitUnknown
	}
	return 0
}

// checks returns the checks of the dataplane and of the gateway. With an error, it still returns the gateway's checks.
func (o *options) checks(ctx context.Context) ([]dataplane.Check, error) {
	needs := o.needs()
	needs.Ports, needs.BeforeStart = o.ports(), true
	if o.kubeconfig != "" {
		config, err := o.restConfig()
		needs.HubTime = func(ctx context.Context) (time.Time, error) {
			if err != nil {
				return time.Time{}, fmt.Errorf("management cluster: %w", err)
			}
			return hubTime(config)(ctx)
		}
	}
	checks := needs.Checks(ctx)
	of, err := o.dataplaneChecks(ctx)
	return append(of, checks...), err
}

// dataplaneChecks starts the plugin, runs its checks, and stops it.
func (o *options) dataplaneChecks(ctx context.Context) ([]dataplane.Check, error) {
	path, err := plugin.Find(o.backend)
	if err != nil {
		return nil, err
	}
	sockets, err := os.MkdirTemp("", "kubelb-preflight-")
	if err != nil {
		return nil, fmt.Errorf("directory for the plugin's socket: %w", err)
	}
	defer os.RemoveAll(sockets)
	process, err := plugin.Load(plugin.Options{Path: path, Checksum: o.checksum, SocketDir: sockets, Log: io.Discard})
	if err != nil {
		return nil, err
	}
	defer process.Stop()
	return driver.Preflight(ctx, process, o.pluginFor(path))
}

// needs returns what the gateway itself needs.
func (o *options) needs() hostcheck.Needs {
	return hostcheck.Needs{Interfaces: o.announceInterfaces(), Answers: o.announce == announceLayer2, Packets: o.announce != announceNone, Tries: o.tryEvery > 0, StateDir: o.stateDir}
}

// ports returns the ports at which the gateway listens.
func (o *options) ports() (ports []hostcheck.Port) {
	for _, p := range []hostcheck.Port{
		{Network: "tcp", Address: o.metricsAddress, For: "metrics", Flag: "--metrics-addr"},
		{Network: "tcp", Address: o.probeAddress, For: "health", Flag: "--health-probe-bind-address"},
	} {
		if p.Address != "" && p.Address != "0" {
			ports = append(ports, p)
		}
	}
	if o.announce == announceBGP {
		ports = append(ports, hostcheck.Port{Network: "udp", Address: fmt.Sprintf(":%d", bfd.Port), For: "BFD", Costs: "BFD with routers"})
	}
	return ports
}

// hubTime returns a function that reads the time of the management cluster's API server, which is in the header of each answer.
func hubTime(config *rest.Config) func(context.Context) (time.Time, error) {
	return func(ctx context.Context) (time.Time, error) {
		client, err := rest.HTTPClientFor(config)
		if err != nil {
			return time.Time{}, fmt.Errorf("management cluster: %w", err)
		}
		ctx, cancel := context.WithTimeout(ctx, hubTimeout)
		defer cancel()
		url, _, err := rest.DefaultServerUrlFor(config)
		if err != nil {
			return time.Time{}, fmt.Errorf("management cluster: %w", err)
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url.JoinPath("version").String(), nil)
		if err != nil {
			return time.Time{}, fmt.Errorf("management cluster: %w", err)
		}
		response, err := client.Do(request)
		if err != nil {
			return time.Time{}, fmt.Errorf("management cluster: %w", err)
		}
		defer response.Body.Close()
		return http.ParseTime(response.Header.Get("Date"))
	}
}

const (
	// hubTimeout bounds the request for the API server's time.
	hubTimeout = 3 * time.Second
	// hubTimeEvery is the interval at which a running gateway reads it.
	hubTimeEvery = 5 * time.Minute
)

// report writes a line for each check, sorted by group, with the fix below each problem.
func report(w io.Writer, checks []dataplane.Check) {
	groups := dataplane.Groups()
	slices.SortStableFunc(checks, func(a, b dataplane.Check) int { return slices.Index(groups, a.Group) - slices.Index(groups, b.Group) })
	width, count := 0, map[string]int{}
	for _, c := range checks {
		width = max(width, len(c.Subject))
	}
	for _, c := range checks {
		word := wordFor(c)
		count[word]++
		line := fmt.Sprintf("%-8s %-12s %-*s  %s", word, c.Group, width, c.Subject, c.Outcome())
		fmt.Fprintln(w, strings.TrimRight(line, " "))
		if fix := c.Fix(); fix != "" {
			fmt.Fprintln(w, "         "+fix)
		}
	}
	fmt.Fprintf(w, "\n%d ok, %d MISSING, %d LIMITED, %d unknown\n", count["ok"], count["MISSING"], count["LIMITED"], count["unknown"])
}

func wordFor(c dataplane.Check) string {
	switch {
	case c.State == dataplane.CheckOK:
		return "ok"
	case c.State != dataplane.CheckMissing:
		return "unknown"
	case c.Required():
		return "MISSING"
	}
	return "LIMITED"
}
