#!/usr/bin/env bash
# `Image.resize` of image-js (the npm package for images in browsers and Node.js) moves the image by half a pixel of the
# result to the right and down, whatever the size. Resizing asks for the place (n + 1/2) / factor - 1/2 of the old image
# for the new pixel n, so that both cover the same area; here it is n / factor - 1/2: the matrix that is handed to
# `transform`, which counts from the middle of the first pixel, moves by factor / 2 instead of (factor - 1) / 2. A
# 96x96 image made 32x32 is read one and a half pixels too far to the left and above; its first row and column alone
# make those of the result, and the last ones are lost. Even with a factor of 1, "bilinear", the default, and "bicubic"
# do not return the image, but values between its pixels, which blur it. A net that was trained on images made by
# OpenCV's INTER_LINEAR sees other ones in the browser.
# `transform` with the matrix by the definition, the same interpolation and the same border gives what it should. The
# package's own test compares an enlargement by 10 with OpenCV, where half a new pixel is a twentieth of an old one.
# The definition (OpenCV's INTER_LINEAR, without an antialiasing that neither has) is computed in plain JavaScript.
#
# Seen with image-js 1.7.0 and Node.js 20.20; mean difference from the definition for random grey pixels, and the shift
# in old pixels, from an image of even slope:
#   32 to 32, bilinear: resize 53.8, transform 0.0, shift -0.50
#   32 to 32, nearest: resize 0.0, transform 0.0, shift 0.00
#   64 to 32, bilinear: resize 36.8, transform 0.1, shift -1.00
#   96 to 32, bilinear: resize 70.5, transform 0.0, shift -1.50
#   40 to 32, bilinear: resize 46.7, transform 0.0, shift -0.63
#   32 to 64, bilinear: resize 24.1, transform 0.0, shift -0.25
#   a row of 8 pixels: 0, 20, 40, 60, 80, 100, 120, 140
#     resized to 8 pixels, nearest: 0, 20, 40, 60, 80, 100, 120, 140
#     resized to 8 pixels, bilinear: 0, 10, 30, 50, 70, 90, 110, 130
#     resized to 8 pixels, bicubic: 0, 9, 30, 50, 70, 90, 110, 131
# Exit code 0 while it is so, 1 otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund --ignore-scripts --omit=optional image-js@1.7.0 >/dev/null
cat > check.mjs <<'JS'
import { Image } from "image-js";

function picture(size, grey) {
  const data = Uint8Array.from({ length: size * size }, (_, i) => grey(i % size, Math.floor(i / size)));
  return new Image(size, size, { data, colorModel: "GREY" });
}

const values = (image) => Array.from({ length: image.width * image.height }, (_, i) => image.getValueByIndex(i, 0));

// For each new pixel the two old ones that it is made of, and how much the second counts.
function places(from, to, type) {
  return Array.from({ length: to }, (_, n) => {
    const at = ((n + 0.5) * from) / to - 0.5;
    const first = Math.floor(type === "nearest" ? at + 0.5 : at);
    const clamp = (i) => Math.min(from - 1, Math.max(0, i));
    return [clamp(first), clamp(first + 1), type === "nearest" ? 0 : at - first];
  });
}

function definition(image, to, type) {
  const at = places(image.width, to, type);
  const mix = (a, b, part) => (1 - part) * a + part * b;
  const result = [];
  for (const [top, bottom, down] of at) {
    for (const [left, right, along] of at) {
      const upper = mix(image.getValue(left, top, 0), image.getValue(right, top, 0), along);
      const lower = mix(image.getValue(left, bottom, 0), image.getValue(right, bottom, 0), along);
      result.push(Math.round(mix(upper, lower, down)));
    }
  }
  return result;
}

function byTransform(image, to, type) {
  const factor = to / image.width;
  const row = (factor - 1) / 2;
  const matrix = [
    [factor, 0, row],
    [0, factor, row],
  ];
  return image.transform(matrix, { width: to, height: to, borderType: "replicate", interpolationType: type });
}

const mean = (list) => list.reduce((sum, v) => sum + v, 0) / list.length;
const difference = (a, b) => mean(a.map((v, i) => Math.abs(v - b[i])));

let state = 1;
function random() {
  state = (Math.imul(state, 1103515245) + 12345) >>> 0;
  return state >>> 24;
}

let stands = true;
const cases = [
  [32, 32, "bilinear"],
  [32, 32, "nearest"],
  [64, 32, "bilinear"],
  [96, 32, "bilinear"],
  [40, 32, "bilinear"],
  [32, 64, "bilinear"],
];
for (const [from, to, interpolationType] of cases) {
  const image = picture(from, random);
  const expected = definition(image, to, interpolationType);
  const resized = difference(values(image.resize({ width: to, height: to, interpolationType })), expected);
  const transformed = difference(values(byTransform(image, to, interpolationType)), expected);
  const step = 2 * Math.floor(127 / (from - 1));
  const slope = picture(from, (x) => step * x);
  const moved = values(slope.resize({ width: to, height: to, interpolationType }));
  const still = definition(slope, to, interpolationType);
  const inner = moved.map((v, i) => (v - still[i]) / step).filter((_, i) => i % to > 3 && i % to < to - 3);
  const shift = mean(inner);
  console.log(
    `${from} to ${to}, ${interpolationType}: resize ${resized.toFixed(1)}, transform ${transformed.toFixed(1)}, ` +
      `shift ${shift.toFixed(2)}`,
  );
  stands &&= transformed < 0.2;
  const right = interpolationType === "nearest";
  stands &&= right ? resized === 0 && shift === 0 : resized > 20 && Math.abs(shift + (0.5 * from) / to) < 0.05;
}
const slope = picture(8, (x) => 20 * x);
const row = (image) => values(image).slice(24, 32).join(", ");
console.log(`a row of 8 pixels: ${row(slope)}`);
for (const interpolationType of ["nearest", "bilinear", "bicubic"]) {
  const same = row(slope.resize({ width: 8, height: 8, interpolationType }));
  console.log(`  resized to 8 pixels, ${interpolationType}: ${same}`);
  stands &&= (same === row(slope)) === (interpolationType === "nearest");
}
process.exit(stands ? 0 : 1);
JS
node check.mjs
