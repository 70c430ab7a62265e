// The page in a browser: node browser.mjs PLAYWRIGHT-CORE CHROMIUM PAGE-FOLDER [PICTURES-FOLDER]. Prints JSON of what it saw.
import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";

const [playwright, executablePath, folder, pictures] = process.argv.slice(2);
const { chromium } = createRequire(import.meta.url)(playwright);
const types = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".json": "application/json" };
const base = "/some/folder/"; // one of several sites of a host: what is asked for beside it is not there
let [bytes, silent] = [0, false];
const server = createServer(async (request, response) => {
    if (silent) return request.socket.destroy();
    const name = new URL(request.url, "http://localhost").pathname;
    try {
        if (!name.startsWith(base)) throw new Error(name);
        const content = await readFile(path.join(folder, name.slice(base.length) || "index.html"));
        bytes += content.length;
        response.writeHead(200, { "content-type": types[path.extname(name) || ".html"] ?? "application/octet-stream" }).end(content);
    } catch {
        response.writeHead(404).end();
    }
});
await new Promise((ready) => server.listen(0, "localhost", ready));
const address = `http://localhost:${server.address().port}${base}`;
const args = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-sync", "--disable-component-update", "--hide-scrollbars"];
const browser = await chromium.launch({ executablePath, headless: false, args: ["--headless=new", ...args] });
const seen = { errors: [], elsewhere: [] };
const watch = (page) => {
    page.on("pageerror", (error) => seen.errors.push(String(error)));
    page.on("console", (message) => message.type() === "error" && seen.errors.push(message.text()));
    page.on("request", (request) => request.url().startsWith(address) || /^(data|blob):/.test(request.url()) || seen.elsewhere.push(request.url()));
};
const context = await browser.newContext({ viewport: { width: 1100, height: 900 } });
context.setDefaultTimeout(120_000); // of a busy machine
const page = await context.newPage();
watch(page);
await page.goto(address);
await page.waitForSelector(".words li");
await page.waitForFunction(() => document.documentElement.dataset.first);
seen.first = await page.evaluate(() => document.documentElement.dataset.first);
const words = () => page.$$eval(".words li", (items) => items.map((item) => [item.querySelector(".word").textContent, item.querySelector(".share").textContent]));
seen.words = await words();
await page.waitForSelector("#times td");
seen.used = await page.textContent("#used");
// By keyboard alone: another layer, another token.
await page.focus("#layers input:checked");
await page.keyboard.press("ArrowRight");
seen.layer = await page.textContent("#used");
await page.focus("#tokens input:checked");
await page.keyboard.press("ArrowRight");
seen.token = await page.textContent("#used");
seen.trees = await page.$$eval(".tree", (trees) => trees.map((tree) => tree.getAttribute("aria-label")));
const noteOf = async (text) => {
    await page.fill("#text", text);
    await page.waitForFunction((was) => document.getElementById("note").textContent !== was, "");
    await page.waitForTimeout(350);
    return page.textContent("#note");
};
seen.noMask = await noteOf("A sentence without one.");
seen.letters = await noteOf("Функция возвращает <mask>.");
await page.fill("#text", "The word to hide is here.");
await page.focus("#text");
await page.evaluate(() => document.getElementById("text").setSelectionRange(5, 5));
await page.click("#insert");
seen.inserted = await page.inputValue("#text");
await page.fill("#text", "The function returns a <mask> of strings.");
await page.waitForSelector(".words li");
await page.click("#twin");
await page.waitForFunction(() => document.querySelectorAll("#times tbody tr").length === 2);
seen.times = await page.$$eval("#times tr", (rows) => rows.map((row) => [...row.children].map((cell) => cell.textContent)));
seen.loaded = await page.textContent("#loaded");
if (pictures) {
    for (const [name, width, colorScheme] of [["desktop-light", 1100, "light"], ["desktop-dark", 1100, "dark"], ["phone-light", 390, "light"], ["phone-dark", 390, "dark"]]) {
        await page.setViewportSize({ width, height: 900 });
        await page.emulateMedia({ colorScheme });
        await page.waitForTimeout(1600);
        await page.screenshot({ path: path.join(pictures, `${name}.png`), fullPage: true });
    }
}
await page.setViewportSize({ width: 360, height: 800 });
seen.overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
// Without a network: what the service worker kept.
await page.evaluate(() => navigator.serviceWorker.ready);
await page.reload();
await page.waitForSelector(".words li");
silent = true;
server.closeAllConnections();
await page.reload();
await page.waitForSelector(".words li");
await page.reload(); // once more, from what was kept alone, and by the file's name
await page.goto(`${address}index.html`);
await page.waitForSelector(".words li");
seen.offline = await words();
silent = false;
// A browser without SIMD.
const old = await browser.newContext({ serviceWorkers: "block" });
await old.addInitScript(() => (WebAssembly.validate = () => false));
old.setDefaultTimeout(120_000);
const without = await old.newPage();
await without.goto(address);
await without.waitForSelector(".problem");
seen.noSimd = await without.textContent("#note");
seen.served = bytes;
await browser.close();
server.close();
process.stdout.write(JSON.stringify(seen, null, 1), () => process.exit(0));
