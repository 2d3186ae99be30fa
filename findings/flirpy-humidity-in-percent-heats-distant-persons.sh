#!/usr/bin/env bash
# Package: flirpy 0.6.2
# Guess: raw2temp turns the counts of a FLIR camera into the temperature of the person, at every distance.
# Seen: raw2temp takes the humidity of the air as a share of 1, and divides only numbers above 100. The metadata that
#   exiftool writes, and Fff(use_exiftool=True) reads, say "50.0 %": 50 is taken as 50 times saturated air. A person of
#   30 °C has 31.0 °C at 1 m and 47.7 °C at 40 m, so that a temperature means something else at every distance and in
#   every camera. Nothing warns. With the humidity as 0.5 the temperature is right.
# For us: counts become grey levels by a stated range and no temperature is computed here; the guide on data warns.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-deps flirpy==0.6.2 numpy==2.3.5
cd "$folder"
venv/bin/python - <<'END'
import math
from pathlib import Path

import numpy as np
from flirpy.util.exiftool import Exiftool
from flirpy.util.raw import raw2temp

# Constants of a camera and of the air, and the surroundings: everything but the person has 10 °C.
FACTOR, SCALE, BASE, OFFSET = 21106.77, 0.012545258, 1501.0, -7340.0
ALPHA, BETA, SHARE, EMISSIVITY, AIR = (0.006569, 0.01262), (-0.002276, -0.00667), 1.9, 0.98, 10.0
TEXT = """Planck R1 : {FACTOR}
Planck R2 : {SCALE}
Planck B : {BASE}
Planck F : 1
Planck O : {OFFSET}
Atmospheric Trans Alpha 1 : {ALPHA[0]}
Atmospheric Trans Alpha 2 : {ALPHA[1]}
Atmospheric Trans Beta 1 : {BETA[0]}
Atmospheric Trans Beta 2 : {BETA[1]}
Atmospheric Trans X : {SHARE}
Emissivity : {EMISSIVITY}
IR Window Transmission : 1.00
IR Window Temperature : {AIR} C
Atmospheric Temperature : {AIR} C
Reflected Apparent Temperature : {AIR} C
Object Distance : {distance:.2f} m
Relative Humidity : {humidity}
"""


def signal(celsius: float) -> float:
    """Return the counts of a black body."""
    return FACTOR / (SCALE * (math.exp(BASE / (celsius + 273.15)) - 1)) - OFFSET


def seen(celsius: float, distance: float, humidity: float) -> np.ndarray:
    """Return the counts of a person behind air whose humidity is a share of 1, by the formula for FLIR cameras."""
    water = humidity * math.exp(1.5587 + 0.06939 * AIR - 0.00027816 * AIR**2 + 6.8455e-7 * AIR**3)
    dimming = [math.exp(-math.sqrt(distance / 2) * (a + b * math.sqrt(water))) for a, b in zip(ALPHA, BETA)]
    through = (SHARE * dimming[0] + (1 - SHARE) * dimming[1]) ** 2  # of the two halves of the way
    person = EMISSIVITY * signal(celsius) + (1 - EMISSIVITY) * signal(AIR)
    return np.array([round(through * person + (1 - through) * signal(AIR))], np.uint16)


def read(distance: float, humidity: str) -> float:
    values = globals() | {"distance": distance, "humidity": humidity}
    Path("meta.txt").write_text(TEXT.format(**values))
    return float(raw2temp(seen(30, distance, 0.5), Exiftool().meta_from_file("meta.txt"))[0])


for distance, least in ((1, 30.5), (5, 32), (10, 34), (20, 37), (40, 45)):
    counts, percent, share = int(seen(30, distance, 0.5)[0]), read(distance, "50.0 %"), read(distance, "0.5")
    print(f"person of 30 °C at {distance} m, {counts} counts: {percent:.1f} °C with 50.0 %, {share:.1f} °C with 0.5")
    assert abs(share - 30) < 0.1 and least < percent < least + 5
END
