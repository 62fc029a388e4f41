// Command wasm is the core as a WebAssembly module. It has one call, explain.JSON: it takes an input document and returns
// an output document.
//
// Built for wasip1 or natively, it is a filter: it reads documents from standard input, one after another, and answers each
// with one line on standard output.
//
//	GOOS=wasip1 GOARCH=wasm go build -o core.wasm ./wasm
//	wasmtime core.wasm < document.json
//
// Built for js, it defines a function for browsers and Node.js. Go's own wasm_exec.js starts it:
//
//	globalThis.kubelbExplain(text: string): string
//
// Invalid input is answered with the field error, and does not end the module. An answer is the same on every platform.
package main
