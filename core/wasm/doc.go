// Command wasm is the core as a WebAssembly module. It has one call: a document of package explain goes in, another one
// comes out.
//
// Built for wasip1 it is a filter for any WASI runtime, and likewise when built natively: it reads documents from standard
// input, one after another, and answers each with one line on standard output.
//
//	GOOS=wasip1 GOARCH=wasm go build -o core.wasm ./wasm
//	wasmtime core.wasm < document.json
//
// Built for js it defines a function for browsers and Node.js, after Go's own wasm_exec.js has started it:
//
//	globalThis.kubelbExplain(text: string): string
//
// What cannot be read is answered with the field error; the module does not end over it. Numbers, order and text of an
// answer are the same on every platform.
package main
