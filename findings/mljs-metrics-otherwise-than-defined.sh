#!/usr/bin/env bash
# Three npm packages of the mljs project that measure classifiers give other numbers than their names and links say:
#   - ml-performance divides what is right at a threshold by the number of different scores, where the number of images
#     is meant. With as many scores as images this is the accuracy; where images share a score, as the outputs of an
#     8-bit net do, with 256 values at most, it is larger, up to 73 instead of 0.73. The error rate is worse: only the
#     false positives are divided, by the same number, and the false negatives are added as a count;
#   - ml-confusion-matrix computes the false omission rate as FN / (FN + TP), which is the false negative rate of the
#     same package. By definition it is FN / (FN + TN): how many of the images not taken for the class are of it;
#   - ml-roc-multiclass turns areas under 0.5 over: a net that ranks images the wrong way is as good as the same one the
#     right way, and guessing on few images is 0.6 on average instead of 0.5.
# No message tells of it. Area under the curve and true positive rate of ml-performance are right, and so are false
# negative rate and negative predictive value of ml-confusion-matrix and areas above 0.5 in ml-roc-multiclass. "Counted"
# is counted image by image, or pair by pair for the area.
#
# Seen with ml-performance 0.2.0, ml-confusion-matrix 2.0.0, ml-roc-multiclass 0.2.0 and Node.js 20.20:
#   1000 images, 516 of them cats; at the threshold of the fewest errors:
#     1000 different scores: accuracy 0.740, error rate 178.082; counted 0.740 and 0.260; AUROC 0.821, counted 0.821
#      252 different scores: accuracy 2.937, error rate 178.325; counted 0.740 and 0.260; AUROC 0.821, counted 0.821
#      100 different scores: accuracy 7.400, error rate 178.820; counted 0.740 and 0.260; AUROC 0.821, counted 0.821
#       10 different scores: accuracy 73.400, error rate 185.000; counted 0.734 and 0.266; AUROC 0.815, counted 0.815
#   of the images that are not taken for cats, cats (false omission rate):
#     cats from 0.25 on: 0.062, counted 0.139, 1 - negative predictive value 0.139, false negative rate 0.062
#     cats from 0.9 on: 0.800, counted 0.463, 1 - negative predictive value 0.463, false negative rate 0.800
#   area under the curve:
#     net      0.821, counted 0.821
#     1 - net  0.821, counted 0.179
#     random scores of 20 images, mean of 500 0.601, counted 0.503
# Exit code 0 while it is so, 1 otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund --ignore-scripts \
    ml-performance@0.2.0 ml-confusion-matrix@2.0.0 ml-roc-multiclass@0.2.0 >/dev/null
cat > check.cjs <<'JS'
const Performance = require("ml-performance");
const { ConfusionMatrix } = require("ml-confusion-matrix");
const { getRocCurve, getAuc } = require("ml-roc-multiclass");

const IMAGES = 1000;
let state = 1;
const random = () => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return state / 2 ** 32;
};
const sum = (values) => values.reduce((s, v) => s + v, 0);
const close = (a, b) => Math.abs(a - b) < 1e-9;
let stands = true;

// The probability of "cat" that a net gives to each image, and whether it is one: the net is calibrated.
const scores = Array.from({ length: IMAGES }, random);
const cats = scores.map((p) => (random() < p ? 1 : 0));
const positives = sum(cats);

// The error rate by definition, for "cat" from `limit` on.
const wrong = (values, limit) => sum(values.map((v, i) => (v >= limit ? 1 : 0) !== cats[i])) / IMAGES;

// The area by definition: the share of pairs of a cat and another image that are in order; ties count half.
function area(values, inside) {
  let ordered = 0;
  for (let i = 0; i < values.length; i++) {
    for (let j = 0; inside[i] && j < values.length; j++) {
      if (!inside[j]) ordered += values[i] > values[j] ? 1 : values[i] === values[j] ? 0.5 : 0;
    }
  }
  return ordered / (sum(inside) * (values.length - sum(inside)));
}

