package guest

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// results sends files to the host while the machine runs, so that they are not lost if the machine crashes.
type results struct {
	port    *countingWriter
	archive *tar.Writer
	sent    map[string]bool
}

// countingWriter counts the bytes that are written to a file.
type countingWriter struct {
	to    *os.File
	bytes int64
}

// Write implements io.Writer.
func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.to.Write(p)
	c.bytes += int64(n)
	return n, err
}

// resultsPort is the device for results.
const resultsPort = "/dev/vport0p1"

func openResults(modules Modules) (*results, error) {
	for _, name := range []string{"virtio_pci", "virtio_console"} {
		if len(modules.Find(name)) > 0 { // else the driver is built in
			if err := modules.load(name); err != nil {
				return nil, err
			}
		}
	}
	port, err := openPort()
	if err != nil {
		return nil, fmt.Errorf("device for results: %w", err)
	}
	counter := &countingWriter{to: port}
	return &results{counter, tar.NewWriter(counter), map[string]bool{}}, nil
}

// openPort waits for the device, which the driver makes a moment after it is loaded.
func openPort() (*os.File, error) {
	for range 100 {
		if port, err := os.OpenFile(resultsPort, os.O_WRONLY, 0); err == nil {
			return port, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	found, _ := filepath.Glob("/dev/vport*")
	return nil, fmt.Errorf("%s does not exist; there are %v", resultsPort, found)
}

// send sends the new files, and returns the number of all bytes that have been sent.
func (r *results) send() (int64, error) {
	entries, err := os.ReadDir(ResultsDir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if r.sent[e.Name()] {
			continue
		}
		content, err := os.ReadFile(filepath.Join(ResultsDir, e.Name()))
		if err != nil {
			return 0, err
		}
		if err := r.archive.WriteHeader(&tar.Header{Name: e.Name(), Mode: 0o644, Size: int64(len(content))}); err != nil {
			return 0, err
		}
		if _, err := r.archive.Write(content); err != nil {
			return 0, err
		}
		r.sent[e.Name()] = true
	}
	err = r.archive.Flush()
	return r.port.bytes, err
}
