#!/usr/bin/env bash
# The README of the npm package `cifar10` says that apart from its order "the data is the same" as in the original
# files, and that it is split into 50,000 training and 10,000 test images. But its converter keeps 3,071 of the 3,072
# values of an image, and its reader takes 3,072, so that without a message
#   - an image read alone ends with the first red value of the image behind it, in place of its own last blue one;
#   - with `range` image n begins n values late: 32 images on, the picture is a row higher, and the next channel enters
#     at the bottom;
#   - both splits are drawn at random from the training and test files together, anew in every process: five sixths of
#     the official test images are trained on, and a score cannot be compared with any other on CIFAR-10;
#   - `training.get(0)`, in the README "the first image in the training split", and `test.get(0)` ignore the splits and
#     give the same image, the first of the file.
# The six files are made here, complete and valid (10,000 records of a label and 3,072 values each): the first value of
# an image is the number of its file, 0 to 4 and 5 for the test file; the others are all equal, 10 plus its place among
# the images of its class, modulo 200. The converter shows its progress by functions that only a terminal has, so they
# are replaced.
#
# Seen with cifar10 1.0.2 and Node.js 20.20:
#   category file: 18426000 bytes for 6000 images, 3071 each
#   image 0: 3072 values, the last 0, should be 10
#   range(0, 100): image 7 begins with 17,17,17, should begin with 0,17,17
#   test split of one class: 171 of 1000 images are from the test file
#   training.get(0) and test.get(0): the same image
# Exit code 0 while all of this stands, 1 if some of it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" "cifar10@1.0.2"
cat > make.js <<'JS'
const fs = require("fs");
const names = [1, 2, 3, 4, 5].map((n) => `data_batch_${n}`).concat("test_batch");
names.forEach((name, file) => {
  const content = Buffer.alloc(10000 * 3073);
  for (let n = 0; n < 10000; n++) {
    content.fill(10 + (Math.floor(n / 10) % 200), 3073 * n, 3073 * (n + 1));
    content[3073 * n] = n % 10;
    content[3073 * n + 1] = file;
  }
  fs.writeFileSync(`${name}.bin`, content);
});
JS
cat > convert.js <<'JS'
Object.assign(process.stdout, { clearLine() {}, cursorTo() {}, write: () => true });
console.log = () => {};
require("cifar10/converter.js");
JS
cat > look.js <<'JS'
const fs = require("fs");
(async () => {
  const data = require("cifar10")({ dataPath: "data" });
  const bytes = (image) => image.input.map((value) => Math.round(255 * value));
  const size = fs.statSync("data/cat.bin").size;
  console.log(`category file: ${size} bytes for 6000 images, ${size / 6000} each`);
  const first = bytes(await data.cat.get(0));
  const value = first[1];
  console.log(`image 0: ${first.length} values, the last ${first[3071]}, should be ${value}`);
  const seventh = bytes((await data.cat.range(0, 100))[7]);
  const start = seventh.slice(0, 3).join();
  console.log(`range(0, 100): image 7 begins with ${start}, should begin with 0,17,17`);
  const test = await data.cat.test.get([...Array(1000).keys()]);
  const official = test.filter((image) => bytes(image)[0] === 5).length;
  console.log(`test split of one class: ${official} of ${test.length} images are from the test file`);
  const one = bytes(await data.cat.training.get(0)).join();
  const same = one === bytes(await data.cat.test.get(0)).join();
  console.log(`training.get(0) and test.get(0): ${same ? "the same image" : "different images"}`);
  const stands = size === 6000 * 3071 && first[3071] !== value && start === "17,17,17";
  process.exit(stands && official < 500 && same ? 0 : 1);
})();
JS
node make.js
node convert.js
node look.js
