"""Captions of the synthetic set: attributes of a view in words, some of them missing or wrong on request."""

import itertools
from typing import NamedTuple

from numpy.random import Generator

from examples.prepare.synthetic.bodies import BODIES, HUES, SOME_BODY
from examples.prepare.synthetic.identities import Identity, Settings
from examples.prepare.synthetic.scenes import LIGHTS, View

NUMBER_WORDS = ("no", "one", "two", "three")


class Caption(NamedTuple):
    """Caption of a view, and the attributes that it leaves out or names wrongly."""

    text: str
    missing: list[str]
    wrong: list[str]


def describe(settings: Settings, identity: Identity, view: View, rng: Generator) -> Caption:
    """Describe attributes of a view in words: body, paint, heading, light, number of tags and their hues."""
    bodies, hues = BODIES[settings.kind], list(HUES)
    worn = sorted({hues[tag.hue] for tag in identity.tags})
    truth = {
        "body": view.figure.body.phrase,
        "paint": view.figure.body.paint_name,
        "heading": "left" if view.figure.pose.mirrored else "right",
        "light": view.light,
        "number": NUMBER_WORDS[len(view.figure.tags)],
        "hue": " and ".join(worn),
    }
    choices = {
        "body": [body.phrase for body in bodies],
        "paint": [body.paint_name for body in bodies],
        "heading": ["left", "right"],
        "light": list(LIGHTS),
        "number": list(NUMBER_WORDS[1:]),
        "hue": [" and ".join(sorted(some)) for some in itertools.combinations(hues, len(worn))],
    }
    missing = [name for name in truth if rng.uniform() < settings.caption_unknown]
    wrong = [name for name in truth if name not in missing and rng.uniform() < settings.caption_wrong]
    said = {name: value for name, value in truth.items() if name not in missing}
    for name in wrong:
        said[name] = str(rng.choice([value for value in choices[name] if value != truth[name]]))
    return Caption(_sentence(said, SOME_BODY[settings.kind]), missing, wrong)


def _sentence(said: dict[str, str], some_body: str) -> str:
    figure = " ".join(said.get("body", some_body).replace("{paint}", said.get("paint", "")).split())
    parts = [f"A photo of a {figure}"]
    if "heading" in said:
        parts.append(f"facing {said['heading']}")
    if "number" in said or "hue" in said:
        number = said.get("number", "some")
        words = [number, said.get("hue", ""), "tag" if number == "one" else "tags"]
        parts.append("with " + " ".join(filter(None, words)))
    if "light" in said:
        parts.append({"day": "by day", "night": "at night", "glare": "in glare"}[said["light"]])
    return ", ".join(parts) + "."
