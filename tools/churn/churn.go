// Package churn has a tenant's Services come, change and go for a long time, and looks for what grows by it: memory, descriptors,
// goroutines, objects of the kernel. One Service stays meanwhile, and clients use it.
package churn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/tools/cluster"
)

// Options say what to churn, and for how long.
type Options struct {
	// Kubernetes and Products are the folders with Kubernetes' binaries and with ours.
	Kubernetes, Products string
	Backend              string
	Duration             time.Duration
	// Progress gets a line for each cycle.
	Progress io.Writer
}

// Result is what came of it.
type Result struct {
	Backend string        `json:"backend"`
	Lasted  time.Duration `json:"lasted"`
	// Cycles is how often all Services but one came, changed and went; Services and Changes are how many did.
	Cycles   int `json:"cycles"`
	Services int `json:"services"`
	Changes  int `json:"changes"`
	// Requests are those of clients of the Service that stayed, Failed those that had no answer. Broken is how often the connection
	// broke that is kept.
	Requests int `json:"requests"`
	Failed   int `json:"failed"`
	Broken   int `json:"broken"`
	// Failures are the first of those that failed.
	Failures []string `json:"failures,omitempty"`
	// Early and Late are medians over the second and the last quarter of the cycles, each taken when nothing but the one Service was there.
	Early Sizes `json:"early"`
	Late  Sizes `json:"late"`
	// Tried is how many connections the gateway made to its own ports. Of the LoadBalancers that it said to fail, Alarms are those to which a client
	// connected all the same, and Confirmed those to which it did not.
	Tried     int      `json:"tried"`
	Alarms    []string `json:"alarms,omitempty"`
	Confirmed []string `json:"confirmed,omitempty"`
	// Left is what was on the hosts after everything had been deleted.
	Left []string `json:"left,omitempty"`
}

// Sizes are numbers of things, by name.
type Sizes map[string]int

// String lists them in the order of their names.
func (s Sizes) String() string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(s)) {
		out = append(out, fmt.Sprintf("%s %d", name, s[name]))
	}
	return strings.Join(out, ", ")
}

// tolerances are by how much, of what there was and beside it, each kind of size may be greater late than early. Memory is what
// runtimes keep, and goes up and down; of all others there is to be no more.
var tolerances = []struct {
	suffix string
	part   float64
	more   int
}{
	{" KiB", 0.15, 8 << 10}, {" goroutines", 0, 8}, {" descriptors", 0, 4}, {"", 0, 0},
}

// Grown names what has grown.
func (r Result) Grown() (grown []string) {
	for name, late := range r.Late {
		early := r.Early[name]
		for _, tolerance := range tolerances {
			if !strings.HasSuffix(name, tolerance.suffix) {
				continue
			}
			if late > early+int(tolerance.part*float64(early))+tolerance.more {
				grown = append(grown, fmt.Sprintf("%s: %d, then %d", name, early, late))
			}
			break
		}
	}
	slices.Sort(grown)
	return grown
}

// Broke names the promises that the result breaks.
func (r Result) Broke() error {
	var errs []error
	if r.Failed > 0 || r.Broken > 0 {
		errs = append(errs, fmt.Errorf("%d requests failed, and the connection that is kept broke %d times:\n%s", r.Failed, r.Broken, strings.Join(r.Failures, "\n")))
	}
	for _, what := range r.Alarms {
		errs = append(errs, fmt.Errorf("false alarm: %s", what))
	}
	for _, what := range r.Grown() {
		errs = append(errs, fmt.Errorf("it grows: %s", what))
	}
	for _, what := range r.Left {
		errs = append(errs, fmt.Errorf("left behind: %s", what))
	}
	return errors.Join(errs...)
}

// run is one churn.
type run struct {
	options     Options
	lab         *cluster.Lab
	tenant, hub client.Client
	random      *rand.Rand
	result      Result
	samples     []Sizes
}

