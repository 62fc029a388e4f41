// Package churn creates, changes and deletes Services of a tenant for a long time, and looks for growth: of memory, descriptors,
// goroutines and objects of the kernel. Clients use one Service that stays.
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

// Options are the options of a churn.
type Options struct {
	// Kubernetes and Products are the directories with the binaries of Kubernetes and of KubeLB.
	Kubernetes, Products string
	Backend              string
	Duration             time.Duration
	// Progress gets a line for each cycle.
	Progress io.Writer
}

// Result is the result of a churn.
type Result struct {
	Backend string        `json:"backend"`
	Lasted  time.Duration `json:"lasted"`
	// Cycles is how often all Services but one were created, changed and deleted. Services is the number of created Services, Changes the number
	// of changes.
	Cycles   int `json:"cycles"`
	Services int `json:"services"`
	Changes  int `json:"changes"`
	// Requests is the number of requests to the Service that stays, Failed the number without an answer. Broken is how often the long
	// connection broke.
	Requests int `json:"requests"`
	Failed   int `json:"failed"`
	Broken   int `json:"broken"`
	// Failures are the first failures of requests.
	Failures []string `json:"failures,omitempty"`
	// Early and Late are medians over the second and the last quarter of the cycles, measured while only the Service that stays existed.
	Early Sizes `json:"early"`
	Late  Sizes `json:"late"`
	// Tried is the number of connections that the gateway made to its own ports. Alarms are reports of failing LoadBalancers to which a client could
	// connect, Confirmed those to which it could not.
	Tried     int      `json:"tried"`
	Alarms    []string `json:"alarms,omitempty"`
	Confirmed []string `json:"confirmed,omitempty"`
	// Left is what remained on the gateway after everything was deleted.
	Left []string `json:"left,omitempty"`
}

// Sizes has numbers of objects and sizes of memory, by name.
type Sizes map[string]int

// String lists the sizes in the order of their names.
func (s Sizes) String() string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(s)) {
		out = append(out, fmt.Sprintf("%s %d", name, s[name]))
	}
	return strings.Join(out, ", ")
}

// tolerances say by how much each kind of size may grow: by a share of the early size, and by a fixed number. The memory of Go
// runtimes goes up and down. So do, under load, the lines of nftables, of which each client of a Service with affinity has one, and goroutines, of which
// each connection has some: what stays behind of each Service is hundreds of them in ten minutes.
var tolerances = []struct {
	suffix string
	share  float64
	fixed  int
}{
	{" KiB", 0.15, 8 << 10}, {" lines", 0.02, 0}, {" goroutines", 0, 16}, {" descriptors", 0, 4}, {"", 0, 0},
}

// Grown returns the sizes that have grown.
func (r Result) Grown() (grown []string) {
	for name, late := range r.Late {
		early := r.Early[name]
		for _, tolerance := range tolerances {
			if !strings.HasSuffix(name, tolerance.suffix) {
				continue
			}
			if late > early+int(tolerance.share*float64(early))+tolerance.fixed {
				grown = append(grown, fmt.Sprintf("%s: %d, then %d", name, early, late))
			}
			break
		}
	}
	slices.Sort(grown)
	return grown
}

// Err returns an error if the result breaks a promise.
func (r Result) Err() error {
	var errs []error
	if r.Failed > 0 || r.Broken > 0 {
		errs = append(errs, fmt.Errorf("%d requests failed, and the long connection broke %d times:\n%s", r.Failed, r.Broken, strings.Join(r.Failures, "\n")))
	}
	for _, what := range r.Alarms {
		errs = append(errs, fmt.Errorf("false alarm: %s", what))
	}
	for _, what := range r.Grown() {
		errs = append(errs, fmt.Errorf("growth: %s", what))
	}
	for _, what := range r.Left {
		errs = append(errs, fmt.Errorf("left behind: %s", what))
	}
	return errors.Join(errs...)
}

// run is a running churn.
type run struct {
	options     Options
	lab         *cluster.Lab
	tenant, hub client.Client
	random      *rand.Rand
	result      Result
	samples     []Sizes
}

// Run runs a churn on clusters of its own.
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

// prepare starts all programs, and creates the Service that stays.
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
	if _, err := r.lab.Tenant.Kubectl(ctx, stayingManifest, "apply", "-f", "-"); err != nil {
		return err
	}
	_, err = r.lab.Tenant.Kubectl(ctx, "", "rollout", "status", "deployment/stays", "--timeout=60s")
	return err
}

// stayingManifest is the Service that stays, with its pods.
const stayingManifest = `
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
	address, err := r.awaitAddress(ctx, "stays")
	if err != nil {
		return err
	}
	if err := r.awaitAnswers(ctx, address); err != nil {
		return err
	}
	use, alarms := startUse(ctx, r.lab.Client, address), r.checkAlarms(ctx)
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
		return fmt.Errorf("%d cycles in %s are too few for a result: run longer", r.result.Cycles, r.result.Lasted)
	}
	r.result.Early, r.result.Late = medians(r.samples[quarter:2*quarter]), medians(r.samples[len(r.samples)-quarter:])
	if r.result.Tried, err = r.tried(ctx); err != nil {
		return err
	}
	r.result.Left, err = r.end(ctx)
	return err
}

// medians returns the median of each size.
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
