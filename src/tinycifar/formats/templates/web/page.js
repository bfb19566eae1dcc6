// The page: a picture in, the model's answer and what speaks for it out. `model.json` says which model, and whether the
// browser computes ("runtime": "browser") or a server does.

const SHOWN = 320;
const PADDING = 128; // grey around a picture that is padded
const SHOWN_AS = { crop: "The picture’s square", pad: "The picture, padded", squash: "The picture, squashed" };
const MOST_CLASSES = 10; // that are shown of a picture
const MOST_BYTES = 50_000_000;
const SENT_WHOLE_BYTES = 1_000_000; // of larger files a server is sent what the model sees
const FAINT = 32; // levels: what is drawn on transparent ground and differs less from white is shown on black
const FORMATS = ["image/png", "image/jpeg", "image/webp"];
const $ = (id) => document.getElementById(id);

// --- what the model sees ---------------------------------------------------------------------------------------------

/**
 * A picture file, upright, as a canvas: on white, or on black if it would vanish there; its central square if `fit` is
 * "crop", else all of it.
 */
async function readPicture(file, fit) {
  if (file.size > MOST_BYTES) throw new Error(`${file.name}: larger than ${MOST_BYTES / 1e6} MB`);
  if (!FORMATS.includes(file.type)) throw new Error(`${file.name || "this"} is no PNG, JPEG or WebP picture`);
  let picture;
  try {
    const deep = await readDeep(file);
    picture = await createImageBitmap(deep ? shallow(deep) : file, { colorSpaceConversion: "none" });
  } catch {
    throw new Error(`${file.name || "this picture"} cannot be read: it is damaged`);
  }
  const side = Math.min(picture.width, picture.height);
  const [width, height] = fit === "crop" ? [side, side] : [picture.width, picture.height];
  const on = (ground) => {
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = ground;
    context.fillRect(0, 0, width, height);
    context.drawImage(picture, -Math.floor((picture.width - width) / 2), -Math.floor((picture.height - height) / 2));
    return canvas;
  };
  let shown = on("#fff");
  if (extent(shown).spread < FAINT && extent(on("#fff0")).transparent) {
    const black = on("#000");
    if (extent(black).spread >= FAINT) shown = black;
  }
  picture.close();
  return shown;
}

