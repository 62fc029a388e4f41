# All targets work in a fresh clone with Go and make. Tests and the demo also need root on Debian or Ubuntu.
SHELL := /bin/bash
.DEFAULT_GOAL := help

MODULES    := api core backends backends/example backends/ebpf backends/envoy backends/nftables ccm manager conformance tools tools/dependencies tools/lint
BIN        := $(CURDIR)/bin
# All programs are built by this version of Go, which another version downloads from the module proxy: see 'make vuln'.
export GOTOOLCHAIN := go1.26.10
# The scripts that build Kubernetes and Helm use the first go in PATH. Each version of Go would build them once more.
PINNED     := PATH="$$(go env GOROOT)/bin:$$PATH"
KUBERNETES := $(PINNED) $(CURDIR)/tools/kubernetes/build.sh
HELM       := $(PINNED) $(CURDIR)/tools/helm/build.sh
BACKENDS   := nftables envoy ebpf
# The case "switching" changes from the tested dataplane to each other one. Reports name the programs by these paths, so they are relative.
JUDGE       = bin/kubelb-conformance --backend=$$b --switch-to=$$(echo $(BACKENDS) | tr ' ' ,)
# The programs are static, so that they run in any image and any mount namespace.
GO_BUILD   := CGO_ENABLED=0 go build -o $(BIN)/
# A chart cannot contain files from outside of its folder, so it has copies.
CHART_FILES := deploy/charts/kubelb-manager/files
GENERATED  := api/v1alpha1/zz_generated.deepcopy.go api/crds $(CHART_FILES) backends/plugin/dataplanepb $(addprefix backends/ebpf/bpf/,tc_bpfel.go tc_bpfel.o xdp_bpfel.go xdp_bpfel.o) $(addprefix backends/envoy/bpf/,unknown_bpfel.go unknown_bpfel.o)
# The kernel to boot, and the architecture of its programs.
KERNEL     ?= 6.12/amd64
GUEST       = $(if $(filter running,$(KERNEL)),$(shell go env GOARCH),$(notdir $(KERNEL)))
CACHE      := $(or $(KUBELB_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/kubelb)

# The groups of 'make help'. A target with a comment that begins with ## is in one of them.
HELP_build   := build demo images clean help
HELP_test    := check verify lint unit wasm fuzz test conformance e2e install-test fleet packets kernels kernels-smoke vuln licences
HELP_measure := bench bench-scale bench-envoy bench-core drill drills churn soak
HELP_develop := generate golden tidy report kernels-table drill-tables

.PHONY: help
help: ## Show this help.
	@echo "KubeLB: layer-4 load balancers for fleets of Kubernetes clusters."
	@$(foreach group,build test measure develop,echo; echo "To $(group):"; for target in $(HELP_$(group)); do grep -hE "^$$target:.*## " $(MAKEFILE_LIST); done | \
		awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}';)

.PHONY: build
build: ## Build every binary into bin/.
	@mkdir -p $(BIN)
	cd manager && $(GO_BUILD) ./cmd/...
	cd ccm && $(GO_BUILD) ./cmd/...
	cd backends/example && $(GO_BUILD) ./cmd/...
	cd backends/ebpf && $(GO_BUILD) ./cmd/...
	cd backends/envoy && $(GO_BUILD) ./cmd/...
	cd backends/nftables && $(GO_BUILD) ./cmd/...
	cd conformance && $(GO_BUILD) ./cmd/...
	cd tools && $(GO_BUILD) ./cluster/pause ./cluster/echo ./cmd/...

.PHONY: demo
demo: deps build ## Start hub, tenant, gateway and client, show what they do, and keep them running (ONCE=1: end after that).
	KUBELB_KUBERNETES=$$($(KUBERNETES)) KUBELB_BIN=$(BIN) $(BIN)/demo $(if $(ONCE),--once) $(if $(BACKEND),--backend=$(BACKEND))

.PHONY: test
test: deps ## Run all tests, also those on real clusters, and print a summary (root; fifteen minutes more for the first time).
	cd tools && GOWORK=off go run ./cmd/phases --dir=.. verify lint unit wasm vuln licences conformance e2e fleet \
		'kernels-smoke + install-test BACKEND=nftables' # install-test changes to the other dataplanes, and back

.PHONY: check
check: verify lint unit wasm ## Run all tests that need neither root nor a cluster.

# The modules whose tests take longest come first.
UNITS := $(addprefix unit-,backends/example backends/ebpf backends/envoy $(filter-out conformance backends/example backends/ebpf backends/envoy,$(MODULES)))
.PHONY: unit $(UNITS)
unit: ## Test each module without the workspace, two at a time (no root).
	$(MAKE) -k -j2 --no-print-directory --output-sync $(UNITS)

$(UNITS): unit-%:
	@cd $* && GOWORK=off go test ./...

.PHONY: wasm
wasm: ## Run the core's tests natively and as WASM (no root).
	tools/wasm.sh

# The programs that are shipped.
PRODUCTS := $(addprefix $(BIN)/,kubelb-manager kubelb-ccm kubelb $(addprefix kubelb-backend-,$(BACKENDS)))
.PHONY: vuln
vuln: build ## Look for known vulnerabilities in the shipped programs: in their modules and in Go (VULNDB=latest: with today's database instead of that of CI).
	cd tools/dependencies && GOWORK=off go run . vulnerabilities $(if $(VULNDB),--database=$(VULNDB)) $(PRODUCTS)

.PHONY: licences
licences: build ## Check the licences of all modules in the shipped programs, and write their texts into bin/licences.txt.
	cd tools/dependencies && GOWORK=off go run . licences --out=$(BIN)/licences.txt $(PRODUCTS)

.PHONY: conformance $(addprefix judge-,$(BACKENDS) ebpf-xdp suite)
conformance: deps build ## Test each dataplane with packets, two at a time, and the suite with broken dataplanes (root; CASE=… for some cases).
	@rm -f $(BIN)/conformance-*.log
	$(MAKE) -j2 --no-print-directory $(addprefix judge-,$(BACKENDS) ebpf-xdp) $(if $(CASE),,judge-suite) || { echo "What failed:"; grep -hE -A20 '^[a-z-]+: failed ' $(BIN)/conformance-*.log; exit 1; }

# Two dataplanes run at once, so each line of output begins with the name of its dataplane.
JUDGED = $(if $(CASE),--case=$(CASE) -v) --report=$(BIN)/conformance-$*.yaml --junit=$(BIN)/conformance-$*.xml | sed -u 's/^/$*: /' | tee $(BIN)/conformance-$*.log
$(addprefix judge-,$(BACKENDS)): judge-%:
	set -o pipefail; b=$*; (cd backends/$$b && CGO_ENABLED=0 go build -ldflags='-s -w' -o $(BIN)/next/ ./cmd/...) && $(JUDGE) --upgrade-to=bin/next/kubelb-backend-$$b $(JUDGED)

judge-ebpf-xdp: judge-%:
	set -o pipefail; bin/kubelb-conformance --backend=ebpf --backend-option=xdp=native --switch-to=nftables $(JUDGED)

judge-suite:
	cd conformance && GOWORK=off go test -count=1 -parallel=4 -timeout=30m ./...

.PHONY: packets
packets: ## Send PACKETS (10,000,000) random and mutated packets through the eBPF programs, compare with the oracle, and count the blocks of the programs that tests reach (root; minutes).
	set -o pipefail; cd backends/ebpf && KUBELB_COVERAGE=1 KUBELB_PACKETS=$(or $(PACKETS),10000000) GOWORK=off go test -count=1 -timeout=60m -v . | grep -vE '^ *(=== |--- PASS)'

.PHONY: report
report: ## Keep the reports of the last make conformance, and rewrite the tables of docs/status.md and conformance/README.md.
	@set -e; for b in $(BACKENDS); do cp $(BIN)/conformance-$$b.yaml conformance/reports/$$b.yaml; done
	cd conformance && GOWORK=off go test -count=1 -run='StatusPage|Readme' . -golden

.PHONY: soak
soak: deps build ## Test each dataplane ROUNDS (20) times and keep the totals in conformance/soak; continues where it stopped (bin/soak).
	@mkdir -p conformance/soak; set -e; for b in $(BACKENDS); do \
		$(JUDGE) -v --rounds=$(or $(ROUNDS),20) --rounds-in=$(BIN)/soak/$$b --report=conformance/soak/$$b.yaml; done

E2E := $(addprefix e2e-,$(or $(BACKEND),$(BACKENDS)))
.PHONY: e2e $(E2E)
e2e: deps build ## Test all programs together on real clusters with each dataplane, two at a time (root; BACKEND=… for one dataplane, RUN=… for some tests, ROUNDS=… for tests that have rounds).
	@mkdir -p $(CACHE) && rm -f $(BIN)/e2e-*.log
	cd tools && GOWORK=off go test -c -o $(BIN)/e2e.test ./e2e && $(KUBERNETES) > /dev/null
	$(if $(RUN),,cd tools && KUBELB_BIN=$(BIN) GOWORK=off go test -count=1 ./preflight)
	$(MAKE) -j2 --no-print-directory $(E2E) || { echo "What failed:"; grep -hE -A20 '^[a-z]+: +(Error Trace:|[a-z_]+_test.go:[0-9]+: not within )' $(BIN)/e2e-*.log | cut -c1-400; grep -hE '^[a-z]+: +--- FAIL' $(BIN)/e2e-*.log; exit 1; }

$(E2E): e2e-%:
	@set -o pipefail; cd tools/e2e && KUBELB_KUBERNETES=$$($(KUBERNETES)) KUBELB_BIN=$(BIN) KUBELB_BACKEND=$* $(if $(ROUNDS),KUBELB_ROUNDS=$(ROUNDS)) \
		$(BIN)/e2e.test -test.v -test.timeout=25m $(if $(RUN),-test.run='$(RUN)') 2>&1 | sed -u 's/^/$*: /' | tee $(BIN)/e2e-$*.log

# Checks KERNEL before anything is built for it.
.PHONY: kernel-named
kernel-named:
	@case '$(KERNEL)' in running | [0-9]*/amd64 | [0-9]*/arm64) ;; \
		*) echo "KERNEL=$(KERNEL): give KERNEL=SERIES/amd64 or KERNEL=SERIES/arm64, such as 6.12/amd64, or KERNEL=running (docs/dataplanes.md)" >&2; exit 1 ;; esac

