"""Every layer once, on small random tensors: `python examples/quickstart.py`."""

import torch

import stmi_layers as stmi

batch, modalities, dim, grid = 8, 3, 64, (8, 4)  # 128 x 64 pixels, patches of 16
tokens = torch.randn(batch * modalities, 1 + 32, dim)  # class token, patches
masks = torch.zeros(batch * modalities, 128, 64, dtype=torch.bool)
masks[:, 16:112, 16:48] = True  # the object
identities = torch.arange(batch) // 2  # two samples of each

foreground = stmi.token_foreground(masks, grid)  # (24, 33) Bool
attention = stmi.SegmentationModulatedAttention(dim, num_heads=4)
tokens = tokens + attention(tokens, foreground)  # (24, 33, 64)

reallocation = stmi.SemanticTokenReallocation(dim, num_tokens=4)
semantic = reallocation(tokens[:, 1:])  # (24, 4, 64), a row per image
semantic = semantic.unflatten(0, (batch, modalities))  # (8, 3, 4, 64)
hypergraph = stmi.CrossModalHypergraph(dim, num_nodes=modalities * 4)
semantic = hypergraph(semantic)  # (8, 3, 4, 64)

readout = stmi.GlobalCrossAttention(dim)
class_tokens = tokens[:, 0].unflatten(0, (batch, modalities))  # (8, 3, 64)
descriptor = readout(class_tokens, semantic.flatten(1, 2)).flatten(1)  # (8, 192)

criterion = stmi.ReIDLoss(descriptor.shape[1], num_identities=4)
loss = criterion(descriptor, identities)  # scalar
query, gallery = descriptor[::2], descriptor[1::2]
scores = stmi.reid_metrics(query, gallery, identities[::2], identities[1::2])

for name in ("foreground", "tokens", "semantic", "descriptor", "loss"):
    print(f"{name:<12}{tuple(globals()[name].shape)}")
print(f"{'mAP':<12}{scores.mAP:.3f} without any training")
