"""python onnx_script.py model.onnx RGB=a.jpg TI=b.png mask=m.png camera=2"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

files = dict(text.split("=", 1) for text in sys.argv[2:])
session = onnxruntime.InferenceSession(sys.argv[1])
facts = json.loads(session.get_modelmeta().custom_metadata_map["stmi-layers"])
names, shape = facts["modalities"], facts["preprocessing"]["size"]
size, ranges = tuple(shape[::-1]), facts["preprocessing"]["ranges"]
images = np.zeros((1, len(names), 3, *shape), np.float32)
masks = np.ones((1, len(names), *shape), bool)  # all is foreground
for name in {*names} & {*files}:
    view = ImageOps.exif_transpose(Image.open(files[name]))
    assert (view.mode[0] in "IF") == (name in ranges), "16 bits: one channel, a range"
    if span := ranges.get(name):
        view = Image.fromarray(np.uint8(np.interp(np.array(view), span, (0.5, 255.5))))
    view = view.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    images[0, names.index(name)] = np.asarray(view).transpose(2, 0, 1) / 255
if "mask" in files:
    masks[:] = np.asarray(Image.open(files["mask"]).convert("L").resize(size, 0)) > 127
inputs = {"images": images, "masks": masks}
inputs["present"] = np.array([[name in files for name in names]])
inputs["cameras"] = np.array([int(files.get("camera", -1))])
found = session.run(facts["outputs"][:1], {n: inputs[n] for n in facts["inputs"]})
print(json.dumps(np.asarray(found[0])[0].tolist()))  # of length 1
