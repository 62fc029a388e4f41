//go:build !js

package main

import (
	"strings"
	"testing"
)

func TestDocumentsAreAnsweredOneByOne(t *testing.T) {
	var out strings.Builder
	if err := filter(strings.NewReader(`{"version":"v1"} {"version":"v2"}`+"\n"), &out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0], `"text":""`) || !strings.Contains(lines[1], "this core reads v1") || lines[2] != "" {
		t.Errorf("answered %q", lines)
	}
}

func TestInvalidJSONIsTheLastDocument(t *testing.T) {
	var out strings.Builder
	err := filter(strings.NewReader(`{"version":"v1"} ] {"version":"v1"}`), &out)
	if err == nil || strings.Count(out.String(), "\n") != 2 || !strings.Contains(out.String(), `"error"`) {
		t.Errorf("answered %q, error %v", out.String(), err)
	}
}