.PHONY: guest
guest: kernel-named # Build the programs for KERNEL's architecture into bin/guest.
	@$(if $(filter running,$(KERNEL)),:,tools/install-packages.sh emulators)
	@mkdir -p $(BIN)/guest/$(GUEST)
	@set -e; export CGO_ENABLED=0 GOARCH=$(GUEST) GOWORK=off; build() { (cd $$1 && go build -ldflags=-s -o $(BIN)/guest/$(GUEST)/ $$2); }; \
	for b in $(BACKENDS); do build backends/$$b ./cmd/...; done; build conformance ./cmd/...; build manager ./cmd/kubelb-manager; build tools ./kernels/guest/init; \
	(cd tools && go test -c -ldflags=-s -o $(BIN)/guest/$(GUEST)/preflight.test ./preflight); \
	(cd backends/ebpf && go test -c -ldflags=-s -o $(BIN)/guest/$(GUEST)/ebpf.test .)
	cp $$(tools/envoy.sh $(GUEST)) $(BIN)/guest/$(GUEST)/envoy
	cd tools && GOWORK=off go build -o $(BIN)/ ./cmd/kernels

# The commit that is tested. Changes of results do not count as changes of the code.
COMMIT = $(shell c=$$(git rev-parse --short HEAD 2>/dev/null) && echo $$c$$(git diff --quiet HEAD -- . ':!tools/kernels/results' || echo -dirty))
.PHONY: kernels
kernels: guest ## Test dataplanes on a kernel of Debian's archive in QEMU: KERNEL=SERIES/amd64 or SERIES/arm64 (6.12/amd64; running: this host's kernel, without QEMU), BACKEND (all), CASE (all; with CASE no results are kept), LOAD=… for the modules to load first (root, half an hour for a dataplane; continues where it stopped).
	$(BIN)/kernels --kernel=$(KERNEL) --programs=$(BIN)/guest --backend=$(or $(BACKEND),$(shell echo $(BACKENDS) | tr ' ' ,)) --case=$(CASE) --modules=$(or $(LOAD),$(GUEST_MODULES)) \
		--commit=$(COMMIT) $(if $(CASE),,--results=tools/kernels/results)

