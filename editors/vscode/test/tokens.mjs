// Tokenises plans as VS Code does: all of the repository's, and one whose tokens are written down.
// `node test/tokens.mjs --write` writes them anew.

import assert from "node:assert/strict";
import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath } from "node:url";

const require = createRequire(import.meta.url);
const oniguruma = require("vscode-oniguruma");
const textmate = require("vscode-textmate");

const here = path.dirname(fileURLToPath(import.meta.url));
const root = path.resolve(here, "../../..");
const wasm = fs.readFileSync(require.resolve("vscode-oniguruma/release/onig.wasm"));
await oniguruma.loadWASM(wasm);
const registry = new textmate.Registry({
  onigLib: Promise.resolve({
    createOnigScanner: (patterns) => new oniguruma.OnigScanner(patterns),
    createOnigString: (text) => new oniguruma.OnigString(text),
  }),
  loadGrammar: async (scope) => {
    const name = { "source.tailor": "tailor.tmLanguage.json" }[scope];
    const file = path.join(here, "../syntaxes", name);
    return textmate.parseRawGrammar(fs.readFileSync(file, "utf8"), file);
  },
});
const grammar = await registry.loadGrammar("source.tailor");

/** The words of a text with the innermost scope of each. */
function tokens(text) {
  const found = [];
  let stack = textmate.INITIAL;
  for (const line of text.split(/\r?\n/)) {
    const result = grammar.tokenizeLine(line, stack);
    assert(!result.stoppedEarly);
    stack = result.ruleStack;
    for (const token of result.tokens) {
      const words = line.slice(token.startIndex, token.endIndex);
      if (words.trim() !== "") {
        found.push({ words, scope: token.scopes.at(-1), line });
      }
    }
  }
  assert.equal(stack.depth, 1, "a bracket or a text in quotes goes on beyond the end");
  return found;
}

function filesBelow(folder, ending) {
  return fs
    .readdirSync(folder, { recursive: true })
    .filter((name) => name.endsWith(ending))
    .map((name) => path.join(folder, name));
}

const texts = filesBelow(path.join(root, "plans"), ".tailor").map((f) => fs.readFileSync(f, "utf8"));
for (const file of filesBelow(path.join(root, "docs"), ".md")) {
  for (const block of fs.readFileSync(file, "utf8").matchAll(/^```tailor\n(.*?)^```/gms)) {
    texts.push(block[1]);
  }
}

const shapes = [
  [/^L\d+$/, "constant.numeric.layer.tailor"],
  [/^#/, "comment.line.number-sign.tailor"],
  [/^(drop|merge|stack|search|others|whole)$/, "keyword.control.tailor"],
  [/^(maybe|tied)$/, "keyword.other.choice.tailor"],
  [/^(slerp|ties|linear|dare_ties|task_arithmetic)$/, "entity.name.function.method.tailor"],
];
let count = 0;
for (const text of texts) {
  for (const token of tokens(text)) {
    count += 1;
    const said = token.words.trim();
    for (const [shape, scope] of shapes) {
      if (shape.test(said) && !token.scope.startsWith("string")) {
        assert.equal(token.scope, scope, `'${said}' in: ${token.line}`);
      }
    }
  }
}
assert(texts.length > 20 && count > 1000, `${texts.length} texts with ${count} tokens`);

const sample = fs.readFileSync(path.join(here, "sample.tailor"), "utf8");
const golden = path.join(here, "sample.tokens");
const said = tokens(sample).map((t) => `${t.scope.padEnd(48)}${t.words.trim()}\n`).join("");
if (process.argv.includes("--write")) {
  fs.writeFileSync(golden, said);
}
assert.equal(said, fs.readFileSync(golden, "utf8"));
console.log(`${texts.length} texts with ${count} tokens; the sample's are as they were`);
