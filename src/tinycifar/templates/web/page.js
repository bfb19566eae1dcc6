// The page: a picture in, the model's answer and what speaks for it out. `model.json` says which model, and whether the
// browser computes ("runtime": "browser") or a server does.

const SIZE = 32;
const SHOWN = 320;
const MOST_BYTES = 50_000_000;
const FORMATS = ["image/png", "image/jpeg", "image/webp"];
const $ = (id) => document.getElementById(id);

// --- what the model sees ---------------------------------------------------------------------------------------------

/** The central square of a picture file on white, upright, as a canvas. */
async function readSquare(file) {
  if (file.size > MOST_BYTES) throw new Error(`${file.name}: larger than ${MOST_BYTES / 1e6} MB`);
  if (!FORMATS.includes(file.type)) throw new Error(`${file.name || "this"} is no PNG, JPEG or WebP picture`);
  let picture;
  try {
    picture = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    throw new Error(`${file.name || "this picture"} cannot be read: it is damaged`);
  }
  const side = Math.min(picture.width, picture.height);
  const canvas = new OffscreenCanvas(side, side);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, side, side);
  context.drawImage(picture, -Math.floor((picture.width - side) / 2), -Math.floor((picture.height - side) / 2));
  picture.close();
  return canvas;
}

/** Weights of the Lanczos filter with antialiasing, in 22-bit fixed point as Pillow has them: per output a start and weights. */
function lanczos(from, to) {
  const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
  const kernel = (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0);
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  const support = 3 * stretch;
  return Array.from({ length: to }, (_, index) => {
    const centre = (index + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(from, Math.trunc(centre + support + 0.5));
    const weights = Array.from({ length: end - start }, (_, i) => kernel((i + start - centre + 0.5) / stretch));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { start, weights: weights.map((weight) => Math.trunc((weight / sum) * 2 ** 22 + (weight < 0 ? -0.5 : 0.5))) };
  });
}

/** A square picture in 32x32 pixels, RGB one after another: the same numbers as Python's side computes. */
function shrink(canvas) {
  const side = canvas.width;
  const { data } = canvas.getContext("2d").getImageData(0, 0, side, side);
  const filters = side === SIZE ? null : lanczos(side, SIZE);
  const pixels = new Uint8ClampedArray(SIZE * SIZE * 3);
  if (!filters) {
    for (let i = 0; i < SIZE * SIZE; i++) for (let c = 0; c < 3; c++) pixels[3 * i + c] = data[4 * i + c];
    return pixels;
  }
  const sumUp = (values, first, step, weights) => {
    let sum = 2 ** 21;
    for (let i = 0; i < weights.length; i++) sum += values[first + i * step] * weights[i];
    return Math.floor(sum / 2 ** 22);
  };
  const rows = new Uint8ClampedArray(side * SIZE * 3);
  for (let y = 0; y < side; y++)
    filters.forEach(({ start, weights }, x) => {
      for (let c = 0; c < 3; c++) rows[(y * SIZE + x) * 3 + c] = sumUp(data, (y * side + start) * 4 + c, 4, weights);
    });
  filters.forEach(({ start, weights }, y) => {
    for (let x = 0; x < SIZE * 3; x++) pixels[y * SIZE * 3 + x] = sumUp(rows, start * SIZE * 3 + x, SIZE * 3, weights);
  });
  return pixels;
}

// --- the model -------------------------------------------------------------------------------------------------------

/** A function from pixels to logits, class activation maps and milliseconds, computed here by onnxruntime. */
async function browserRuntime() {
  await new Promise((resolve, reject) => {
    const script = document.createElement("script");
    Object.assign(script, { src: "ort/ort.js", onload: resolve, onerror: () => reject(new Error("ort/ort.js is missing")) });
    document.head.append(script);
  });
  const ort = globalThis.ort;
  ort.env.logLevel = "error";
  const at = (name) => new URL(`ort/${name}`, document.baseURI).href;
  Object.assign(ort.env.wasm, { numThreads: 1, wasmPaths: { mjs: at("ort-wasm.js"), wasm: at("ort-wasm.wasm") } });
  const session = await ort.InferenceSession.create("model.onnx", { executionProviders: ["wasm"] });
  return async (pixels) => {
    const values = new Float32Array(3 * SIZE * SIZE);
    for (let i = 0; i < SIZE * SIZE; i++)
      for (let c = 0; c < 3; c++) values[c * SIZE * SIZE + i] = Math.fround(pixels[3 * i + c] / 255);
    const start = performance.now();
    const found = await session.run({ images: new ort.Tensor("float32", values, [1, 3, SIZE, SIZE]) });
    const milliseconds = performance.now() - start;
    return { logits: found.logits.data, activation: found.class_activation.data, milliseconds };
  };
}

/** The same, computed by the server that the page comes from. */
async function serverRuntime() {
  return async (_, file) => {
    const start = performance.now();
    const answer = await fetch("predict?activation=1", { method: "POST", body: file });
    const found = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(found.error ?? `The server answered with status ${answer.status}`);
    return { ...found, milliseconds: performance.now() - start };
  };
}

function softmax(logits, temperature) {
  const most = Math.max(...logits);
  const powers = Array.from(logits, (value) => Math.exp((value - most) / temperature));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

// --- what is shown ---------------------------------------------------------------------------------------------------

function drawSquare(square) {
  const context = $("picture").getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(square, 0, 0, SHOWN, SHOWN);
}

function drawSeen(pixels) {
  const context = $("seen").getContext("2d");
  const image = context.createImageData(SIZE, SIZE);
  for (let i = 0; i < SIZE * SIZE; i++) image.data.set([pixels[3 * i], pixels[3 * i + 1], pixels[3 * i + 2], 255], 4 * i);
  context.putImageData(image, 0, 0);
}

/** Darken the picture where nothing speaks for class `index`; false if nothing does anywhere. */
function drawHeat(activation, index, classes) {
  const positions = activation.length / classes;
  const side = Math.sqrt(positions);
  const map = Array.from(activation.slice(index * positions, (index + 1) * positions), (value) => Math.max(value, 0));
  const most = Math.max(...map);
  const shade = new OffscreenCanvas(side, side);
  const image = new ImageData(side, side);
  map.forEach((value, i) => image.data.set([0, 0, 0, 215 * (1 - (most > 0 ? value / most : 0))], 4 * i));
  shade.getContext("2d").putImageData(image, 0, 0);
  const context = $("heat").getContext("2d");
  context.drawImage($("picture"), 0, 0);
  context.imageSmoothingQuality = "high";
  context.drawImage(shade, 0, 0, SHOWN, SHOWN);
  return most > 0;
}

function show(about, found) {
  const probabilities = softmax(found.logits, about.temperature ?? 1);
  const order = probabilities.map((_, index) => index).sort((a, b) => probabilities[b] - probabilities[a]);
  const percent = (index) => `${(100 * probabilities[index]).toFixed(1)}%`;
  const buttons = order.map((index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.class = about.classes[index];
    button.dataset.probability = probabilities[index];
    button.style.setProperty("--part", percent(index));
    for (const text of [about.classes[index], percent(index)]) {
      const span = document.createElement("span");
      span.textContent = text;
      button.append(span);
    }
    button.addEventListener("click", () => explain(index));
    return button;
  });
  const explain = (index) => {
    const speaks = drawHeat(found.activation, index, about.classes.length);
    $("heat-caption").textContent = speaks
      ? `What speaks for ${about.classes[index]}: the brighter, the more`
      : `Nothing speaks for ${about.classes[index]}`;
    order.forEach((each, rank) => buttons[rank].setAttribute("aria-pressed", String(each === index)));
  };
  $("bars").replaceChildren(
    ...buttons.map((button) => {
      const item = document.createElement("li");
      item.append(button);
      return item;
    }),
  );
  $("top").textContent = `${about.classes[order[0]]}, ${percent(order[0])}`;
  $("time").textContent = `${found.milliseconds.toFixed(1)} milliseconds ${about.runtime === "server" ? "with the way to the server" : "in this browser, on one thread"}`;
  explain(order[0]);
  $("result").hidden = false;
}

function tell(problem) {
  $("problem").textContent = problem ? `${problem.message ?? problem}.` : "";
  $("problem").hidden = !problem;
}

async function main() {
  if (location.protocol === "file:")
    throw new Error("Browsers let no page read files beside it: serve this folder, for example with python -m http.server");
  const answer = await fetch("model.json");
  if (!answer.ok) throw new Error("model.json is missing");
  const about = await answer.json();
  const classify = await (about.runtime === "server" ? serverRuntime : browserRuntime)();
  $("about").textContent = about.text;

  let answers = 0;
  let latest = 0; // of pictures asked for one after another only the last one's answer is shown
  const take = async (chosen) => {
    const turn = ++latest;
    try {
      const file = await chosen;
      const square = await readSquare(file);
      const pixels = shrink(square);
      const found = await classify(pixels, file);
      if (turn !== latest) return;
      tell(null);
      drawSquare(square);
      drawSeen(pixels);
      show(about, found);
      document.documentElement.dataset.answers = ++answers;
    } catch (problem) {
      if (turn !== latest) return;
      tell(problem);
      $("result").hidden = true;
    }
  };
  const fetchSample = async (sample) => {
    const answer = await fetch(sample.file);
    if (!answer.ok) throw new Error(`${sample.file} is missing`);
    return new File([await answer.blob()], sample.label, { type: "image/png" });
  };

  for (const sample of about.samples) {
    const button = document.createElement("button");
    const image = document.createElement("img");
    button.type = "button";
    Object.assign(image, { src: sample.file, alt: `Sample: ${sample.label}`, title: sample.label });
    button.append(image);
    button.addEventListener("click", () => take(fetchSample(sample)));
    $("samples").append(button);
  }
  $("choose").disabled = false;
  $("choose").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    if ($("file").files.length) take($("file").files[0]);
    $("file").value = ""; // so that the same file can be chosen again
  });
  const pictureOf = (items) => Array.from(items?.files ?? []).find((file) => file.type.startsWith("image/")) ?? items?.files?.[0];
  document.addEventListener("paste", (event) => {
    const file = pictureOf(event.clipboardData);
    if (file) take(file);
    else tell("There is no picture in the clipboard");
  });
  let depth = 0;
  document.addEventListener("dragenter", () => $("drop").classList.toggle("over", ++depth > 0));
  document.addEventListener("dragleave", () => $("drop").classList.toggle("over", --depth > 0));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    $("drop").classList.remove("over");
    const file = pictureOf(event.dataTransfer);
    if (file) take(file);
    else tell("That was no picture file");
  });
  document.documentElement.dataset.ready = "yes";
}

main().catch((problem) => {
  $("about").textContent = "";
  tell(problem);
});
