"""Classify a picture with onnxruntime alone: classify.py MODEL.onnx PICTURE."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
about = session.get_modelmeta().custom_metadata_map
if about.get("int8") == "s8s8":  # its sums overflow in onnxruntime's kernels on x86 processors without VNNI
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(sys.argv[1], options)
size = session.get_inputs()[0].shape[2]

# The pixels that the model was trained on: upright, transparent parts white, then as its `fit` says. The central square
# is cropped before it is resized: ImageOps.fit would mix in pixels from outside the square. Rows are resized before
# columns, which Pillow itself does for wide pictures only.
picture = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGBA")
picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
side = min(picture.size)
left, top = (picture.width - side) // 2, (picture.height - side) // 2
fit, longer = about.get("fit", "crop"), max(picture.size)
if fit == "crop":
    picture = picture.crop((left, top, left + side, top + side))
shape = [max(1, (2 * side * size + longer) // (2 * longer)) for side in picture.size] if fit == "pad" else [size, size]
rows = picture.resize((shape[0], picture.height), Image.Resampling.LANCZOS)
resized = rows.resize(shape, Image.Resampling.LANCZOS)
picture = Image.new("RGB", (size, size), (128, 128, 128))
picture.paste(resized, [(size - side) // 2 for side in shape])

if about.get("channels") == "1":
    picture = picture.convert("L")

images = np.asarray(picture, np.float32).reshape(size, size, -1).transpose(2, 0, 1)[None] / 255
(logits,) = session.run(["logits"], {"images": images})
powers = np.exp((logits[0] - logits[0].max()) / (json.loads(about["temperature"]) or 1))
for index in powers.argsort()[:-4:-1]:
    print(f"{json.loads(about['classes'])[index]} {powers[index] / powers.sum():.1%}")
