#!/usr/bin/env bash
# The npm package @rgba-image/lanczos resizes the pixels of a canvas by Lanczos resampling, adapted from pica. In its
# filter the value for a distance of 0 is 0; by definition it is 1, the largest of all. Wherever the middle of a new
# pixel is the middle of an old one, this old pixel, which should count most, is left out, and its neighbours get its
# share. This is every pixel where an image is made three times smaller (96x96, as in STL-10, to the 32x32 of CIFAR-10)
# or by another odd factor, and every third column and row where it is made three times larger. Where the size stays,
# rounding errors of the sine are all that is left: scaled to a sum of 1, they make each pixel from its neighbours. Even
# factors are right, as no middle meets another. Plain areas and even slopes are right, too; edges, lines and dots are
# not. Nothing is said.
# ndarray-lanczos, which is made from this package, is within 1 of the definition. pica itself is, but for a few pixels:
# it does not limit the values to 0 and 255 between rows and columns. The definition is computed here in plain
# JavaScript: sinc(x) sinc(x / a) within a of 0, stretched by the factor where images get smaller, with a sum of 1.
#
# Seen with @rgba-image/lanczos 0.1.1, ndarray-lanczos 0.3.0, pica 10.0.3 and Node.js 20.20; mean (and largest)
# difference from the definition, for random grey pixels:
#   96 to 32, lanczos3: package 19.7 (76), ndarray-lanczos 0.0 (1), pica 0.1 (1)
#   96 to 32, lanczos2: package 17.3 (69), ndarray-lanczos 0.0 (1), pica 0.1 (1)
#   160 to 32, lanczos3: package 7.9 (36), ndarray-lanczos 0.0 (1), pica 0.1 (1)
#   32 to 96, lanczos3: package 49.3 (255), ndarray-lanczos 0.0 (1), pica 0.2 (34)
#   32 to 32, lanczos3: package 99.9 (255), ndarray-lanczos 0.0 (0), pica 0.0 (0)
#   64 to 32, lanczos3: package 0.0 (1), ndarray-lanczos 0.0 (1), pica 0.2 (5)
#   128 to 32, lanczos2: package 0.0 (1), ndarray-lanczos 0.0 (1), pica 0.1 (1)
#   white lines, one of three columns, to a third: package 0, 0, 0, 0, definition 85, 85, 85, 85
#   even slope, to a third: difference 0.0 (0)
# Exit code 0 while it is so, 1 otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund --ignore-scripts \
    @rgba-image/lanczos@0.1.1 ndarray-lanczos@0.3.0 ndarray@1.0.19 pica@10.0.3 >/dev/null
cat > check.cjs <<'JS'
const { lanczos, lanczos2 } = require("@rgba-image/lanczos");
const ndarray = require("ndarray");
const other = require("ndarray-lanczos");
const pica = require("pica");

function picture(size, grey) {
  const data = new Uint8ClampedArray(size * size * 4);
  for (let i = 0; i < size * size; i++) {
    const value = grey(i % size, Math.floor(i / size));
    data.set([value, value, value, 255], 4 * i);
  }
  return { width: size, height: size, data };
}

const reds = (data) => Array.from({ length: data.length / 4 }, (_, i) => data[4 * i]);

function kernel(x, a) {
  if (Math.abs(x) >= a) return 0;
  const sinc = (t) => (t === 0 ? 1 : Math.sin(Math.PI * t) / (Math.PI * t));
  return sinc(x) * sinc(x / a);
}

// Rows of weights, one for each new pixel, by definition.
function weights(from, to, a) {
  const scale = Math.max(1, from / to);
  return Array.from({ length: to }, (_, n) => {
    const middle = ((n + 0.5) * from) / to;
    const row = Array.from({ length: from }, (_, i) => kernel((i + 0.5 - middle) / scale, a));
    const sum = row.reduce((s, v) => s + v, 0);
    return row.map((v) => v / sum);
  });
}

const byte = (v) => Math.min(255, Math.max(0, Math.round(v)));

function definition(source, to, a) {
  const from = source.width;
  const matrix = weights(from, to, a);
  const grey = reds(source.data);
  const rows = [];
  for (let y = 0; y < from; y++) {
    rows.push(matrix.map((w) => byte(w.reduce((s, v, x) => s + v * grey[y * from + x], 0))));
  }
  const result = [];
  for (const w of matrix) {
    for (let x = 0; x < to; x++) result.push(byte(w.reduce((s, v, y) => s + v * rows[y][x], 0)));
  }
  return result;
}

function byPackage(source, to, a) {
  const target = { width: to, height: to, data: new Uint8ClampedArray(to * to * 4) };
  const resize = a === 3 ? lanczos : lanczos2;
  resize(source, target);
  return reds(target.data);
}

function byNdarray(source, to, a) {
  const from = source.width;
  const target = new Uint8Array(to * to * 4);
  const wrap = (data, size) => ndarray(data, [size, size, 4], [4, 4 * size, 1]);
  const resize = a === 3 ? other.lanczos3 : other.lanczos2;
  resize(wrap(new Uint8Array(source.data), from), wrap(target, to));
  return reds(target);
}

async function byPica(source, to, a) {
  const resizer = pica({ features: ["js"] });
  const options = { src: new Uint8Array(source.data), width: source.width, height: source.height };
  return reds(await resizer.resizeBuffer({ ...options, toWidth: to, toHeight: to, filter: `lanczos${a}` }));
}

function difference(values, reference) {
  const parts = values.map((v, i) => Math.abs(v - reference[i]));
  return { mean: parts.reduce((s, v) => s + v, 0) / parts.length, largest: Math.max(...parts) };
}

async function main() {
  let stands = true;
  let state = 1;
  const random = () => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return state >>> 24;
  };
  const sizes = [
    [96, 32, 3],
    [96, 32, 2],
    [160, 32, 3],
    [32, 96, 3],
    [32, 32, 3],
    [64, 32, 3],
    [128, 32, 2],
  ];
  for (const [from, to, a] of sizes) {
    const source = picture(from, random);
    const reference = definition(source, to, a);
    const found = [byPackage(source, to, a), byNdarray(source, to, a), await byPica(source, to, a)];
    const [own, nd, pc] = found.map((values) => difference(values, reference));
    const show = (d) => `${d.mean.toFixed(1)} (${d.largest})`;
    console.log(`${from} to ${to}, lanczos${a}: package ${show(own)}, ndarray-lanczos ${show(nd)}, pica ${show(pc)}`);
    const even = (from / to) % 2 === 0;
    stands &&= nd.largest <= 1 && pc.mean < 0.5 && (even ? own.largest <= 1 : own.mean > 3);
  }
  const lines = picture(96, (x) => (x % 3 === 1 ? 255 : 0));
  const row = (values) => values.slice(16 * 32 + 14, 16 * 32 + 18).join(", ");
  const results = [byPackage(lines, 32, 3), definition(lines, 32, 3)].map(row);
  console.log(`white lines, one of three columns, to a third: package ${results[0]}, definition ${results[1]}`);
  const slope = picture(96, (x) => 2 * x);
  const inner = (values) => values.filter((_, i) => i % 32 > 2 && i % 32 < 29);
  const even = difference(inner(byPackage(slope, 32, 3)), inner(definition(slope, 32, 3)));
  console.log(`even slope, to a third: difference ${even.mean.toFixed(1)} (${even.largest})`);
  stands &&= results[0] === "0, 0, 0, 0" && results[1] !== results[0] && even.largest <= 1;
  process.exit(stands ? 0 : 1);
}

main();
JS
node check.cjs
