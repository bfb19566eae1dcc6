#!/usr/bin/env bash
# tf.clipByValue of TensorFlow.js takes int32 tensors, such as those that tf.browser.fromPixels gives. Its WASM backend
# compares their bits as if they were float32, where the integers of pixels are next to 0. An upper limit does nothing
# then: a 300 stays. With a positive lower limit every pixel is replaced, by the bits of that limit as a float (for 10
# it is 1092616192). The result is still called int32, and there is no message. The CPU backend clips integers, and both
# clip floats.
#
# Seen with @tensorflow/tfjs-core, -backend-cpu and -backend-wasm 4.22.0 and Node.js 20.20:
#   0 to 255, float32, cpu: 0, 1, 100, 255, 255 (float32)
#   0 to 255, float32, wasm: 0, 1, 100, 255, 255 (float32)
#   0 to 255, int32, cpu: 0, 1, 100, 255, 255 (int32)
#   0 to 255, int32, wasm: 0, 1, 100, 255, 300 (int32)
#   10 to 200, float32, cpu: 10, 10, 100, 200, 200 (float32)
#   10 to 200, float32, wasm: 10, 10, 100, 200, 200 (float32)
#   10 to 200, int32, cpu: 10, 10, 100, 200, 200 (int32)
#   10 to 200, int32, wasm: 1092616192, 1092616192, 1092616192, 1092616192, 1092616192 (int32)
# Exit code 0 while the WASM backend differs for int32 alone, 1 if it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" \
    "@tensorflow/tfjs-core@4.22.0" "@tensorflow/tfjs-backend-cpu@4.22.0" "@tensorflow/tfjs-backend-wasm@4.22.0"
cat > look.js <<'JS'
const path = require("path");
const tf = require("@tensorflow/tfjs-core");
require("@tensorflow/tfjs-backend-cpu");
const wasm = require("@tensorflow/tfjs-backend-wasm");
wasm.setWasmPaths(path.dirname(require.resolve("@tensorflow/tfjs-backend-wasm")) + path.sep);
tf.env().set("IS_TEST", true);
const pixels = [0, 1, 100, 255, 300];

(async () => {
  let stands = true;
  for (const [low, high] of [[0, 255], [10, 200]]) {
    const exact = pixels.map((value) => Math.min(high, Math.max(low, value)));
    for (const type of ["float32", "int32"]) {
      for (const backend of ["cpu", "wasm"]) {
        await tf.setBackend(backend);
        const result = tf.clipByValue(tf.tensor1d(pixels, type), low, high);
        const values = Array.from(await result.data());
        console.log(`${low} to ${high}, ${type}, ${backend}: ${values.join(", ")} (${result.dtype})`);
        const right = values.join() === exact.join();
        stands = stands && result.dtype === type && right === !(backend === "wasm" && type === "int32");
      }
    }
  }
  process.exit(stands ? 0 : 1);
})();
JS
node look.js
