"""Integration of the layers into the vision transformers of open_clip, timm and transformers.

Importing this package needs none of these libraries. A library is imported when one of its models is used; if that
fails, the error names the extra to install.
"""

from stmi_layers.backbones.adapt import adapt as adapt
from stmi_layers.backbones.adapt import unadapt as unadapt
from stmi_layers.backbones.attention_maps import Heads as Heads
from stmi_layers.backbones.attention_maps import attention_layers as attention_layers
from stmi_layers.backbones.attention_maps import heads_of as heads_of
from stmi_layers.backbones.attention_maps import recording as recording
from stmi_layers.backbones.modulation import choose_layers as choose_layers
from stmi_layers.backbones.modulation import modulate as modulate
from stmi_layers.backbones.modulation import unmodulate as unmodulate
from stmi_layers.backbones.parameters import parameter_groups as parameter_groups
from stmi_layers.backbones.parameters import strengths_of as strengths_of
from stmi_layers.backbones.positions import resize_positions as resize_positions
from stmi_layers.backbones.token_backbone import TokenBackbone as TokenBackbone
from stmi_layers.backbones.weights import LoadReport as LoadReport
from stmi_layers.backbones.weights import load_weights as load_weights