.PHONY: kernels-table
kernels-table: ## Rewrite the table of kernels in docs/dataplanes.md from tools/kernels/results.
	cd tools && GOWORK=off go test -count=1 -run=Documentation ./kernels -golden

# The kernel would load these when they are needed. Under emulation that takes two minutes of the first case's time limit.
GUEST_MODULES := nf_conntrack,nf_tables,nft_ct,nft_chain_nat,nft_nat,nft_masq,nft_redir,nft_hash,nft_numgen,nft_limit,nft_reject_inet,nft_fib_inet,nft_connlimit,nft_fwd_netdev,bridge,veth
.PHONY: kernels-smoke
kernels-smoke: guest ## Boot Debian's kernel 6.12, where connection tracking is a module, and run a few cases of nftables and eBPF on it (root, minutes).
	$(MAKE) -j2 --no-print-directory smoke-boots smoke-cases

.PHONY: smoke-boots smoke-cases
smoke-boots:
	cd tools && KUBELB_GUEST=$(BIN)/guest GOWORK=off go test -count=1 ./kernels

smoke-cases:
	$(BIN)/kernels --kernel=6.12/amd64 --programs=$(BIN)/guest --modules=$(GUEST_MODULES) --backend=nftables,ebpf --case=packet-fixtures,tcp-echo,udp-reply,direct

