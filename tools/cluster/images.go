package cluster

import (
	"path/filepath"

	"kubelb.k8c.io/tools/image"
)

// Images that pods of a lab can use.
const (
	// AgnhostImage has the test server of Kubernetes.
	AgnhostImage = "localhost/agnhost:1"
	// EchoImage has a server that sends back what it receives on TCP port 8080.
	EchoImage  = "localhost/echo:1"
	pauseImage = "localhost/pause:1"
)

// writeImage writes the archive of an image with a static Go program as its entry point.
func writeImage(archive, reference, binary string) error {
	entry := "/" + filepath.Base(binary)
	return image.Image{Reference: reference, Files: []image.File{{Path: entry, Source: binary}}, Entrypoint: []string{entry}}.Write(archive)
}
