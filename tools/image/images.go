package image

import (
	"path/filepath"
	"slices"
)

// Options are the inputs of KubeLB's images.
type Options struct {
	// Programs is the directory with KubeLB's programs and Envoy. Libraries is the directory with Debian's package libc6, unpacked.
	Programs, Libraries string
	// Registry and Tag are part of the images' names.
	Registry, Tag string
	// EnvoyVersion and LibrariesVersion are for the list of contents.
	EnvoyVersion, LibrariesVersion string
	// Licences is the file with the licence texts of all modules in the programs.
	Licences string
	// Dataplanes are the paths of further plugins, which are Go programs. For each of them there is one more image of the gateway.
	Dataplanes []string
}

// nobody is the user of programs that need no privileges on their host.
const nobody = "65532"

// Images returns KubeLB's images, by component.
func (o Options) Images() map[string]Image {
	program := func(name string) File { return File{Path: "/" + name, Source: filepath.Join(o.Programs, name)} }
	reference := func(name string) string { return o.Registry + "/" + name + ":" + o.Tag }
	images := map[string]Image{
		"kubelb-ccm": {Reference: reference("kubelb-ccm"), Files: []File{program("kubelb-ccm")}, Entrypoint: []string{"/kubelb-ccm"}, User: nobody},
		// It has the kubelb command for helm test and kubectl exec.
		"kubelb-manager": {Reference: reference("kubelb-manager"), Files: []File{program("kubelb-manager"), program("kubelb")}, Entrypoint: []string{"/kubelb-manager"}, User: nobody},
		// All dataplanes are in one image: when a gateway changes its dataplane, the new plugin has the old one removed.
		"kubelb-gateway": {Reference: reference("kubelb-gateway"), Entrypoint: []string{"/kubelb-manager"}, User: "0", Files: append([]File{program("kubelb-manager"),
			program("kubelb-backend-nftables"), program("kubelb-backend-ebpf"), program("kubelb-backend-envoy"), program("kubelb-envoy"),
			{Path: "/envoy", Source: filepath.Join(o.Programs, "envoy"), Module: &Module{"envoy", o.EnvoyVersion}}}, o.libraries()...)},
	}
	for _, program := range o.Dataplanes {
		base := filepath.Base(program)
		extended := images["kubelb-gateway"]
		extended.Reference = reference("kubelb-gateway-with-" + base)
		extended.Files = append(slices.Clone(extended.Files), File{Path: "/" + base, Source: program})
		images["kubelb-gateway-with-"+base] = extended
	}
	for name, i := range images {
		i.Licences = o.Licences
		images[name] = i
	}
	return images
}

// libraries are the shared libraries that Envoy needs.
func (o Options) libraries() []File {
	libc := &Module{"libc6 (Debian)", o.LibrariesVersion}
	var out []File
	for _, name := range []string{"libm.so.6", "librt.so.1", "libdl.so.2", "libpthread.so.0", "libc.so.6"} {
		out = append(out, File{Path: "/lib/x86_64-linux-gnu/" + name, Source: filepath.Join(o.Libraries, "lib/x86_64-linux-gnu", name), Module: libc})
	}
	return append(out, File{Path: "/lib64/ld-linux-x86-64.so.2", Source: filepath.Join(o.Libraries, "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"), Module: libc})
}
