package image

import (
	"archive/tar"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/require"
)

// example is an image with the binary of this test, which is a Go program.
func example(t *testing.T) Image {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	library := filepath.Join(t.TempDir(), "libc.so.6")
	require.NoError(t, os.WriteFile(library, []byte("not really"), 0o600))
	licences := filepath.Join(t.TempDir(), "licences.txt")
	require.NoError(t, os.WriteFile(licences, []byte("any use is allowed"), 0o600))
	return Image{Reference: "localhost/example:1", Licences: licences, Entrypoint: []string{"/example"}, User: "65532", Files: []File{
		{Path: "/example", Source: self}, {Path: "/lib/x86_64-linux-gnu/libc.so.6", Source: library, Module: &Module{"glibc", "2.36"}}}}
}

func TestTheSameFilesGiveTheSameImage(t *testing.T) {
	i := example(t)
	var digests []string
	for _, name := range []string{"a.tar", "b.tar"} {
		archive := filepath.Join(t.TempDir(), name)
		require.NoError(t, i.Write(archive))
		image, err := tarball.ImageFromPath(archive, nil)
		require.NoError(t, err)
		digest, err := image.Digest()
		require.NoError(t, err)
		digests = append(digests, digest.String())
		require.NoError(t, os.Chtimes(i.Files[1].Source, time.Time{}, time.Now().Add(time.Hour)))
	}
	require.Equal(t, digests[0], digests[1])
}

func TestAnImageHasItsFilesAndAListOfTheirSoftware(t *testing.T) {
	archive := filepath.Join(t.TempDir(), "image.tar")
	require.NoError(t, example(t).Write(archive))
	image, err := tarball.ImageFromPath(archive, nil)
	require.NoError(t, err)
	config, err := image.ConfigFile()
	require.NoError(t, err)
	require.Equal(t, "65532", config.Config.User)
	require.Equal(t, []string{"/example"}, config.Config.Entrypoint)
	layers, err := image.Layers()
	require.NoError(t, err)
	require.Len(t, layers, 1)
	content, err := layers[0].Uncompressed()
	require.NoError(t, err)
	defer content.Close()
	modes := map[string]int64{}
	var list document
	for r := tar.NewReader(content); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		require.Zero(t, h.Uid+h.Gid)
		modes[h.Name] = h.Mode
		if "/"+h.Name == ListPath {
			require.NoError(t, json.NewDecoder(r).Decode(&list))
		}
	}
	require.Equal(t, map[string]int64{"tmp/": 0o1777, "example": 0o755, "lib/": 0o755, "lib/x86_64-linux-gnu/": 0o755, "lib/x86_64-linux-gnu/libc.so.6": 0o755,
		"usr/": 0o755, "usr/share/": 0o755, "usr/share/doc/": 0o755, "usr/share/doc/kubelb/": 0o755, "usr/share/doc/kubelb/sbom.spdx.json": 0o644, "usr/share/doc/kubelb/licences.txt": 0o644}, modes)
	var names []string
	for _, p := range list.Packages {
		names = append(names, p.Name)
	}
	require.Subset(t, names, []string{"glibc", "go"})
}

func TestAFileOfUnknownSoftwareIsRefused(t *testing.T) {
	i := example(t)
	i.Files[1].Module = nil
	require.ErrorContains(t, i.Write(filepath.Join(t.TempDir(), "image.tar")), "/lib/x86_64-linux-gnu/libc.so.6 is not a Go program: give it a Module")
}
