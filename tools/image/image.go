// Package image makes container images without a daemon: one layer of the given files, the same bytes whenever and wherever it is made,
// with a list of what is in it.
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

// File is one of an image's files.
type File struct {
	// Path is absolute, in the image. Its directories come by themselves.
	Path string
	// Source is the file's path on this machine.
	Source string
	// Module says what the file is, for the list of contents, where the file does not say so itself as Go programs do.
	Module *Module
}

// Module is a piece of software.
type Module struct{ Name, Version string }

// Image is what to make.
type Image struct {
	// Reference is its name and tag.
	Reference  string
	Files      []File
	Entrypoint []string
	// User is the number of the user that it runs as.
	User string
	// Licences is the path, on this machine, of the texts of its files' licences; empty for none.
	Licences string
}

// ListPath is where an image has the list of its contents, as SPDX 2.3 in JSON (https://spdx.github.io/spdx-spec/v2.3).
const ListPath = "/usr/share/doc/kubelb/sbom.spdx.json"

// LicencesPath is where an image has its files' licences.
const LicencesPath = "/usr/share/doc/kubelb/licences.txt"

// Write makes the image as an archive that container runtimes and registries' tools load.
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

// writeLayer writes directories before what is in them, and neither times nor owners of this machine.
func (i Image) writeLayer(to io.Writer) error {
	contents := newContents()
	w := tar.NewWriter(to)
	made := map[string]bool{"/": true}
	directory := func(of string, mode int64) error {
		var missing []string
		for d := of; !made[d]; d = path.Dir(d) {
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
	if err := directory("/tmp", 0o1777); err != nil {
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
		if err := errors.Join(directory(path.Dir(f.Path), 0o755), writeFile(w, f.Path, 0o755, content)); err != nil {
			return err
		}
	}
	list, err := contents.list(i.Reference)
	if err != nil {
		return err
	}
	if err := errors.Join(directory(path.Dir(ListPath), 0o755), writeFile(w, ListPath, 0o644, list)); err != nil {
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
