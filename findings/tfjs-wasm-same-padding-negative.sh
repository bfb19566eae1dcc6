#!/usr/bin/env bash
# TensorFlow.js computes a convolution with padding "same" wrongly in its WASM backend where the stride is larger than
# the kernel and the last window ends before the edge, so that no padding is needed: conv2d and depthwiseConv2d then
# return other values than the CPU backend, whose values are those of TensorFlow's definition, max(0, (outputs - 1) *
# stride + kernel - inputs). The shapes agree, and nothing is said. A single such axis is enough, as in a 1x3 kernel
# with strides of 2. Right are 1x1 kernels (whatever the stride), pooling, and padding "valid".
#
# Seen with @tensorflow/tfjs-core, -backend-cpu and -backend-wasm 4.22.0 and Node.js 20.20; largest difference from the
# definition, computed here in plain JavaScript:
#   image 8x8, kernel 3x3, strides 2,2 (padding  1, 1): CPU 0.000, 0.000; WASM 0.000, 0.000
#   image 8x8, kernel 1x1, strides 2,2 (padding -1,-1): CPU 0.000, 0.000; WASM 0.000, 0.000
#   image 8x8, kernel 1x3, strides 2,2 (padding -1, 1): CPU 0.000, 0.000; WASM 0.829, 1.675
#   image 6x6, kernel 2x2, strides 3,3 (padding -1,-1): CPU 0.000, 0.000; WASM 1.488, 1.810
#   image 8x8, kernel 3x3, strides 4,4 (padding -1,-1): CPU 0.000, 0.000; WASM 1.067, 4.982
#   image 32x32, kernel 2x2, strides 4,4 (padding -2,-2): CPU 0.000, 0.000; WASM 1.217, 1.203
# (conv2d, depthwiseConv2d; padding by the definition before it is cut at 0, rows and columns).
# Exit code 0 while this is so, 1 if it has changed.
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
const CHANNELS = 3;
const FILTERS = 4;
const padding = (inputs, kernel, stride) => (Math.ceil(inputs / stride) - 1) * stride + kernel - inputs;

function exact(image, filter, [height, width], [kernelHeight, kernelWidth], [strideY, strideX], outputs, depthwise) {
  const top = Math.max(0, padding(height, kernelHeight, strideY)) >> 1;
  const left = Math.max(0, padding(width, kernelWidth, strideX)) >> 1;
  const result = [];
  for (let y = -top; y < height - top; y += strideY)
    for (let x = -left; x < width - left; x += strideX)
      for (let output = 0; output < outputs; output++) {
        let sum = 0;
        for (let i = 0; i < kernelHeight; i++)
          for (let j = 0; j < kernelWidth; j++)
            for (let input = 0; input < CHANNELS; input++) {
              if (y + i < 0 || y + i >= height || x + j < 0 || x + j >= width) continue;
              if (depthwise && input !== output) continue;
              const at = (i * kernelWidth + j) * CHANNELS + input;
              const weight = depthwise ? filter[at] : filter[at * FILTERS + output];
              sum += image[((y + i) * width + x + j) * CHANNELS + input] * weight;
            }
        result.push(sum);
      }
  return result;
}

const difference = (one, other) =>
  one.length === other.length ? Math.max(...one.map((value, n) => Math.abs(value - other[n]))) : Infinity;

(async () => {
  let stands = true;
  for (const [size, kernel, strides, wrong] of [
    [[8, 8], [3, 3], [2, 2], false],
    [[8, 8], [1, 1], [2, 2], false],
    [[8, 8], [1, 3], [2, 2], true],
    [[6, 6], [2, 2], [3, 3], true],
    [[8, 8], [3, 3], [4, 4], true],
    [[32, 32], [2, 2], [4, 4], true],
  ]) {
    const count = kernel[0] * kernel[1] * CHANNELS;
    const image = Float32Array.from({ length: size[0] * size[1] * CHANNELS }, (_, n) => Math.sin(1.3 * n));
    const filter = Float32Array.from({ length: count * FILTERS }, (_, n) => Math.cos(0.7 * n));
    const deep = filter.slice(0, count);
    const texts = [];
    for (const backend of ["cpu", "wasm"]) {
      await tf.setBackend(backend);
      const input = tf.tensor4d(image, [1, ...size, CHANNELS]);
      const plain = tf.conv2d(input, tf.tensor4d(filter, [...kernel, CHANNELS, FILTERS]), strides, "same");
      const depthwise = tf.depthwiseConv2d(input, tf.tensor4d(deep, [...kernel, CHANNELS, 1]), strides, "same");
      const errors = [
        difference(exact(image, filter, size, kernel, strides, FILTERS, false), Array.from(await plain.data())),
        difference(exact(image, deep, size, kernel, strides, CHANNELS, true), Array.from(await depthwise.data())),
      ];
      const expected = backend === "wasm" && wrong;
      stands = stands && errors.every((error) => (expected ? error > 0.1 : error < 1e-3));
      texts.push(`${backend.toUpperCase()} ${errors.map((error) => error.toFixed(3)).join(", ")}`);
    }
    const needed = [0, 1].map((axis) => String(padding(size[axis], kernel[axis], strides[axis])).padStart(2));
    const name = `image ${size.join("x")}, kernel ${kernel.join("x")}, strides ${strides} (padding ${needed})`;
    console.log(`${name}: ${texts.join("; ")}`);
  }
  process.exit(stands ? 0 : 1);
})();
JS
node look.js
