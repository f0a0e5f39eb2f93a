// llama.cpp's side of bench.py: node llama.mjs FOLDER ORDERS, with node-llama-cpp in FOLDER/node_modules and ORDERS a JSON object.
//
// Its bindings are called directly: what is timed is llama_decode, with logits for the last token of every sequence, as dsv2 bench
// times dsv2_step. The public classes above them would add a JavaScript reader of GGUF to opening and a sampler to every token.
import fs from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";

const [folder, text] = process.argv.slice(2);
const orders = JSON.parse(text);
const home = path.join(folder, "node_modules/node-llama-cpp");
const {getLlama} = await import(pathToFileURL(path.join(home, "dist/index.js")));
const llama = await getLlama({gpu: false, build: "never", usePrebuiltBinaries: true, maxThreads: orders.threads});
const now = () => Number(process.hrtime.bigint()) * 1e-9;

// The generator of dsv2 bench: random ids, the same in every run.
let random = 0n;
function randomTokens(n) {
    return Uint32Array.from({length: n}, () => {
        random = BigInt.asUintN(64, random * 6364136223846793005n + 1442695040888963407n);
        return Number((random >> 33n) % BigInt(orders.vocabulary));
    });
}

let model;
async function openModel() {
    model = new llama._bindings.AddonModel(orders.model, {addonExports: llama._bindings, gpuLayers: 0, useMmap: true});
    if (!await model.init())
        throw new Error(`cannot open ${orders.model}`);
}

async function openContext(tokens, sequences) {
    const context = new llama._bindings.AddonContext(model, {
        contextSize: Math.ceil(tokens / 256) * 256 * sequences, batchSize: orders.batch, sequences,
        flashAttention: orders.flash, threads: orders.threads,
    });
    if (!await context.init())
        throw new Error("cannot make a context");
    context.setThreads(orders.threads);
    return context;
}

// Adds n tokens to each sequence, which has `at` of them: in batches if there is one sequence.
async function feed(context, sequences, at, n) {
    for (let done = 0; done < n; done += orders.batch) {
        const some = Math.min(orders.batch, n - done);
        context.initBatch(some * sequences);
        for (let s = 0; s < sequences; s++)
            context.addToBatch(s, at + done, randomTokens(some), Uint32Array.of(some - 1));
        await context.decodeBatch();
    }
}

function rewind(context, sequences, length) {
    for (let s = 0; s < sequences; s++)
        if (!context.removeTokenCellsFromSequence(s, length, -1))
            throw new Error("cannot rewind");
}

// Tokens a second of `steps` feeds of n tokens to each sequence.
async function rate(context, sequences, depth, steps, n) {
    const start = now();
    for (let i = 0; i < steps; i++)
        await feed(context, sequences, depth + i * n, n);
    const seconds = now() - start;
    rewind(context, sequences, depth);
    return steps * n * sequences / seconds;
}

const peakBytes = () => process.resourceUsage().maxRSS * 1024;
const report = result => console.log(JSON.stringify({...result, peak_bytes: peakBytes()}));

console.error("llama.cpp", process.memoryUsage.rss());
const opening = now();
await openModel();
let context = await openContext(orders.longest, 1);
await feed(context, 1, 0, 1);
report({point: "open", seconds: now() - opening});
report({info: llama._bindings.systemInfo(), memory: model.getMemoryBreakdown()});
await feed(context, 1, 1, 64);
rewind(context, 1, 0);
for (const p of orders.points)
    report({...p, rate: await rate(context, 1, p.depth, p.steps, p.n)});
await context.dispose();
process.exit(0);
