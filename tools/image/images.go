package image

import (
	"path/filepath"
	"slices"
)

// Options say what KubeLB's images are made of.
type Options struct {
	// Programs is the directory with the programs and Envoy, Libraries that with Debian's package libc6, unpacked.
	Programs, Libraries string
	// Registry and Tag go into the images' names.
	Registry, Tag string
	// EnvoyVersion and LibrariesVersion are named in the list of contents.
	EnvoyVersion, LibrariesVersion string
	// Licences is the file with the texts of the licences of what the programs are built of.
	Licences string
	// Dataplanes are more of them, each the path of a Go program, for which there is a gateway's image of its own.
	Dataplanes []string
}

// nobody is the user of programs that need no rights on their host.
const nobody = "65532"

// Images are KubeLB's, by component.
func (o Options) Images() map[string]Image {
	program := func(name string) File { return File{Path: "/" + name, Source: filepath.Join(o.Programs, name)} }
	reference := func(name string) string { return o.Registry + "/" + name + ":" + o.Tag }
	images := map[string]Image{
		"kubelb-ccm": {Reference: reference("kubelb-ccm"), Files: []File{program("kubelb-ccm")}, Entrypoint: []string{"/kubelb-ccm"}, User: nobody},
		// The command line is in it for helm test, and for kubectl exec.
		"kubelb-manager": {Reference: reference("kubelb-manager"), Files: []File{program("kubelb-manager"), program("kubelb")}, Entrypoint: []string{"/kubelb-manager"}, User: nobody},
		// All dataplanes are in one image: the one that comes has the one that goes removed.
		"kubelb-gateway": {Reference: reference("kubelb-gateway"), Entrypoint: []string{"/kubelb-manager"}, User: "0", Files: append([]File{program("kubelb-manager"),
			program("kubelb-backend-nftables"), program("kubelb-backend-ebpf"), program("kubelb-backend-envoy"), program("kubelb-envoy"),
			{Path: "/envoy", Source: filepath.Join(o.Programs, "envoy"), Module: &Module{"envoy", o.EnvoyVersion}}}, o.libraries()...)},
	}
	for _, program := range o.Dataplanes {
		base := filepath.Base(program)
		with := images["kubelb-gateway"]
		with.Reference = reference("kubelb-gateway-with-" + base)
		with.Files = append(slices.Clone(with.Files), File{Path: "/" + base, Source: program})
		images["kubelb-gateway-with-"+base] = with
	}
	for name, i := range images {
		i.Licences = o.Licences
		images[name] = i
	}
	return images
}

// libraries are those that Envoy is linked to.
func (o Options) libraries() []File {
	libc := &Module{"libc6 (Debian)", o.LibrariesVersion}
	var out []File
	for _, name := range []string{"libm.so.6", "librt.so.1", "libdl.so.2", "libpthread.so.0", "libc.so.6"} {
		out = append(out, File{Path: "/lib/x86_64-linux-gnu/" + name, Source: filepath.Join(o.Libraries, "lib/x86_64-linux-gnu", name), Module: libc})
	}
	return append(out, File{Path: "/lib64/ld-linux-x86-64.so.2", Source: filepath.Join(o.Libraries, "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"), Module: libc})
}
