// A model in the page: libcmm and encoder.c as WebAssembly, weights as float16, and what comes out.
import { Tokenizer } from "./tokenizer.js";

const NODES_MISSING = 1;
const MODEL_PARTS = 6; // and the positions, which are computed here
const POSITIONS = 6;
const [BIAS, W_IN, W_OUT] = [6, 7, 8];

/**
 * @typedef {{layers: number, width: number, heads: number, vocabulary: number, limit: number, trees: number, depth: number,
 *            neurons: number, eps: number, files: string[], rows?: string[]}} Shape
 * @typedef {{models: Record<string, Shape>, vocabulary: string[], special: string[], sizes: Record<string, number>}} About
 * @typedef {{token: string, probability: number, logit: number}} Prediction
 * @typedef {{tokens: string[], ids: number[], masks: number[], predictions: Prediction[][], path: Int32Array}} Answer
 */

/** A module with one instruction of 128-bit vectors, and one with one of relaxed SIMD. */
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];
const RELAXED = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 15, 1, 13, 0, 65, 1, 253, 15, 65, 2, 253, 15, 253,
    128, 2, 11];

/** @param {number[]} bytes */
const understands = (bytes) => typeof WebAssembly === "object" && WebAssembly.validate(new Uint8Array(bytes));
export const hasSimd = () => understands(SIMD);

/** Bytes that were asked for, by file. @type {Map<string, number>} */
export const received = new Map();