.PHONY: images
images: deps build licences ## Make archives of the container images in bin/images.
	libc=$$(tools/unpack.sh libc) && $(BIN)/pack-images --bin=$(BIN) --out=$(BIN)/images --libc=$$libc --libc-version=$$(cut -f2 $$libc/versions) --licences=$(BIN)/licences.txt \
		--envoy-version=$$(basename $$(dirname $$(tools/envoy.sh))) --dataplane=$(BIN)/kubelb-backend-example

.PHONY: install-test
install-test: images ## Install the charts with Helm in new clusters, serve a Service, and uninstall, with each dataplane (root; BACKEND=… for one dataplane).
	cd tools && GOWORK=off go test -c -o $(BIN)/install.test ./install
	set -e; helm=$$($(HELM)); kubernetes=$$($(KUBERNETES)); monitoring=$$(tools/unpack.sh monitoring); cd tools/install; for b in $(or $(BACKEND),$(BACKENDS)); do echo "== $$b"; \
		KUBELB_KUBERNETES=$$kubernetes KUBELB_BIN=$(BIN) KUBELB_IMAGES=$(BIN)/images KUBELB_HELM=$$helm KUBELB_CHARTS=$(CURDIR)/deploy/charts KUBELB_MONITORING=$$monitoring KUBELB_BACKEND=$$b \
		$(BIN)/install.test -test.v -test.timeout=20m; done

.PHONY: bench
bench: deps build ## Measure costs of packets and latencies of clients with each dataplane, plain routing, kube-proxy and proxies (root, 20 minutes).
	proxies=$$(tools/unpack.sh proxies) && kubernetes=$$($(KUBERNETES) kube-proxy) && \
	$(BIN)/bench --proxies=$$proxies --kube-proxy=$$kubernetes/kube-proxy --plots=backends/ebpf $(if $(ROUNDS),--rounds=$(ROUNDS))
	@set -e; for b in $(BACKENDS); do (cd backends/$$b && CGO_ENABLED=0 go build -ldflags='-s -w' -o $(BIN)/next/ ./cmd/...); done
	$(BIN)/bench --only=outlive --next=$(BIN)/next

