//go:build !js

package main

import (
	"errors"
	"io"
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

func TestNoDocumentHasNoAnswer(t *testing.T) {
	var out strings.Builder
	if err := filter(strings.NewReader(" \n"), &out); err != nil || out.Len() != 0 {
		t.Errorf("answered %q, error %v", out.String(), err)
	}
}

func TestADocumentThatIsCutShortIsAnErrorAfterItsAnswer(t *testing.T) {
	var out strings.Builder
	err := filter(strings.NewReader(`{"version":"v1"`), &out)
	if err == nil || !strings.Contains(err.Error(), "standard input holds something that is not JSON") || !strings.Contains(out.String(), "not a document of version v1") {
		t.Errorf("answered %q, error %v", out.String(), err)
	}
}

// closedPipe is a reader of answers that has gone.
type closedPipe struct{ writes int }

func (p *closedPipe) Write([]byte) (int, error) {
	p.writes++
	return 0, io.ErrClosedPipe
}

func TestItEndsWhenNobodyReadsItsAnswers(t *testing.T) {
	out := &closedPipe{}
	if err := filter(strings.NewReader(`{"version":"v1"} {"version":"v1"}`), out); !errors.Is(err, io.ErrClosedPipe) || out.writes != 1 {
		t.Errorf("%d writes, error %v", out.writes, err)
	}
}
