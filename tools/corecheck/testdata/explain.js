// Runs core_js.wasm as a web page or a program does: node explain.js wasm_exec.js core_js.wasm < FILE, with one document a line.
const fs = require("node:fs");
const [, , runtime, module_] = process.argv;
require(runtime);
const go = new Go();
WebAssembly.instantiate(fs.readFileSync(module_), go.importObject).then(({ instance }) => {
  go.run(instance);
  const documents = fs.readFileSync(0, "utf8").split("\n").filter((line) => line !== "");
  fs.writeSync(1, documents.map((document) => globalThis.kubelbExplain(document) + "\n").join(""));
  fs.writeSync(1, globalThis.kubelbExplain() + "\n");
  process.exit(0);
});
