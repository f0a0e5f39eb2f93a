// llama.cpp's side of bench.py: node llama.mjs SETTINGS, a JSON object. Opens the model and prints how long that took. Then
// each line of standard input says what to time, and gets a line as answer.
//
// node-llama-cpp's bindings are called directly, so that llama_decode is timed, with logits for the last token of every
// sequence, as dsv2 bench times dsv2_step. The public classes above the bindings would add a JavaScript reader of GGUF to
// opening and a sampler to every token.
import fs from "node:fs";
import path from "node:path";
import readline from "node:readline";
import {pathToFileURL} from "node:url";

const settings = JSON.parse(process.argv[2]);
const {getLlama} = await import(pathToFileURL(path.join(settings.home, "node_modules/node-llama-cpp/dist/index.js")));
const {_bindings: bindings} = await getLlama({gpu: false, build: "never", maxThreads: settings.threads, logLevel: "error"});
const seconds = () => Number(process.hrtime.bigint()) * 1e-9;

// The generator of dsv2 bench: random ids, the same in every run.
let random = 0n;
function randomTokens(n) {
    return Uint32Array.from({length: n}, () => {
        random = BigInt.asUintN(64, random * 6364136223846793005n + 1442695040888963407n);
        return Number((random >> 33n) % BigInt(settings.vocabulary));
    });
}

async function openModel() {
    const model = new bindings.AddonModel(settings.model, {addonExports: bindings, gpuLayers: 0, useMmap: true});
    if (!await model.init())
        throw new Error(`cannot open ${settings.model}`);
    return model;
}

// A context for some sequences, each of at most `longest` tokens.
async function openContext(model, flash, sequences, longest) {
    const contextSize = Math.ceil(longest / 256) * 256 * sequences; // a multiple, as node-llama-cpp makes it
    const context = new bindings.AddonContext(model, {
        contextSize, sequences, batchSize: settings.batch, flashAttention: flash, threads: settings.threads,
    });
    if (!await context.init())
        throw new Error(`cannot make a context of ${contextSize} tokens`);
    return context;
}

// Adds n tokens to each sequence, which has `length` already; those of one sequence in batches.
async function feed(context, sequences, length, n) {
    for (let done = 0; done < n; done += settings.batch) {
        const some = Math.min(settings.batch, n - done);
        context.initBatch(some * sequences);
        for (let s = 0; s < sequences; s++)
            context.addToBatch(s, length + done, randomTokens(some), Uint32Array.of(some - 1));
        await context.decodeBatch();
    }
}

function rewind(context, sequences, length) {
    for (let s = 0; s < sequences; s++)
        if (!context.removeTokenCellsFromSequence(s, length, -1))
            throw new Error("cannot rewind");
}

// Repeats a saved sequence up to n tokens: reading 32,768 tokens takes llama.cpp most of an hour, and the latents' values do
// not matter to speed. The file: magic, version, tokens; streams; cells, each with its position and its sequences; layers.
function writeRepeated(from, to, n) {
    const file = fs.readFileSync(from);
    let at = 0;
    const u32 = () => file.readUInt32LE((at += 4) - 4);
    const numbers = (...values) => Buffer.from(Uint32Array.from(values).buffer);
    const [magic, version, tokens] = [u32(), u32(), u32()];
    at += 4 * tokens;
    const [streams, cells] = [u32(), u32()];
    if (streams !== 1 || cells !== tokens || n % cells !== 0)
        throw new Error("cannot repeat the state");
    at += 12 * cells;
    const out = fs.openSync(to, "w");
    fs.writeSync(out, numbers(magic, version, n, ...new Uint32Array(n), streams, n));
    fs.writeSync(out, numbers(...Array.from({length: n}, (_, i) => [i, 1, 0]).flat()));
    const transposed = u32(), layers = u32();
    fs.writeSync(out, numbers(transposed, layers));
    for (let layer = 0; layer < layers; layer++) {
        const rowBytes = Number(file.readBigUInt64LE(at + 4));
        fs.writeSync(out, file.subarray(at, at += 12));
        const rows = file.subarray(at, at += rowBytes * cells);
        for (let i = 0; i < n; i += cells)
            fs.writeSync(out, rows);
    }
    fs.closeSync(out);
    if (at !== file.length)
        throw new Error("the state is not of the kind that is known");
}

const UNIT = 256; // tokens that are really read

async function fill(context, depth) {
    const few = path.join(settings.folder, "llama-few.state"), many = path.join(settings.folder, "llama-many.state");
    await feed(context, 1, 0, UNIT);
    await context.saveSequenceStateToFile(few, 0, new Uint32Array(UNIT));
    writeRepeated(few, many, depth);
    rewind(context, 1, 0);
    await context.loadSequenceStateFromFile(many, 0, depth);
    fs.unlinkSync(few);
    fs.unlinkSync(many);
}

// Seconds to save and to load what one sequence holds, and the bytes of the file.
async function timeState(context, depth) {
    rewind(context, 1, depth);
    const file = path.join(settings.folder, "llama.state");
    const started = seconds();
    const bytes = await context.saveSequenceStateToFile(file, 0, new Uint32Array(depth));
    const saved = seconds();
    rewind(context, 1, 0);
    const rewound = seconds();
    await context.loadSequenceStateFromFile(file, 0, depth);
    const loaded = seconds();
    fs.unlinkSync(file);
    return {bytes, save_seconds: saved - started, load_seconds: loaded - rewound};
}

// Contexts, each filled once; those of one sequence as deep as any row needs.
const contexts = new Map();

async function contextFor(model, flash, sessions) {
    const key = `${flash} ${sessions}`;
    if (!contexts.has(key)) {
        const depth = sessions === 1 ? settings.deepest : 0;
        const context = await openContext(model, flash, sessions, depth + settings.batch);
        await feed(context, sessions, 0, 1); // what is made at the first use
        rewind(context, sessions, 0);
        if (depth > 0)
            await fill(context, depth);
        contexts.set(key, context);
    }
    return contexts.get(key);
}

// Tokens a second of feeding each of the sessions, which have `depth` tokens already, `tokens` more `steps` times.
async function rate(context, {sessions, depth, steps, tokens}) {
    rewind(context, sessions, depth);
    const started = seconds();
    for (let i = 0; i < steps; i++)
        await feed(context, sessions, depth + i * tokens, tokens);
    const rate = steps * tokens * sessions / (seconds() - started);
    return rate;
}

const say = result => console.log(JSON.stringify({...result, peak_bytes: process.resourceUsage().maxRSS * 1024}));

const started = seconds();
const model = await openModel();
const first = await openContext(model, false, 1, settings.batch);
await feed(first, 1, 0, 1);
say({seconds: seconds() - started, system: bindings.systemInfo()});
await feed(first, 1, 1, 64); // maps the weights' pages
await first.dispose();
for await (const line of readline.createInterface({input: process.stdin})) {
    const order = JSON.parse(line);
    const context = await contextFor(model, order.flash, order.sessions);
    if (order.do === "prepare")
        say({});
    else if (order.do === "state")
        say(await timeState(context, order.depth));
    else
        say({rate: await rate(context, order)});
}
process.exit(0);
