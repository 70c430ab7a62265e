// Runs a WebAssembly program under node: node wasi.mjs PROGRAM [ARGUMENT ...]
import { readFile } from "node:fs/promises";

process.removeAllListeners("warning"); // that WASI is experimental
const { WASI } = await import("node:wasi");
const [program, ...others] = process.argv.slice(2);
const wasi = new WASI({ version: "preview1", args: [program, ...others], env: process.env, returnOnExit: true });
const module = await WebAssembly.compile(await readFile(program));
process.exit(wasi.start(await WebAssembly.instantiate(module, wasi.getImportObject())));