/** A file of the page that is stored compressed. @param {string} name @returns {Promise<ArrayBuffer>} */
async function file(name) {
    const answer = await fetch(new URL(name, import.meta.url));
    if (!answer.ok) throw new Error(`${name}: the server says ${answer.status}`);
    const stored = await answer.arrayBuffer();
    received.set(name, stored.byteLength);
    const bytes = new Uint8Array(stored, 0, 2);
    if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return stored; // a server that has unpacked it already
    return new Response(new Blob([stored]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

/** @returns {Promise<About>} */
export const about = async () => JSON.parse(new TextDecoder().decode(await file("about.json.gz")));

/** The functions of encoder.c. Relaxed SIMD where the browser knows it and its multiply-add rounds once; else exact all the same. */
async function encoder() {
    for (const name of understands(RELAXED) ? ["cmm-relaxed.wasm.gz", "cmm.wasm.gz"] : ["cmm.wasm.gz"]) {
        const imports = { page: { now: () => performance.now() } };
        const { instance } = await WebAssembly.instantiate(await file(name), imports);
        const functions = /** @type {any} */ (instance.exports);
        functions._initialize();
        const nameAt = functions.instruction_set(); // before the buffer is taken: a call may grow memory, which makes a new one
        const text = new Uint8Array(functions.memory.buffer, nameAt, 8);
        if (new TextDecoder().decode(text.subarray(0, text.indexOf(0))) === "wasm") return { functions, module: name };
    }
    throw new Error("no instruction set of libcmm runs here");
}

export class Model {
    /** @param {About} all @param {string} name */
    static async load(all, name) {
        const shape = all.models[name];
        const [{ functions, module }, first] = await Promise.all([encoder(), file(`${shape.files[0]}.gz`)]);
        return new Model(all, shape, functions, module, first);
    }

    /** @param {About} all @param {Shape} shape @param {any} functions @param {string} module @param {ArrayBuffer} first */
    constructor(all, shape, functions, module, first) {
        this.shape = shape;
        this.module = module;
        this.tokenizer = new Tokenizer(all.vocabulary, all.special);
        this.wasm = functions;
        const { layers, width, heads, vocabulary, limit, trees, depth, neurons, eps } = shape;
        this.model = functions.model_new(layers, width, heads, vocabulary, limit, trees, depth, neurons, eps);
        this.ids = functions.memory_new(4 * limit);
        /** @type {Promise<void> | undefined} */
        this.rest = undefined;
        this.complete = shape.files.length === 1;
        const sizes = [vocabulary * width, 1, width, width, width, width];
        const ofLayer = [width, width, 3 * width * width, width * width, width, width, neurons, neurons * width, neurons * width];
        /** @type {[number, number][]} */
        const targets = [];
        for (let part = 0; part < MODEL_PARTS; part++) targets.push([functions.model_part(this.model, part), sizes[part]]);
        for (let layer = 0; layer < layers; layer++)
            for (let part = 0; part < ofLayer.length; part++)
                if (trees ? part < W_IN : part !== BIAS) targets.push([functions.model_layer(this.model, layer, part), ofLayer[part]]);
        this.fill(first, [...targets, ...this.rows("1")]);
        this.positions();
    }

    /** Where the rows of the nodes go that the first file has ("1") or the second ("0"). @param {string} which */
    rows(which) {
        const { width, neurons, rows } = this.shape;
        /** @type {[number, number][]} */
        const targets = [];
        const present = new Uint8Array(this.wasm.memory.buffer, this.wasm.model_present(this.model));
        (rows ?? []).forEach((bits, layer) => {
            const parts = [W_IN, W_OUT].map((part) => this.wasm.model_layer(this.model, layer, part));
            for (let neuron = 0; neuron < neurons; neuron++)
                if (bits[neuron] === which) {
                    for (const part of parts) targets.push([part + 4 * width * neuron, width]);
                    present[layer * neurons + neuron] = 1;
                }
        });
        return targets;
    }

    /** Widen a file into its places. @param {ArrayBuffer} content @param {[number, number][]} targets */
    fill(content, targets) {
        const count = content.byteLength / 2;
        const planes = new Uint8Array(content);
        const address = this.wasm.memory_new(content.byteLength);
        const halves = new Uint16Array(this.wasm.memory.buffer, address, count);
        for (let i = 0; i < count; i++) halves[i] = planes[i] | (planes[count + i] << 8);
        let at = address;
        for (const [target, size] of targets) {
            this.wasm.widen(at, target, size);
            at += 2 * size;
        }
        this.wasm.memory_delete(address);
        if (at !== address + content.byteLength) throw new Error("a file of weights has another length than it should");
    }

    /** Sinusoids, even columns sine, odd ones cosine, in float32 as cmm.bert computes them. */
    positions() {
        const { limit, width } = this.shape;
        const table = new Float32Array(this.wasm.memory.buffer, this.wasm.model_part(this.model, POSITIONS), limit * width);
        for (let i = 0; i < width; i += 2) {
            const rate = Math.fround(Math.exp(Math.fround(i * Math.fround(-Math.log(10000) / width))));
            for (let position = 0; position < limit; position++) {
                const angle = Math.fround(position * rate);
                table[position * width + i] = Math.sin(angle);
                table[position * width + i + 1] = Math.cos(angle);
            }
        }
    }

    /** Fetch the nodes that the first file has not. */
    fetchRest() {
        this.rest ??= file(`${this.shape.files[1]}.gz`).then((content) => {
            this.fill(content, this.rows("0"));
            this.complete = true;
        }).catch((error) => {
            this.rest = undefined; // the next call asks again
            throw error;
        });
        return this.rest;
    }

    /** @param {number[]} ids */
    encode(ids) {
        new Int32Array(this.wasm.memory.buffer, this.ids, ids.length).set(ids);
        return this.wasm.encode(this.model, this.ids, ids.length);
    }

    /** Logits of one token after encode(); valid until the next call. @param {number} token */
    logits(token) {
        const at = this.wasm.decode(this.model, token);
        return new Float32Array(this.wasm.memory.buffer, at, this.shape.vocabulary);
    }

    /** The k likeliest words for each mask, and every path. @param {string} text @param {number} k @returns {Promise<Answer>} */
    async fill_mask(text, k = 5) {
        const ids = this.tokenizer.encode(text);
        let status = this.encode(ids);
        if (status === NODES_MISSING && !this.complete) {
            await this.fetchRest();
            status = this.encode(ids);
        }
        if (status !== 0) throw new Error(`the encoder refused ${ids.length} tokens`);
        const { layers, trees, depth } = this.shape;
        const path = new Int32Array(this.wasm.memory.buffer, this.wasm.model_path(this.model), layers * ids.length * trees * (depth + 1)).slice();
        const masks = ids.flatMap((id, place) => (id === this.tokenizer.mask ? [place] : []));
        const predictions = masks.map((place) => {
            const logits = this.logits(place);
            const largest = logits.reduce((a, b) => Math.max(a, b));
            let sum = 0;
            for (const logit of logits) sum += Math.exp(logit - largest);
            const order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a]);
            return order.slice(0, k).map((id) => ({ token: this.tokenizer.tokens[id], logit: logits[id], probability: Math.exp(logits[id] - largest) / sum }));
        });
        return { tokens: ids.map((id) => this.tokenizer.tokens[id]), ids, masks, predictions, path };
    }

    /** Milliseconds per token: of the whole encoder, and of its feedforward layers. @param {number[]} ids */
    time(ids) {
        let [runs, feedforward] = [0, 0];
        this.encode(ids);
        const began = performance.now();
        while (performance.now() - began < 150) {
            this.encode(ids);
            feedforward += this.wasm.model_feedforward_ms(this.model);
            runs++;
        }
        const all = (performance.now() - began) / runs / ids.length;
        return { all, feedforward: feedforward / runs / ids.length };
    }
}
