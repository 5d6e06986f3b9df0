// Run a model in onnxruntime-node or onnxruntime-web, and print a digest of each output and the classes of the first.
//   node portable_run.mjs PACKAGES onnxruntime-node|onnxruntime-web MODEL INPUT.f32 SHAPE BATCH
// PACKAGES holds node_modules. SHAPE is that of one sample, such as 3,32,32; the samples lie in INPUT.f32 as float32.
import { createHash } from 'node:crypto';
import { openSync, readFileSync, readSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { resolve } from 'node:path';

const [packages, name, model, data, shapeText, batchText] = process.argv.slice(2);
const ort = createRequire(resolve(packages, 'any.js'))(name);
const shape = shapeText.split(',').map(Number);
const size = shape.reduce((a, b) => a * b, 1);
const batch = Number(batchText);
const web = name === 'onnxruntime-web';
if (web) ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(web ? new Uint8Array(readFileSync(model)) : model, {
  executionProviders: [web ? 'wasm' : 'cpu'],
  intraOpNumThreads: 1,
});
const digests = session.outputNames.map(() => createHash('sha256'));
const classes = [];
const file = openSync(data);
const count = statSync(data).size / (4 * size);
let milliseconds = 0;
for (let start = 0; start < count; start += batch) {
  const some = Math.min(batch, count - start);
  const x = new Float32Array(some * size);
  readSync(file, new Uint8Array(x.buffer), 0, x.byteLength, 4 * start * size);
  const begun = performance.now();
  const found = await session.run({ [session.inputNames[0]]: new ort.Tensor('float32', x, [some, ...shape]) });
  milliseconds += performance.now() - begun;
  session.outputNames.forEach((output, i) => {
    const { data: values } = found[output];
    digests[i].update(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
  });
  const { data: logits } = found[session.outputNames[0]];
  const width = logits.length / some;
  for (let row = 0; row < some; row++) {
    let best = 0;
    for (let k = 1; k < width; k++) if (logits[row * width + k] > logits[row * width + best]) best = k;
    classes.push(best);
  }
}
const outputs = Object.fromEntries(session.outputNames.map((output, i) => [output, digests[i].digest('hex')]));
const version = (ort.env.versions ?? {})[web ? 'web' : 'node'] ?? '';
console.log(JSON.stringify({ outputs, classes, version, milliseconds }));
process.exit(0);
