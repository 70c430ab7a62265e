// Keeps what the page has fetched, so that it works without a network: the network first, what was kept where it is silent.
const KEPT = "cmm-page";
const ALL = ["./", "index.html", "style.css", "page.js", "model.js", "tokenizer.js", "examples.json", "about.json.gz", "cmm.wasm.gz",
    "cmm-relaxed.wasm.gz", "fff.first.gz", "fff.rest.gz"];

self.addEventListener("install", (event) => event.waitUntil(caches.open(KEPT).then((kept) => kept.addAll(ALL))));
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
    if (event.request.method !== "GET" || new URL(event.request.url).origin !== self.location.origin) return;
    event.respondWith(
        fetch(event.request)
            .then(async (answer) => {
                if (answer.ok) (await caches.open(KEPT)).put(event.request, answer.clone());
                return answer;
            })
            .catch(async () => (await caches.match(event.request, { ignoreSearch: true })) ?? Response.error()),
    );
});