.PHONY: fleet
fleet: deps build ## Cause each kind of failure once on each of three gateways, and run some random schedules (root, minutes).
	KUBELB_KUBERNETES=$$($(KUBERNETES)) KUBELB_BIN=$(BIN) $(BIN)/drill --rounds=1
	KUBELB_KUBERNETES=$$($(KUBERNETES)) KUBELB_BIN=$(BIN) $(BIN)/drill --announce=bgp --bird=$$(tools/unpack.sh router) --rounds=1
	KUBELB_KUBERNETES=$$($(KUBERNETES)) KUBELB_BIN=$(BIN) $(BIN)/drill --announce=bgp --restarts --bird=$$(tools/unpack.sh router) --rounds=1
	KUBELB_KUBERNETES=$$($(KUBERNETES)) KUBELB_BIN=$(BIN) $(BIN)/drill --schedules=5 --seed=$$RANDOM

.PHONY: drill
drill: deps build ## Cause each kind of failure of gateways ROUNDS (20) times under load, with ANNOUNCE (layer2), BACKEND (nftables) and FORWARDING (nat); RESTARTS=1: restart managers instead; continues where it stopped (root, a minute a round).
	KUBELB_KUBERNETES=$$($(KUBERNETES)) KUBELB_BIN=$(BIN) $(BIN)/drill --announce=$(or $(ANNOUNCE),layer2) --bird=$$(tools/unpack.sh router) --backend=$(or $(BACKEND),nftables) \
		--forwarding=$(or $(FORWARDING),nat) $(if $(RESTARTS),--restarts) --rounds=$(or $(ROUNDS),20) \
		--results=tools/drill/results/$(or $(ANNOUNCE),layer2)-$(or $(BACKEND),nftables)-$(or $(FORWARDING),nat)$(if $(RESTARTS),-restarts).json

.PHONY: drills
drills: ## Measure the results of tools/drill/RESULTS.md in mode nat, except restarts: drills that are not yet in results/, 100 schedules from SEED (1) on, and an outage (root, two and a half hours).
	@set -e; for a in layer2 bgp; do $(MAKE) drill ANNOUNCE=$$a; for b in ebpf envoy; do $(MAKE) drill ANNOUNCE=$$a BACKEND=$$b ROUNDS=5; done; done
	KUBELB_KUBERNETES=$$($(KUBERNETES)) KUBELB_BIN=$(BIN) $(BIN)/drill --schedules=100 --seed=$(or $(SEED),1)
	KUBELB_KUBERNETES=$$($(KUBERNETES)) KUBELB_BIN=$(BIN) $(BIN)/drill --outage=10m
	$(MAKE) drill-tables

.PHONY: drill-tables
drill-tables: ## Rewrite the tables of tools/drill/RESULTS.md from tools/drill/results.
	cd tools && GOWORK=off go test -count=1 -run=Tables ./drill -golden

.PHONY: churn
churn: deps build ## Create, change and delete Services for TOTAL (1h), in rounds of ROUND (10m), with BACKEND (nftables), and check that no resource grows; continues where it stopped (root).
	KUBELB_KUBERNETES=$$($(KUBERNETES)) KUBELB_BIN=$(BIN) $(BIN)/churn --backend=$(or $(BACKEND),nftables) --total=$(or $(TOTAL),1h) --round=$(or $(ROUND),10m) \
		--results=tools/churn/results/$(or $(BACKEND),nftables).json

.PHONY: bench-scale
bench-scale: deps build ## Create 10,000 LoadBalancers and measure one further change (root, minutes).
	cd tools && GOWORK=off go build -o $(BIN)/scale ./cmd/scale
	KUBELB_KUBERNETES=$$($(KUBERNETES)) KUBELB_BIN=$(BIN) $(BIN)/scale

.PHONY: bench-envoy
bench-envoy: deps build ## Measure Envoy with up to 5,000 frontends under load, and compare it with an Envoy that has a static configuration (root, 15 minutes).
	cd backends/envoy && KUBELB_MEASURE=1 GOWORK=off go test -count=1 -run=TestMeasure -timeout=40m -v . | grep -vE '^\{|^=== '

.PHONY: bench-core
bench-core: ## Measure one translation of 10,000 Services on 1,000 nodes, natively and as WASM.
	tools/wasm.sh bench

