// Package image makes container images without a daemon. An image has one layer with the given files, and a list of the software in it.
// The same files always give the same bytes.
package image

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// File is a file of an image.
type File struct {
	// Path is absolute, in the image. Its directories are made too.
	Path string
	// Source is the file's path on this host.
	Source string
	// Module is the software that the file is part of, for the list of contents. A Go program needs none: its modules are in its build info.
	Module *Module
}

// Module is a piece of software.
type Module struct{ Name, Version string }

// Image describes an image to make.
type Image struct {
	// Reference is its name and tag.
	Reference  string
	Files      []File
	Entrypoint []string
	// User is the numeric ID of the user that the container runs as.
	User string
	// Licences is the path, on this host, of the texts of the licences of its files. Empty is none.
	Licences string
}

// ListPath is the path of the list of contents in an image: SPDX 2.3 in JSON (https://spdx.github.io/spdx-spec/v2.3).
const ListPath = "/usr/share/doc/kubelb/sbom.spdx.json"

// LicencesPath is the path of the licence texts in an image.
const LicencesPath = "/usr/share/doc/kubelb/licences.txt"

// Write writes the image as an archive that container runtimes and the tools of registries load.
func (i Image) Write(archive string) (err error) {
	layer, err := os.CreateTemp("", "layer")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, layer.Close(), os.Remove(layer.Name())) }()
	if err := i.writeLayer(layer); err != nil {
		return fmt.Errorf("image %s: %w", i.Reference, err)
	}
	l, err := tarball.LayerFromFile(layer.Name(), tarball.WithCompressedCaching, tarball.WithCompressionLevel(gzip.BestSpeed))
	if err != nil {
		return err
	}
	image, err := i.withConfig(l)
	if err != nil {
		return err
	}
	tag, err := name.NewTag(i.Reference)
	if err != nil {
		return err
	}
	return tarball.WriteToFile(archive, tag, image)
}

func (i Image) withConfig(l v1.Layer) (v1.Image, error) {
	image, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return nil, err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.Architecture, file.OS = "amd64", "linux"
	file.Config = v1.Config{Entrypoint: i.Entrypoint, User: i.User, Env: []string{"PATH=/"}}
	return mutate.ConfigFile(image, file)
}

// writeLayer writes each directory before its files. It writes no times and no owners, which differ from host to host.
func (i Image) writeLayer(to io.Writer) error {
	contents := newContents()
	w := tar.NewWriter(to)
	made := map[string]bool{"/": true}
	makeDir := func(dir string, mode int64) error {
		var missing []string
		for d := dir; !made[d]; d = path.Dir(d) {
			missing = append(missing, d)
			made[d] = true
		}
		slices.Reverse(missing)
		for _, d := range missing {
			if err := w.WriteHeader(&tar.Header{Name: strings.TrimPrefix(d, "/") + "/", Typeflag: tar.TypeDir, Mode: mode}); err != nil {
				return err
			}
		}
		return nil
	}
	if err := makeDir("/tmp", 0o1777); err != nil {
		return err
	}
	files := slices.SortedFunc(slices.Values(i.Files), func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	for _, f := range files {
		content, err := os.ReadFile(f.Source)
		if err != nil {
			return err
		}
		if err := contents.add(f, content); err != nil {
			return err
		}
		if err := errors.Join(makeDir(path.Dir(f.Path), 0o755), writeFile(w, f.Path, 0o755, content)); err != nil {
			return err
		}
	}
	list, err := contents.list(i.Reference)
	if err != nil {
		return err
	}
	if err := errors.Join(makeDir(path.Dir(ListPath), 0o755), writeFile(w, ListPath, 0o644, list)); err != nil {
		return err
	}
	if i.Licences != "" {
		texts, err := os.ReadFile(i.Licences)
		if err != nil {
			return err
		}
		if err := writeFile(w, LicencesPath, 0o644, texts); err != nil {
			return err
		}
	}
	return w.Close()
}

func writeFile(w *tar.Writer, at string, mode int64, content []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: strings.TrimPrefix(at, "/"), Mode: mode, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}
