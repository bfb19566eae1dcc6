// PNGs of 16 bits a channel, in 8 bits as Python's side has them.

const MOST_DEEP_PIXELS = 4096 * 4096; // of a PNG of 16 bits
const DEPTHS = [8, 10, 12, 14, 16]; // bits that cameras use of these 16
const ADAM7 = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]]; // left, top, steps

/**
 * The samples of a PNG of 16 bits a channel, and its transparent colour or null; null for any other file. Browsers keep
 * the high bytes alone, which are 0 in pictures of cameras that use 8 of the 16 bits.
 */
async function readDeep(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const view = new DataView(bytes.buffer);
  if (bytes.length < 33 || view.getUint32(0) !== 0x89504e47 || bytes[24] !== 16) return null;
  const [width, height, channels] = [view.getUint32(16), view.getUint32(20), { 0: 1, 2: 3, 4: 2, 6: 4 }[bytes[25]]];
  if (!channels || width * height > MOST_DEEP_PIXELS) return null;
  const parts = [];
  let key = null;
  for (let at = 8; at + 12 <= bytes.length; at += 12 + view.getUint32(at)) {
    const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const body = bytes.subarray(at + 8, at + 8 + view.getUint32(at));
    if (name === "IDAT") parts.push(body);
    if (name === "tRNS") key = Array.from({ length: body.length >> 1 }, (_, i) => 256 * body[2 * i] + body[2 * i + 1]);
  }
  const unpacked = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  const raw = new Uint8Array(await new Response(unpacked).arrayBuffer());
  const samples = new Uint16Array(width * height * channels);
  const step = 2 * channels;
  let at = 0;
  for (const [left, top, right, down] of bytes[28] ? ADAM7 : [[0, 0, 1, 1]]) {
    const columns = Math.ceil((width - left) / right);
    let above = new Uint8Array(columns > 0 ? columns * step : 0);
    for (let y = top; y < height && columns > 0; y += down) {
      const line = raw.subarray(at + 1, at + 1 + columns * step);
      if (line.length < columns * step) throw new Error("it ends too early");
      unfilter(raw[at], line, above, step);
      for (let i = 0; i < columns * channels; i++) {
        const x = left + right * Math.floor(i / channels);
        samples[(y * width + x) * channels + (i % channels)] = 256 * line[2 * i] + line[2 * i + 1];
      }
      above = line;
      at += 1 + line.length;
    }
  }
  return { width, height, channels, samples, key };
}

/** Undo one of PNG's filters in a line, in place. */
function unfilter(filter, line, above, step) {
  const left = (i) => (i < step ? 0 : line[i - step]);
  const predict = [() => 0, left, (i) => above[i], (i) => (left(i) + above[i]) >> 1, paeth][filter];
  if (!predict) throw new Error("a filter that does not exist");
  if (filter) for (let i = 0; i < line.length; i++) line[i] += predict(i);

  function paeth(i) {
    const a = left(i);
    const b = above[i];
    const c = i < step ? 0 : above[i - step];
    const p = Math.abs(b - c);
    const q = Math.abs(a - c);
    const r = Math.abs(a + b - 2 * c);
    return p <= q && p <= r ? a : q <= r ? b : c;
  }
}

/** What `readDeep` gives in 8 bits: the fewest of `DEPTHS` that hold all samples are brought to 8, as in Python. */
function shallow({ width, height, channels, samples, key }) {
  const image = new ImageData(width, height);
  const colours = channels > 2 ? 3 : 1;
  let largest = 0;
  for (let i = 0; i < samples.length; i++) if (i % channels < colours) largest = Math.max(largest, samples[i]);
  const shift = DEPTHS.find((depth) => largest < 2 ** depth) - 8;
  for (let i = 0; i < width * height; i++) {
    const at = (c) => samples[i * channels + (c < colours ? c : 0)];
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = at(c) >> shift;
    const alpha = channels > colours ? samples[i * channels + colours] >> 8 : 255;
    image.data[4 * i + 3] = key?.length >= colours && key.every((value, c) => value === at(c)) ? 0 : alpha;
  }
  return image;
}

/** Levels between the darkest and the lightest sample of a canvas, and whether it can be seen through. */
function extent(canvas) {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let [least, most, transparent] = [255, 0, false];
  for (let i = 0; i < data.length; i++)
    if (i % 4 === 3) transparent ||= data[i] < 255;
    else [least, most] = [Math.min(least, data[i]), Math.max(most, data[i])];
  return { spread: most - least, transparent };
}