// Run churns. What it makes is gone when it returns.
func Run(ctx context.Context, o Options) (_ Result, err error) {
	r := &run{options: o, random: rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0)), result: Result{Backend: o.Backend}}
	r.lab, err = cluster.New(ctx, cluster.Options{Kubernetes: o.Kubernetes, Products: o.Products, Backend: o.Backend, Progress: o.Progress})
	if err != nil {
		return r.result, err
	}
	defer func() { err = errors.Join(err, r.lab.Close()) }()
	if err := r.prepare(ctx); err != nil {
		return r.result, err
	}
	return r.result, r.churn(ctx)
}

// prepare has everything run, and one Service served.
func (r *run) prepare(ctx context.Context) (err error) {
	if _, err := r.lab.Hub.Kubectl(ctx, cluster.PoolManifest+"---\n"+cluster.TenantManifest, "apply", "-f", "-"); err != nil {
		return err
	}
	if err := r.lab.StartManager("--purge-on-exit", "--log-level=warn", "--try-every=5s"); err != nil {
		return err
	}
	if err := r.lab.StartCCM(ctx, "--log-level=warn"); err != nil {
		return err
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return err
	}
	if r.tenant, err = r.lab.Tenant.Client(scheme); err != nil {
		return err
	}
	if r.hub, err = r.lab.Hub.Client(scheme); err != nil {
		return err
	}
	if _, err := r.lab.Tenant.Kubectl(ctx, staying, "apply", "-f", "-"); err != nil {
		return err
	}
	_, err = r.lab.Tenant.Kubectl(ctx, "", "rollout", "status", "deployment/stays", "--timeout=60s")
	return err
}

// staying is the Service that stays, with its pods.
const staying = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: stays}
spec:
  replicas: 2
  selector: {matchLabels: {app: stays}}
  template:
    metadata: {labels: {app: stays}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: web, image: "localhost/agnhost:1", imagePullPolicy: Never, args: [netexec, --http-port=8080]}
---
apiVersion: v1
kind: Service
metadata: {name: stays}
spec: {type: LoadBalancer, ipFamilyPolicy: RequireDualStack, selector: {app: stays}, ports: [{port: 80, targetPort: 8080}]}
`

func (r *run) churn(ctx context.Context) error {
	address, err := r.served(ctx, "stays")
	if err != nil {
		return err
	}
	if err := r.answered(ctx, address); err != nil {
		return err
	}
	use, alarms := startUse(ctx, r.lab.Client, address), r.listen(ctx)
	began := time.Now()
	for time.Since(began) < r.options.Duration && err == nil {
		var s Sizes
		if s, err = r.cycle(ctx); err == nil {
			r.samples = append(r.samples, s)
			r.result.Cycles++
			fmt.Fprintf(r.options.Progress, "[%5.0f s] cycle %d: %s\n", time.Since(began).Seconds(), r.result.Cycles, s)
		}
	}
	r.result.Lasted = time.Since(began).Round(time.Second)
	use.end(&r.result)
	r.result.Alarms, r.result.Confirmed = alarms.end()
	if err != nil {
		return fmt.Errorf("cycle %d: %w", r.result.Cycles+1, err)
	}
	quarter := len(r.samples) / 4
	if quarter == 0 {
		return fmt.Errorf("%d cycles in %s say nothing: churn longer", r.result.Cycles, r.result.Lasted)
	}
	r.result.Early, r.result.Late = medians(r.samples[quarter:2*quarter]), medians(r.samples[len(r.samples)-quarter:])
	if r.result.Tried, err = r.tried(ctx); err != nil {
		return err
	}
	r.result.Left, err = r.end(ctx)
	return err
}

// medians are those of each size.
func medians(samples []Sizes) Sizes {
	out := Sizes{}
	for name := range samples[len(samples)-1] {
		var values []int
		for _, s := range samples {
			values = append(values, s[name])
		}
		slices.Sort(values)
		out[name] = values[len(values)/2]
	}
	return out
}
