package conformance

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"sigs.k8s.io/yaml"
)

// Soak sums up the reports of many rounds of the suite.
type Soak struct {
	// Version is the version of the reports.
	Version string  `json:"version"`
	Backend Backend `json:"backend"`
	// Program is the file of the plugin.
	Program *Program `json:"program,omitempty"`
	Kernel  string   `json:"kernel"`
	// Rounds is how often the whole suite ran. Counts are the numbers of runs by outcome.
	Rounds int             `json:"rounds"`
	Counts map[Outcome]int `json:"counts"`
	// Failures are the runs that failed.
	Failures []SoakFailure `json:"failures,omitempty"`
	// Shortest and Longest are the durations of the shortest and of the longest round.
	Shortest string `json:"shortest"`
	Longest  string `json:"longest"`
}

// SoakFailure is a run that failed in one of the rounds.
type SoakFailure struct {
	Round  int    `json:"round"`
	Case   string `json:"case"`
	Family string `json:"family"`
	Reason string `json:"reason"`
}

// RunRounds calls run for each round, and writes the report of each round into the directory. It skips rounds whose
// reports are in the directory, so that an interrupted soak can continue.
func RunRounds(rounds int, dir string, run func(round int) (Report, error)) (Soak, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Soak{}, err
	}
	var reports []Report
	for i := 1; i <= rounds; i++ {
		path := filepath.Join(dir, fmt.Sprintf("round-%d.yaml", i))
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			text, err = runRound(path, i, run)
		}
		if err != nil {
			return Soak{}, err
		}
		report, err := ReadReport(text)
		if err != nil {
			return Soak{}, fmt.Errorf("%s: %w", path, err)
		}
		reports = append(reports, report)
	}
	return sumUp(reports)
}

func runRound(path string, round int, run func(int) (Report, error)) ([]byte, error) {
	report, err := run(round)
	if err != nil {
		return nil, fmt.Errorf("round %d: %w", round, err)
	}
	text, err := report.YAML()
	if err != nil {
		return nil, err
	}
	return text, os.WriteFile(path, text, 0o644)
}

// sumUp refuses reports of different programs, kernels or cases, because their sum means nothing.
func sumUp(reports []Report) (Soak, error) {
	if len(reports) == 0 {
		return Soak{}, errors.New("no rounds")
	}
	first := reports[0]
	s := Soak{Version: first.Version, Backend: first.Backend, Program: first.Judgement.Program, Kernel: first.Kernel, Rounds: len(reports), Counts: map[Outcome]int{}}
	var shortest, longest time.Duration
	for i, r := range reports {
		if r.Partial != "" {
			return Soak{}, fmt.Errorf("round %d is partial (%s): remove its report", i+1, r.Partial)
		}
		if !sameProgram(r.Judgement.Program, first.Judgement.Program) {
			return Soak{}, fmt.Errorf("the plugin's file of round %d differs from that of round 1: remove the directory and start again", i+1)
		}
		if r.Backend.Name != first.Backend.Name || r.Backend.Version != first.Backend.Version || r.Kernel != first.Kernel || len(r.Runs) != len(first.Runs) {
			return Soak{}, fmt.Errorf("the backend, the kernel or the cases of round %d differ from those of round 1: remove the directory and start again", i+1)
		}
		took, err := time.ParseDuration(r.Duration)
		if err != nil {
			return Soak{}, fmt.Errorf("round %d: duration: %w", i+1, err)
		}
		if i == 0 || took < shortest {
			shortest = took
		}
		longest = max(longest, took)
		for _, run := range r.Runs {
			s.Counts[run.Outcome]++
			if run.Outcome == Failed {
				s.Failures = append(s.Failures, SoakFailure{Round: i + 1, Case: run.Case, Family: run.Family, Reason: run.Reason})
			}
		}
	}
	s.Shortest, s.Longest = shortest.String(), longest.String()
	return s, nil
}

// sameProgram compares the checksums of two files. Reports of the former version have none.
func sameProgram(a, b *Program) bool { return a == nil || b == nil || a.SHA256 == b.SHA256 }

// YAML writes the sum as YAML.
func (s Soak) YAML() ([]byte, error) {
	text, err := yaml.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("write the sum of a soak: %w", err)
	}
	return text, nil
}