/** Weights of the Lanczos filter with antialiasing, in 22-bit fixed point as Pillow has them: per output a start and weights. */
function lanczos(from, to) {
  const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
  const kernel = (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0);
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  const squeeze = 1 / stretch; // multiplied with, as Pillow does, so that roundings are the same
  const support = 3 * stretch;
  return Array.from({ length: to }, (_, index) => {
    const centre = (index + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(from, Math.trunc(centre + support + 0.5));
    const weights = Array.from({ length: end - start }, (_, i) => kernel((i + start - centre + 0.5) * squeeze));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { start, weights: weights.map((weight) => Math.trunc((weight / sum) * 2 ** 22 + (weight < 0 ? -0.5 : 0.5))) };
  });
}

/** Red, green and blue one after another, from `width` x `height` to `newWidth` x `newHeight`, as Pillow resizes. */
function resize(values, width, height, newWidth, newHeight) {
  const sumUp = (from, first, step, weights) => {
    let sum = 2 ** 21;
    for (let i = 0; i < weights.length; i++) sum += from[first + i * step] * weights[i];
    return Math.floor(sum / 2 ** 22);
  };
  if (width !== newWidth) {
    const rows = new Uint8ClampedArray(3 * newWidth * height);
    const filters = lanczos(width, newWidth);
    for (let y = 0; y < height; y++)
      filters.forEach(({ start, weights }, x) => {
        for (let c = 0; c < 3; c++) rows[(y * newWidth + x) * 3 + c] = sumUp(values, (y * width + start) * 3 + c, 3, weights);
      });
    values = rows;
  }
  if (height === newHeight) return values;
  const line = 3 * newWidth;
  const pixels = new Uint8ClampedArray(line * newHeight);
  lanczos(height, newHeight).forEach(({ start, weights }, y) => {
    for (let x = 0; x < line; x++) pixels[y * line + x] = sumUp(values, start * line + x, line, weights);
  });
  return pixels;
}

/** Where a picture of that width and height lies in a square of `size`: left, top, width, height. */
function place(fit, size, width, height) {
  const longer = Math.max(width, height);
  const scaled = (side) => (fit === "pad" ? Math.max(1, Math.floor((2 * side * size + longer) / (2 * longer))) : size);
  const [newWidth, newHeight] = [scaled(width), scaled(height)];
  return [Math.floor((size - newWidth) / 2), Math.floor((size - newHeight) / 2), newWidth, newHeight];
}

/** What the model sees of a picture, RGB one after another: the same numbers as Python's side computes. */
function seenBy(about, canvas) {
  const { image_size: size, fit, channels } = about;
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  const colours = new Uint8ClampedArray(3 * width * height);
  for (let i = 0; i < width * height; i++) for (let c = 0; c < 3; c++) colours[3 * i + c] = data[4 * i + c];
  const [left, top, newWidth, newHeight] = place(fit, size, width, height);
  const resized = resize(colours, width, height, newWidth, newHeight);
  const pixels = new Uint8ClampedArray(3 * size * size).fill(PADDING);
  for (let y = 0; y < newHeight; y++)
    pixels.set(resized.subarray(3 * y * newWidth, 3 * (y + 1) * newWidth), 3 * ((top + y) * size + left));
  if (channels === 1)
    for (let i = 0; i < pixels.length; i += 3)
      pixels.fill((19595 * pixels[i] + 38470 * pixels[i + 1] + 7471 * pixels[i + 2] + 32768) >> 16, i, i + 3);
  return pixels;
}

// --- the model -------------------------------------------------------------------------------------------------------

/** A function from pixels to the most probable classes, each with what speaks for it, and milliseconds; computed here. */
async function browserRuntime(about) {
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
    const { image_size: size, channels } = about;
    const values = new Float32Array(channels * size * size);
    for (let i = 0; i < size * size; i++)
      for (let c = 0; c < channels; c++) values[c * size * size + i] = Math.fround(pixels[3 * i + c] / 255);
    const start = performance.now();
    const outputs = await session.run({ images: new ort.Tensor("float32", values, [1, channels, size, size]) });
    const milliseconds = performance.now() - start;
    const logits = Array.from(outputs.logits.data);
    const probabilities = softmax(logits, about.temperature ?? 1);
    const score = Math.max(...logits) - logits.reduce((sum, value) => sum + value, 0) / logits.length;
    const limit = about.kept.find(({ keep }) => String(keep) === $("keep").value)?.threshold;
    const order = probabilities.map((_, index) => index).sort((a, b) => probabilities[b] - probabilities[a]);
    const maps = outputs.class_activation.data;
    const positions = maps.length / about.classes.length;
    const classes = order.slice(0, MOST_CLASSES).map((index) => ({
      class: about.classes[index],
      probability: probabilities[index],
      activation: maps.slice(index * positions, (index + 1) * positions),
    }));
    return { classes, milliseconds, score, none_of_these: limit !== undefined && score < limit };
  };
}

/** The same, computed by the server that the page comes from. */
async function serverRuntime(about) {
  return async (pixels, file) => {
    const start = performance.now();
    const body = file.size > SENT_WHOLE_BYTES ? await asPng(pixels, about.image_size) : file;
    const keep = $("keep").value ? `&keep=${$("keep").value}` : "";
    const answer = await fetch(`predict?activation=1&top=${MOST_CLASSES}${keep}`, { method: "POST", body });
    const content = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(content.error ?? `The server answered with status ${answer.status}`);
    return { ...content, milliseconds: performance.now() - start };
  };
}