console.log(`${IMAGES} images, ${positives} of them cats; at the threshold of the fewest errors:`);
for (const levels of [0, 256, 100, 10]) {
  const values = levels ? scores.map((p) => Math.floor(p * levels) / levels) : scores;
  const distinct = new Set(values).size;
  const found = new Performance([values], [cats], { all: true, max: true });
  const measure = (name) => found.getMeasure(name);
  const limits = measure("threshold").slice(1);
  const errors = limits.map((limit) => wrong(values, limit));
  const best = errors.indexOf(Math.min(...errors));
  const [accuracy, error] = ["acc", "err"].map((name) => measure(name)[best + 1]);
  console.log(
    `  ${String(distinct).padStart(4)} different scores: accuracy ${accuracy.toFixed(3)}, error rate ` +
      `${error.toFixed(3)}; counted ${(1 - errors[best]).toFixed(3)} and ${errors[best].toFixed(3)}; ` +
      `AUROC ${found.getAURC().toFixed(3)}, counted ${area(values, cats).toFixed(3)}`,
  );
  // The reasons: accuracy is divided by the number of different scores, the error rate only in its second part.
  limits.forEach((limit, i) => {
    stands &&= close(measure("acc")[i + 1], ((1 - errors[i]) * IMAGES) / distinct);
    stands &&= close(measure("err")[i + 1], found.fn[i + 1] + found.fp[i + 1] / distinct);
    stands &&= close(measure("tpr")[i + 1], sum(cats.filter((_, k) => values[k] >= limit)) / positives);
  });
  stands &&= close(found.getAURC(), area(values, cats));
  stands &&= distinct === IMAGES ? close(accuracy, 1 - errors[best]) : accuracy > 1;
  stands &&= error > 1;
}

const truth = cats.map((cat) => (cat ? "cat" : "dog"));
console.log("of the images that are not taken for cats, cats (false omission rate):");
for (const limit of [0.25, 0.9]) {
  const answers = scores.map((p) => (p >= limit ? "cat" : "dog"));
  const matrix = ConfusionMatrix.fromLabels(truth, answers);
  const others = truth.filter((_, i) => answers[i] === "dog");
  const right = others.filter((label) => label === "cat").length / others.length;
  const rates = [matrix.getFalseOmissionRate("cat"), matrix.getFalseNegativeRate("cat"), right];
  const [found, missed, counted] = rates.map((rate) => rate.toFixed(3));
  const complement = 1 - matrix.getNegativePredictiveValue("cat");
  console.log(
    `  cats from ${limit} on: ${found}, counted ${counted}, ` +
      `1 - negative predictive value ${complement.toFixed(3)}, false negative rate ${missed}`,
  );
  stands &&= close(rates[0], rates[1]) && Math.abs(rates[0] - right) > 0.05 && close(complement, right);
}

console.log("area under the curve:");
const order = truth.indexOf("dog") < truth.indexOf("cat") ? cats : cats.map((cat) => 1 - cat);
for (const [name, values] of [
  ["net", scores],
  ["1 - net", scores.map((p) => 1 - p)],
]) {
  const [found, right] = [getAuc(getRocCurve(truth, values)), area(values, order)];
  console.log(`  ${name.padEnd(8)} ${found.toFixed(3)}, counted ${right.toFixed(3)}`);
  stands &&= close(found, Math.max(right, 1 - right));
}
let [total, counted] = [0, 0];
for (let trial = 0; trial < 500; trial++) {
  const labels = Array.from({ length: 20 }, (_, i) => (i < 10 ? "dog" : "cat"));
  const values = labels.map(random);
  total += getAuc(getRocCurve(labels, values)) / 500;
  counted += area(values, labels.map((label) => (label === "cat" ? 1 : 0))) / 500;
}
console.log(`  random scores of 20 images, mean of 500 ${total.toFixed(3)}, counted ${counted.toFixed(3)}`);
stands &&= total > 0.55 && Math.abs(counted - 0.5) < 0.02;
process.exit(stands ? 0 : 1);
JS
node check.cjs
