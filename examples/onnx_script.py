"""python onnx_script.py model.onnx RGB=a.jpg TI=b.png mask=m.png"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

files = dict(text.split("=", 1) for text in sys.argv[2:])
session = onnxruntime.InferenceSession(sys.argv[1])
facts = json.loads(session.get_modelmeta().custom_metadata_map["stmi-layers"])
names, (height, width) = facts["modalities"], facts["preprocessing"]["size"]
images = np.zeros((1, len(names), 3, height, width), np.float32)
masks = np.ones((1, len(names), height, width), bool)  # all is foreground
present = np.array([[name in files for name in names]])
for place in np.flatnonzero(present):
    image = Image.open(files[names[place]]).convert("RGB")
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    images[0, place] = pixels.transpose(2, 0, 1) / 255
if "mask" in files:
    mask = Image.open(files["mask"]).convert("L")
    masks[:] = np.asarray(mask.resize((width, height), Image.Resampling.NEAREST)) > 127
inputs = {"images": images, "masks": masks, "present": present}
inputs = {name: inputs[name] for name in facts["inputs"]}
descriptors = np.asarray(session.run(facts["outputs"][:1], inputs)[0])  # of length 1
print(json.dumps(descriptors[0].tolist()))
