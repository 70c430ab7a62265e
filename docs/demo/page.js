// The page: what is typed, what the model answers, how a token walked, what it cost.
import { Model, about, hasSimd, received } from "./model.js";
import { unread } from "./tokenizer.js";

/** @typedef {import("./model.js").Answer} Answer */

/** @param {string} id @returns {any} */
const element = (id) => document.getElementById(id);
const megabytes = (/** @type {number} */ bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const micro = (/** @type {number} */ ms) => `${(1000 * ms).toFixed(0)} µs`;

/** @type {{fff?: Model, dense?: Model, all?: import("./model.js").About, answer?: Answer, token: number, layer: number, text: string, asked: number}} */
const state = { token: 0, layer: 0, text: "", asked: 0 };

/** Say something below the sentence. @param {string} text @param {boolean} [problem] */
function say(text, problem = false) {
    element("note").textContent = text;
    element("note").classList.toggle("problem", problem);
}

/** An element with attributes and content. @param {string} tag @param {Record<string, string>} attributes @param {(Node | string)[]} content */
function make(tag, attributes = {}, ...content) {
    const svg = ["svg", "path", "circle", "text", "title"].includes(tag);
    const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...content);
    return /** @type {HTMLElement} */ (made);
}

// ---- words ------------------------------------------------------------------------------------------------------------

/** @param {Answer} answer */
function showWords(answer) {
    element("words").replaceChildren(...answer.predictions.flatMap((words, number) => {
        const list = make("ol", { class: "words", "aria-label": `The likeliest words for blank ${number + 1}` });
        for (const { token, probability } of words) {
            const share = `${(100 * probability).toFixed(1)} %`;
            list.append(make("li", {}, make("span", { class: "word" }, token),
                make("span", { class: "bar", "aria-hidden": "true" }, make("i", { style: `width: ${100 * probability}%` })),
                make("span", { class: "share" }, share)));
        }
        return answer.masks.length > 1 ? [make("p", { class: "which" }, `Blank ${number + 1} of ${answer.masks.length}`), list] : [list];
    }));
}

// ---- the walk ---------------------------------------------------------------------------------------------------------

/** Chips of which one is chosen. @param {string} id @param {string[]} names @param {number} chosen @param {(index: number) => void} choose */
function chips(id, names, chosen, choose) {
    element(id).replaceChildren(...names.map((name, index) => {
        const input = /** @type {HTMLInputElement} */ (make("input", { type: "radio", name: id, value: String(index) }));
        input.checked = index === chosen;
        input.addEventListener("change", () => choose(index));
        return make("label", { class: "chip" }, input, make("span", {}, name));
    }));
}

const WIDE = 132;
const HIGH = 62;

/** Where a node is drawn. @param {number} node @param {number} depth */
function place(node, depth) {
    const level = 31 - Math.clz32(node + 1);
    const x = ((node + 2 - 2 ** level + -0.5) / 2 ** level) * WIDE;
    return { x, y: 5 + (level * (HIGH - 10)) / depth, level };
}

/** One tree and a way through it. @param {number} number @param {number[]} path @param {number} depth */
function tree(number, path, depth) {
    const label = `Tree ${number + 1}: nodes ${path.join(", ")}`;
    const svg = make("svg", { class: "tree", viewBox: `0 0 ${WIDE} ${HIGH + 8}`, role: "img", "aria-label": label });
    let branches = "";
    for (let node = 1; node < 2 ** (depth + 1) - 1; node++) {
        const [from, to] = [place((node - 1) >> 1, depth), place(node, depth)];
        branches += `M${from.x} ${from.y}L${to.x} ${to.y}`;
    }
    svg.append(make("title", {}, label), make("path", { class: "branch", d: branches }));
    for (let node = 0; node < 2 ** (depth + 1) - 1; node++) {
        const at = place(node, depth);
        svg.append(make("circle", { class: "node", cx: String(at.x), cy: String(at.y), r: at.level === depth ? "1.1" : "1.6" }));
    }
    const way = path.map((node) => place(node, depth));
    svg.append(make("path", { class: "way", pathLength: "1", d: `M${way.map(({ x, y }) => `${x} ${y}`).join("L")}` }));
    for (const { x, y, level } of way)
        svg.append(make("circle", { class: "met", cx: String(x), cy: String(y), r: "3", style: `--step: ${level}` }));
    return svg;
}

