"""Find the best matches of images in an index: `python -m examples.search --index DIR --query RGB=a.jpg TI=b.png`.

The index is the folder that `examples.extract` has written. By default the search is exact, a shard at a time, without
faiss. With `--kind exact`, `ivf` or `hnsw` an index of faiss is built beside the shards at its first use.
"""

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro
from torch import Tensor

from examples import cli
from examples.extract import Arguments as ExtractArguments
from examples.extract import describe_images, read_notes
from examples.images import Policy
from examples.masking import Segmentation
from examples.restore import Computer, load_model
from examples.search.matches import Rules, as_json, as_table, find_matches, first_right, to_tensor
from examples.search.page import write_page
from examples.search.pictures import pictures
from stmi_layers.training.faiss_index import RECORD, build_index, index_folder, open_index
from stmi_layers.training.files import write_text
from stmi_layers.training.neighbours import Search, exact_search
from stmi_layers.training.record import Item
from stmi_layers.training.shards import Shards, fingerprint, open_shards


@dataclass(frozen=True)
class Arguments:
    """Index, queries, and rules for matches."""

    index: Path
    """Folder of the index, as `examples.extract` has written it."""
    query: tuple[str, ...] = ()
    """Images to look up, as `examples.extract --images` takes them, or another folder of `examples.extract`. Without
    queries, only the faiss index is built."""
    out: Path | None = None
    """Folder of matches.json and matches.html; `search` in the folder of the index by default."""
    checkpoint: Path | None = None
    """Checkpoint of the index, if it was moved since the extraction."""
    k: int = 10
    """Number of matches per query."""
    descriptor: str | None = None
    """Descriptor to search by; the first descriptor of the index by default."""
    kind: Literal["shards", "exact", "ivf", "hnsw"] = "shards"
    """Kind of search: exact in the shards; or by faiss: exact, inverted lists (ivf), or a graph (hnsw)."""
    rebuild: bool = False
    """Build the faiss index again, even if it exists."""
    min_similarity: float = -1.0
    """Lowest cosine of a match, -1 to 1; a query without a match is "not in the gallery"."""
    drop: str | None = None
    """Column, such as camera or scene: leave out entries that equal the query in identity and in this column."""
    exclude: str | None = None
    """Column, such as camera or scene: leave out entries that equal the query in it, whatever their identity."""
    modality: str | None = None
    """Modality of query images whose folder does not name a modality."""
    split: str = "all"
    """Split of a set of queries; all splits by default."""
    masks: Policy | None = None
    """Masks of the queries; by default made as those of the index."""
    segmentation: tyro.conf.OmitArgPrefixes[Segmentation] = field(default_factory=Segmentation)
    page: int = 50
    """Largest number of queries on the page and in the table; matches.json has all queries."""
    machine: tyro.conf.OmitArgPrefixes[Computer] = field(default_factory=Computer)


def main(arguments: Arguments) -> list[dict[str, Any]]:
    """Search, print a table, and write matches.json and matches.html."""
    shards = open_shards(arguments.index)
    name = arguments.descriptor or next(iter(shards.record.widths))
    shards.refuse_unknown(name)
    search = _search(shards, name, arguments)
    if not arguments.query:
        if arguments.kind == "shards":
            raise ValueError("query must name images to look up, or kind an index of faiss to build (--query, --kind)")
        return []
    vectors, queries = _describe_queries(shards, name, arguments)
    rules = Rules(arguments.drop, arguments.exclude, arguments.min_similarity)
    matches = find_matches(search, shards, vectors, queries, k=arguments.k, rules=rules)
    out = arguments.out or arguments.index / "search"
    content = as_json(queries, matches)
    settings = {"descriptor": name, "fingerprint": shards.record.fingerprint, "kind": arguments.kind, **vars(rules)}
    write_text(out / "matches.json", json.dumps({**settings, "queries": content}, indent=1) + "\n")
    notes, shown = read_notes(shards), arguments.page
    note = (
        f"{len(queries)} queries against {shards.starts[-1]} entries of {arguments.index}, by {name}, {arguments.kind}"
    )
    draw = pictures(notes.ranges, notes.modalities, arguments.masks or notes.seen)
    page = out / "matches.html"
    write_page(page, queries[:shown], matches[:shown], notes.modalities, draw, note=note)
    print(as_table(queries, matches, shown=shown))
    right, known = first_right(matches)
    if known:
        print(f"first match right: {right} of {known} queries whose identity is known")
    print(out / "matches.json", page, sep="\n")
    return content


def _search(shards: Shards, name: str, arguments: Arguments) -> Search:
    if arguments.kind == "shards":
        return exact_search(shards, name)
    if arguments.rebuild or not (index_folder(shards, arguments.kind, name) / RECORD).is_file():
        record = build_index(shards, name, arguments.kind)
        measured = f", recall at 10 against exact search {record.recall:.3f}" if record.queries else ""
        print(f"built {arguments.kind} of {record.rows} rows in {index_folder(shards, arguments.kind, name)}{measured}")
    return open_index(shards, name, arguments.kind)[1]


def _describe_queries(shards: Shards, name: str, arguments: Arguments) -> tuple[Tensor, list[Item]]:
    """Return descriptors and items of the queries, from another extraction or computed by the model of the index."""
    if len(arguments.query) == 1 and (Path(arguments.query[0]) / "extraction.json").is_file():
        other = open_shards(Path(arguments.query[0]))
        if other.record.fingerprint != shards.record.fingerprint:
            raise ValueError(_other_model(other.folder, other.record.fingerprint, shards))
        return to_tensor(other, name), list(other.all_items())
    notes = read_notes(shards)
    machine = arguments.machine.machine(quiet=True)
    checkpoint = arguments.checkpoint or Path(notes.checkpoint)
    loaded = load_model(checkpoint, machine=machine)
    if (own := fingerprint(loaded.model)) != shards.record.fingerprint:
        raise ValueError(_other_model(checkpoint, own, shards))
    with tempfile.TemporaryDirectory() as folder:
        asked = ExtractArguments(
            checkpoint,
            arguments.query,
            Path(folder),
            modality=arguments.modality,
            split=arguments.split,
            masks=arguments.masks or notes.masks,
            segmentation=arguments.segmentation if arguments.segmentation.mask_weights else notes.segmentation,
            descriptors=(name,),
            machine=arguments.machine,
        )
        describe_images(asked, loaded, next(loaded.model.parameters()).device, quiet=True)
        queries = open_shards(Path(folder))
        return to_tensor(queries, name), list(queries.all_items())


def _other_model(what: Path, own: str, shards: Shards) -> str:
    made = shards.record.notes.get("checkpoint", "a model")
    return (
        f"queries must be described by the model of the index; {what} has the weights {own}, and {shards.folder} was "
        f"made by {made} with the weights {shards.record.fingerprint} (--checkpoint)"
    )


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__, prog="python -m examples.search")
