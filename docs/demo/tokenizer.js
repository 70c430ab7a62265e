// The tokenizer of the packaged models: WordPiece in lower case and ASCII, as their tokenizer.json has it.

/** Letters that are left when accents and what is not ASCII are taken away. @param {string} text */
export function normalized(text) {
    // eslint-disable-next-line no-control-regex
    return text.normalize("NFD").toLowerCase().replace(/\p{Mn}/gu, "").replace(/[^\x00-\x7F]/gu, "");
}

/** What of a text the model cannot read: each character once. @param {string} text @returns {string[]} */
export function unread(text) {
    return [...new Set([...text].filter((one) => !/\s/u.test(one) && normalized(one) === ""))];
}

export class Tokenizer {
    /** @param {string[]} tokens by id @param {string[]} special those that are found in a text as they are */
    constructor(tokens, special) {
        this.tokens = tokens;
        this.ids = new Map(tokens.map((token, id) => [token, id]));
        this.special = special;
        this.mask = this.id("<mask>");
        const escaped = special.map((one) => one.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
        this.splitter = new RegExp(`(${escaped.join("|")})`, "u");
    }

    /** @param {string} token */
    id(token) {
        const id = this.ids.get(token);
        if (id === undefined) throw new Error(`the vocabulary has no ${token}`);
        return id;
    }

    /** The ids of a text, <sep> at the end. @param {string} text @returns {number[]} */
    encode(text) {
        /** @type {number[]} */
        const ids = [];
        for (const piece of text.split(this.splitter)) {
            if (this.special.includes(piece)) ids.push(this.id(piece));
            else for (const word of normalized(piece).match(/[!-/:-@[-`{-~]|[^\s!-/:-@[-`{-~]+/g) ?? []) ids.push(...this.pieces(word));
        }
        return [...ids, this.id("<sep>")];
    }

    /** The longest token that a word begins with, and so on; <unk> where there is none. @param {string} word */
    pieces(word) {
        const found = [];
        if (word.length > 100) return [this.id("<unk>")];
        for (let start = 0; start < word.length; ) {
            let end = word.length;
            let id;
            for (; end > start; end--) {
                id = this.ids.get((start ? "##" : "") + word.slice(start, end));
                if (id !== undefined) break;
            }
            if (id === undefined) return [this.id("<unk>")];
            found.push(id);
            start = end;
        }
        return found;
    }
}
