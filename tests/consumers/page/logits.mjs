// Run the page's model under node: node logits.mjs PAGE-FOLDER FILE, whose JSON has {"fff": [text, ...], "dense": [...]}.
// Prints for each text its ids, the logits of its masks and its paths.
import { readFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const [folder, texts] = process.argv.slice(2);
globalThis.fetch = async (url) => new Response(await readFile(fileURLToPath(url)));
const { Model, about } = await import(pathToFileURL(path.resolve(folder, "model.js")));
const all = await about();
const result = {};
for (const [name, some] of Object.entries(JSON.parse(await readFile(texts, "utf-8")))) {
    const model = await Model.load(all, name);
    result[name] = { module: model.module, answers: [] };
    for (const text of some) {
        const whole = model.complete;
        const { ids, masks, path: nodes, predictions } = await model.fill_mask(text);
        const logits = masks.map((place) => Array.from(model.logits(place)));
        result[name].answers.push({ ids, masks, logits, path: Array.from(nodes), words: predictions.map((one) => one.map((word) => word.token)), whole, fetched: model.complete });
    }
    result[name].time = model.time(model.tokenizer.encode(some[0]));
}
process.stdout.write(JSON.stringify(result), () => process.exit(0));
