package guest

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// results hands files to the host while the machine runs, so that those of one that is ended are not lost.
type results struct {
	port    *counted
	archive *tar.Writer
	sent    map[string]bool
}

// counted counts the bytes that are written to a file.
type counted struct {
	to    *os.File
	bytes int64
}

// Write implements io.Writer.
func (c *counted) Write(p []byte) (int, error) {
	n, err := c.to.Write(p)
	c.bytes += int64(n)
	return n, err
}

// resultsPort is the device through which the host gets them.
const resultsPort = "/dev/vport0p1"

func openResults(modules Modules) (*results, error) {
	for _, name := range []string{"virtio_pci", "virtio_console"} {
		if len(modules.Find(name)) > 0 { // else it is built in
			if err := modules.load(name); err != nil {
				return nil, err
			}
		}
	}
	port, err := openPort()
	if err != nil {
		return nil, fmt.Errorf("device for results: %w", err)
	}
	counts := &counted{to: port}
	return &results{counts, tar.NewWriter(counts), map[string]bool{}}, nil
}

// openPort waits for the device: a driver that has just come makes it a moment later.
func openPort() (*os.File, error) {
	for range 100 {
		if port, err := os.OpenFile(resultsPort, os.O_WRONLY, 0); err == nil {
			return port, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	found, _ := filepath.Glob("/dev/vport*")
	return nil, fmt.Errorf("%s is not there, but %v", resultsPort, found)
}

// send sends the files that have come since the last time, and returns how many bytes have been sent altogether.
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