function showWalk() {
    const { answer, fff, token, layer } = state;
    if (!answer || !fff) return;
    const { trees, depth, neurons } = fff.shape;
    const steps = trees * (depth + 1);
    const start = (layer * answer.tokens.length + token) * steps;
    const paths = Array.from({ length: trees }, (_, number) =>
        Array.from(answer.path.subarray(start + number * (depth + 1), start + (number + 1) * (depth + 1))));
    element("trees").replaceChildren(...paths.map((path, number) => tree(number, path, depth)));
    const share = ((100 * steps) / neurons).toFixed(1);
    element("used").replaceChildren(make("b", {}, String(steps)), ` of ${neurons} neurons of layer ${layer + 1} did the work for “${answer.tokens[token]}”: ${share} %`,
        make("span", { class: "meter", "aria-hidden": "true" }, make("i", { style: `width: ${share}%` })));
    const head = make("tr", {}, make("th", { scope: "col" }, "Tree"), ...Array.from({ length: depth + 1 }, (_, level) =>
        make("th", { scope: "col" }, level === 0 ? "Root" : level === depth ? "Leaf" : String(level))));
    const rows = paths.map((path, number) => make("tr", {}, make("th", { scope: "row" }, String(number + 1)), ...path.map((node) => make("td", {}, String(node)))));
    element("numbers").replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
}

/** @param {Answer} answer */
function showChoices(answer) {
    if (state.token >= answer.tokens.length || !answer.masks.includes(state.token)) state.token = answer.masks[0];
    chips("tokens", answer.tokens, state.token, (index) => ((state.token = index), showWalk()));
    chips("layers", Array.from({ length: state.fff?.shape.layers ?? 0 }, (_, layer) => String(layer + 1)), state.layer, (index) => ((state.layer = index), showWalk()));
    element("walk").hidden = element("cost").hidden = false;
    showWalk();
}

// ---- the time ---------------------------------------------------------------------------------------------------------

async function showTimes() {
    const { answer, fff, dense, text } = state;
    if (!answer || !fff) return;
    const rows = [];
    for (const [model, name] of /** @type {[Model | undefined, string][]} */ ([[fff, "Trees"], [dense, "Dense twin"]])) {
        if (!model) continue;
        const { all, feedforward } = model.time(answer.ids);
        const steps = model.shape.trees ? model.shape.trees * (model.shape.depth + 1) : model.shape.neurons;
        const best = (await model.fill_mask(text, 1)).predictions.map(([word]) => word.token).join(", ");
        rows.push(make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, `${steps} of ${model.shape.neurons}`), make("td", {}, micro(feedforward)), make("td", {}, micro(all)), make("td", {}, best)));
    }
    if (state.text !== text) return;
    const names = ["", "Neurons of a layer", "Feedforward layers, a token", "Whole encoder, a token", "Fills in"];
    element("times").replaceChildren(make("thead", {}, make("tr", {}, ...names.map((name) => make("th", { scope: "col" }, name)))), make("tbody", {}, ...rows));
    const bytes = [...received.values()].reduce((a, b) => a + b, 0);
    const how = fff.module === "cmm.wasm.gz" ? "this browser has no multiply-add that rounds once, so libcmm makes one of other instructions, at several times the cost" : "libcmm takes this browser's multiply-add, which rounds once";
    element("loaded").textContent = `One thread. ${megabytes(bytes)} of models and code were fetched so far; ${how}.`;
}

/** @param {Event} event */
async function loadTwin(event) {
    const button = /** @type {HTMLButtonElement} */ (event.currentTarget);
    button.disabled = true;
    button.textContent = "Loading the dense twin …";
    try {
        if (!state.all) return;
        state.dense = await Model.load(state.all, "dense");
        button.hidden = true;
        await showTimes();
    } catch (error) {
        button.disabled = false;
        button.textContent = "The dense twin could not be loaded. Try again";
        console.error(error);
    }
}

