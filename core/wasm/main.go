//go:build !js

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"kubelb.k8c.io/core/explain"
)

func main() {
	setUpMemory()
	if err := filter(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "core:", err)
		os.Exit(1)
	}
}

// filter answers one document after another. After a document that is not JSON the start of the next is unknown, so that
// answer is the last.
func filter(in io.Reader, out io.Writer) error {
	documents := json.NewDecoder(bufio.NewReader(in))
	for {
		var document json.RawMessage
		err := documents.Decode(&document)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			document = json.RawMessage("{")
		}
		if _, writeErr := out.Write(append(explain.JSON(document), '\n')); writeErr != nil {
			return writeErr
		}
		if err != nil {
			return fmt.Errorf("standard input holds something that is not JSON: %w", err)
		}
	}
}