/** Pixels as a PNG file's content. */
async function asPng(pixels, size) {
  const canvas = new OffscreenCanvas(size, size);
  canvas.getContext("2d").putImageData(asImage(pixels, size), 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

function asImage(pixels, size) {
  const image = new ImageData(size, size);
  for (let i = 0; i < size * size; i++) image.data.set([pixels[3 * i], pixels[3 * i + 1], pixels[3 * i + 2], 255], 4 * i);
  return image;
}

function softmax(logits, temperature) {
  const most = Math.max(...logits);
  const powers = Array.from(logits, (value) => Math.exp((value - most) / temperature));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

// --- what is shown ---------------------------------------------------------------------------------------------------

function drawPicture(fit, canvas) {
  const context = $("picture").getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = `rgb(${PADDING} ${PADDING} ${PADDING})`;
  context.fillRect(0, 0, SHOWN, SHOWN);
  context.drawImage(canvas, ...place(fit, SHOWN, canvas.width, canvas.height));
}

/** Darken the picture where nothing speaks for a class; false if nothing does anywhere. */
function drawHeat(activation) {
  const side = Math.sqrt(activation.length);
  const map = Array.from(activation, (value) => Math.max(value, 0));
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

function show(about, result) {
  const percent = ({ probability }) => `${(100 * probability).toFixed(1)}%`;
  const buttons = result.classes.map((entry) => {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.class = entry.class;
    button.dataset.probability = entry.probability;
    button.style.setProperty("--part", percent(entry));
    for (const text of [entry.class, percent(entry)]) {
      const span = document.createElement("span");
      span.textContent = text;
      button.append(span);
    }
    button.addEventListener("click", () => explain(entry));
    return button;
  });
  const explain = (entry) => {
    $("heat-caption").textContent = drawHeat(entry.activation)
      ? `What speaks for ${entry.class}: the brighter, the more`
      : `Nothing speaks for ${entry.class}`;
    result.classes.forEach((each, rank) => buttons[rank].setAttribute("aria-pressed", String(each === entry)));
  };
  $("bars").replaceChildren(
    ...buttons.map((button) => {
      const item = document.createElement("li");
      item.append(button);
      return item;
    }),
  );
  const top = `${result.classes[0].class}, ${percent(result.classes[0])}`;
  $("top").textContent = result.none_of_these ? `None of these (${top})` : top;
  const left = about.classes.length - result.classes.length;
  $("left").textContent = `and ${left.toLocaleString("en")} less probable class${left > 1 ? "es" : ""}`;
  $("left").hidden = !left;
  $("time").textContent = `${result.milliseconds.toFixed(1)} milliseconds ${about.runtime === "server" ? "with the way to the server" : "in this browser, on one thread"}`;
  explain(result.classes[0]);
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
  const size = about.image_size;
  const classify = await (about.runtime === "server" ? serverRuntime : browserRuntime)(about);
  $("about").textContent = about.text;
  Object.assign($("seen"), { width: size, height: size });
  $("picture-caption").textContent = SHOWN_AS[about.fit];
  $("seen-caption").textContent = `What the model sees: ${size} × ${size} pixels`;

  $("reject").hidden = !about.kept.length;
  for (const { keep } of about.kept) $("keep").add(new Option(`and keep ${100 * keep}% of right answers`, keep));

  let answers = 0;
  let last = null;
  let latest = 0; // of pictures asked for one after another only the last one's answer is shown
  const take = async (chosen) => {
    const turn = ++latest;
    try {
      const file = await chosen;
      last = file;
      const canvas = await readPicture(file, about.fit);
      const pixels = seenBy(about, canvas);
      const result = await classify(pixels, file);
      if (turn !== latest) return;
      tell(null);
      drawPicture(about.fit, canvas);
      $("seen").getContext("2d").putImageData(asImage(pixels, size), 0, 0);
      show(about, result);
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

  $("or-sample").hidden = !about.samples.length;
  for (const sample of about.samples) {
    const button = document.createElement("button");
    const image = document.createElement("img");
    button.type = "button";
    Object.assign(image, { src: sample.file, alt: `Sample: ${sample.label}`, title: sample.label });
    button.append(image);
    button.addEventListener("click", () => take(fetchSample(sample)));
    $("samples").append(button);
  }
  $("keep").addEventListener("change", () => last && take(last));
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
