// llama.cpp's side of divergence.py: node llama_logits.mjs SETTINGS, a JSON object. Writes the logits after each token as rows
// of float32, as dsv2 logits does. The tokens are cut into windows that are read one by one. The cache keeps float32.
import fs from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";

const F32 = 0; // as ggml numbers it
const settings = JSON.parse(process.argv[2]);
const {getLlama} = await import(pathToFileURL(path.join(settings.home, "node_modules/node-llama-cpp/dist/index.js")));
const {_bindings: bindings} = await getLlama({gpu: false, build: "never", maxThreads: settings.threads, logLevel: "error"});

const model = new bindings.AddonModel(settings.model, {addonExports: bindings, gpuLayers: 0});
if (!await model.init())
    throw new Error(`cannot open ${settings.model}`);
const context = new bindings.AddonContext(model, {
    contextSize: settings.window, sequences: 1, batchSize: settings.batch, flashAttention: false, threads: settings.threads,
    kvCacheKeyType: F32, kvCacheValueType: F32,
});
if (!await context.init())
    throw new Error(`cannot make a context of ${settings.window} tokens`);
const sampler = new bindings.AddonSampler(model); // its token is not used: logits come with it
sampler.applyConfig({temperature: 0});

const output = fs.openSync(settings.output, "w");
for (let start = 0; start < settings.tokens.length; start += settings.window) {
    const tokens = Uint32Array.from(settings.tokens.slice(start, start + settings.window));
    context.disposeSequence(0);
    for (let done = 0; done < tokens.length; done += settings.batch) {
        const some = tokens.slice(done, done + settings.batch);
        context.initBatch(some.length);
        const places = context.addToBatch(0, done, some, Uint32Array.from(some.keys()));
        await context.decodeBatch();
        for (const place of places) {
            const [, , , logits] = await context.sampleToken(place, sampler, false, false, true); // [token, logit, token, ...]
            const row = new Float32Array(logits.length / 2);
            for (let i = 0; i < logits.length; i += 2)
                row[logits[i]] = logits[i + 1];
            fs.writeSync(output, row);
        }
    }
}
fs.closeSync(output);
process.exit(0);