// ---- asking -----------------------------------------------------------------------------------------------------------

/** Why a text cannot be answered, or "". @param {string} text */
function problem(text) {
    const { fff } = state;
    if (!fff) return "";
    const ids = fff.tokenizer.encode(text);
    const words = ids.filter((id) => id >= fff.tokenizer.special.length && /[a-z0-9]/.test(fff.tokenizer.tokens[id])).length;
    const left = unread(text);
    if (text.trim() === "") return "Type a sentence with a blank in it: <mask>.";
    if (left.length && !words) return `The model reads English letters alone: of this text no word is left. Not read: ${left.slice(0, 8).join(" ")}`;
    if (!ids.includes(fff.tokenizer.mask)) return "This sentence has no blank. Put the cursor on a word and press the button <mask>.";
    if (!words) return "There is nothing but the blank: give it some words to go by.";
    if (ids.length > fff.shape.limit) return `These are ${ids.length} tokens; the model reads ${fff.shape.limit} at most.`;
    return "";
}

/** @type {number | undefined} */
let later;

async function ask() {
    const { fff } = state;
    if (!fff) return;
    const text = element("text").value;
    const number = ++state.asked;
    const wrong = problem(text);
    if (wrong) {
        say(wrong, true);
        element("words").replaceChildren();
        element("walk").hidden = element("cost").hidden = true;
        return;
    }
    if (!fff.complete) say("One moment: the neurons that these words walk through are still on their way …");
    try {
        const answer = await fff.fill_mask(text);
        if (number !== state.asked) return;
        Object.assign(state, { answer, text });
        const left = unread(text);
        say(left.length ? `Left out, for the model reads English letters alone: ${left.slice(0, 8).join(" ")}` : "", left.length > 0);
        showWords(answer);
        showChoices(answer);
        clearTimeout(later);
        later = window.setTimeout(showTimes, 400);
    } catch (error) {
        if (number === state.asked) say("The rest of the model could not be fetched: the network or the server did not answer. Try again.", true);
        console.error(error);
    }
}

function insertMask() {
    const input = /** @type {HTMLInputElement} */ (element("text"));
    let [start, end] = [input.selectionStart ?? 0, input.selectionEnd ?? 0];
    if (start === end) {
        while (start > 0 && /\w/.test(input.value[start - 1])) start--;
        while (end < input.value.length && /\w/.test(input.value[end])) end++;
    }
    input.setRangeText("<mask>", start, end, "end");
    input.focus();
    void ask();
}

async function start() {
    if (!hasSimd()) {
        say("This browser has no WebAssembly with vector instructions (SIMD), which the model needs. Firefox 89, Chrome 91, Safari 16.4 and newer have it.", true);
        return;
    }
    const input = /** @type {HTMLInputElement} */ (element("text"));
    try {
        const examples = /** @type {string[]} */ (await (await fetch("examples.json")).json());
        input.value ||= examples[0];
        element("examples").replaceChildren(...examples.map((text) => {
            const button = make("button", { type: "button" }, text);
            button.addEventListener("click", () => ((input.value = text), void ask()));
            return button;
        }));
        state.all = await about();
        state.fff = await Model.load(state.all, "fff");
    } catch (error) {
        say("The model could not be loaded: the network or the server did not answer. Load the page again.", true);
        console.error(error);
        return;
    }
    let timer = 0;
    input.addEventListener("input", () => {
        clearTimeout(timer);
        timer = window.setTimeout(ask, 200);
    });
    element("insert").addEventListener("click", insertMask);
    element("twin").textContent = `Compare with the dense twin (${megabytes(state.all.sizes["dense.gz"])})`;
    element("twin").addEventListener("click", loadTwin);
    await ask();
    document.documentElement.dataset.first = `${performance.now().toFixed(0)} ms, ${[...received.values()].reduce((a, b) => a + b, 0)} bytes`;
    state.fff.fetchRest().catch(console.error);
    if ("serviceWorker" in navigator) navigator.serviceWorker.register("offline.js").catch(console.error);
}

void start();