.PHONY: verify
verify: ## Check the rules of the repository: imports, versions, documents, format, generated code.
	@unformatted=$$(git ls-files -co --exclude-standard '*.go' | xargs gofmt -l); if [ -n "$$unformatted" ]; then echo "not gofmt-clean, run gofmt -w: $$unformatted"; exit 1; fi
	cd tools && GOWORK=off go test -count=1 ./repocheck
	@before=$$(cat $$(find $(GENERATED) -type f | sort) | sha256sum); $(MAKE) -s generate; after=$$(cat $$(find $(GENERATED) -type f | sort) | sha256sum); \
	if [ "$$before" != "$$after" ]; then echo "generated code was not up to date: run 'make generate' and commit"; git --no-pager diff --stat -- $(GENERATED); exit 1; fi

.PHONY: generate
generate: ## Generate deepcopy functions, CRDs, the plugin's gRPC code and the objects of the eBPF programs.
	@mkdir -p $(CACHE)/generate
	cd tools/generate && GOWORK=off go build -o $(CACHE)/generate/ tool ./protogen
	cd api && rm -f crds/*.yaml && GOWORK=off $(CACHE)/generate/controller-gen object paths=./v1alpha1 crd:maxDescLen=400 output:crd:dir=crds paths=./v1alpha1
	for kind in crds policies; do rm -rf $(CHART_FILES)/$$kind && mkdir -p $(CHART_FILES)/$$kind && cp api/$$kind/*.yaml $(CHART_FILES)/$$kind/; done
	PATH=$(CACHE)/generate:$$PATH protogen backends/plugin/dataplanepb/dataplane.proto
	cd backends/ebpf/bpf && GOWORK=off go generate .
	cd backends/envoy/bpf && GOWORK=off go generate .

.PHONY: golden
golden: ## Rewrite the expected files of the corpus, the backends and the charts, and remove files without a test.
	cd backends/nftables && GOWORK=off go test -run=Golden . -golden
	cd backends/ebpf && GOWORK=off go test -run=Golden . -golden
	cd backends/envoy && GOWORK=off go test -run=Golden . -golden
	cd tools && GOWORK=off go test -run=Corpus ./corecheck -golden
	cd tools && KUBELB_HELM=$$($(HELM)) KUBELB_CHARTS=$(CURDIR)/deploy/charts GOWORK=off go test -run=Golden ./install -golden
	@git status --short -- tools/corecheck/corpus backends/nftables/testdata backends/envoy/testdata backends/ebpf/testdata

.PHONY: fuzz
fuzz: ## Fuzz each target for FUZZTIME (1m).
	@set -e; git grep --untracked -oE '^func Fuzz[A-Za-z]+' -- '*_test.go' | while IFS=: read -r file func; do \
		target=$${func#func }; echo "== $$(dirname $$file) $$target"; \
		(cd $$(dirname $$file) && go test -run='^$$' -fuzz="^$$target$$" -fuzztime=$(or $(FUZZTIME),1m) -fuzzminimizetime=10x $(FUZZFLAGS) .); done

# The go command caches results of vet by package, as those of tests.
LINTS := $(addprefix lint-,$(MODULES))
.PHONY: lint $(LINTS)
lint: ## Vet each module with the analyzers of tools/lint, two at a time (no root).
	@mkdir -p $(CACHE)/lint && cd tools/lint && GOWORK=off go build -o $(CACHE)/lint/ .
	$(MAKE) -k -j2 --no-print-directory --output-sync $(LINTS)

$(LINTS): lint-%:
	@cd $* && GOWORK=off go vet -vettool=$(CACHE)/lint/lint ./...

.PHONY: tidy
tidy: ## Run go mod tidy in each module, with the same versions in all.
	@tools/tidy.sh $(MODULES)

.PHONY: deps
deps: # Install packages of the distribution for tests and demo, and Envoy.
	@tools/install-packages.sh
	@mkdir -p $(BIN)/next && envoy=$$(tools/envoy.sh) && ln -sf $$envoy $(BIN)/envoy && ln -sf $$envoy $(BIN)/next/envoy

.PHONY: clean
clean: ## Remove bin/; caches under ~/.cache/kubelb stay.
	rm -rf $(BIN)
