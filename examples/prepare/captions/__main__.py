"""Write a caption for every item of a split.

    python -m examples.prepare.captions --data DIR --schema persons --base-url http://localhost:8000/v1 --model NAME
    python -m examples.prepare.captions --data DIR --schema vehicles --local FOLDER

Captions go to DATA/text/<split>.json, raw answers to <split>.answers.jsonl beside it, and a report to
<split>.report.json and .md. A stopped run continues when it is started again: answered questions are not asked again.
"""

import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from examples.cli import parse, printable_lines
from examples.prepare.captions.arguments import Arguments, read_fields
from examples.prepare.captions.collect import Collector, Status, judge
from examples.prepare.captions.endpoint import Endpoint, Pace, UnusableError
from examples.prepare.captions.journal import Journal
from examples.prepare.captions.questions import COMPOSITE, Question, Reply, Request, ask_about
from examples.prepare.captions.report import Described, as_markdown, make_report
from examples.prepare.captions.schema import Schema, read_schema
from examples.prepare.captions.sentence import choose, choose_apart, write_sentence, write_sentences
from stmi_layers.training.files import write_text
from stmi_layers.training.record import Item, path_of
from stmi_layers.training.splits import read_split


def main(arguments: Arguments) -> dict[str, Any]:
    """Ask the open questions, then write captions and report, also when the run ends early.

    Raises:
        FileExistsError: when captions exist that this command has not written.
        UnusableError: when the server cannot be used at all.
    """
    schema = read_schema(arguments.schema).asked(number_plates=arguments.number_plates)
    items = read_split(
        arguments.data,
        arguments.split,
        arguments.modalities,
        missing_modality=arguments.missing_modality,
        captions="optional",
        damaged=arguments.damaged,
        ranges=arguments.ranges,
    )
    # An item can be query and gallery entry; captions are stored by name.
    items = list({item.name: item for item in items}.values())
    asked = items[: arguments.limit or None]
    text = arguments.data / "text"
    captions, answers = text / f"{arguments.split}.json", text / f"{arguments.split}.answers.jsonl"
    if captions.exists() and not answers.exists() and not arguments.overwrite:
        raise FileExistsError(f"{captions} was not written by this command; move it away, or pass --overwrite")
    if captions.exists() and arguments.apart:
        raise FileExistsError(f"{captions} takes the place of captions per modality; move it away first")
    stop = threading.Event()
    ask = connect(arguments, schema, stop)
    with Journal(answers) as journal:
        collector = Collector(ask, journal, schema, height=arguments.height, stop=stop)
        try:
            collect(arguments, collector, journal, schema, asked)
        finally:
            described = describe(arguments, journal, schema, items)
            names = {item.name for item in asked}
            described = [one for one in described if one.finished or one.item.name in names]
            report = write_results(arguments, journal, schema, described)
    return report


def connect(arguments: Arguments, schema: Schema, stop: threading.Event) -> Callable[[Request], Reply]:
    """Connect to the server or the local model that answers."""
    if arguments.local is not None:
        from examples.prepare.captions.local import LocalModel  # imports torch, which a server does not need

        return LocalModel.load(arguments.local, device=arguments.device, max_tokens=arguments.max_tokens)
    fields = read_fields(arguments.fields)
    return Endpoint(
        arguments.base_url,
        arguments.model,
        schema,
        Pace(arguments.per_minute, stop),
        answer_format=arguments.answer_format,
        timeout=arguments.timeout,
        attempts=arguments.attempts,
        backoff=arguments.backoff,
        max_wait=arguments.max_wait,
        fields=fields,
    )


def questions_of(arguments: Arguments, schema: Schema, item: Item) -> list[Question]:
    model = arguments.model or str(arguments.local)
    options = {"model": model, "height": arguments.height, "ranges": arguments.ranges}
    return ask_about(item, arguments.modalities, schema, **options)


def collect(
    arguments: Arguments, collector: Collector, journal: Journal, schema: Schema, items: Sequence[Item]
) -> None:
    """Ask all open questions, with a progress bar that counts questions."""
    counts: Counter[str] = Counter()

    def questions() -> Iterator[Question]:
        for item in items:
            for question in questions_of(arguments, schema, item):
                if arguments.again and judge(journal.replies(question.key), schema).status in arguments.again:
                    journal.forget(question.key)
                yield question

    present = [sum(image is not None for image in item.images) for item in items]
    total = sum(count + (count > 1) for count in present)
    with tqdm(total=total, desc=f"captions of {arguments.split}", unit="question") as progress:

        def report(status: Status) -> None:
            counts[status] += 1
            progress.set_postfix({name: counts[name] for name in ("refused", "invalid", "open") if counts[name]})
            progress.update()

        collector.run(questions(), report, threads=arguments.threads)


def describe(arguments: Arguments, journal: Journal, schema: Schema, items: Sequence[Item]) -> list[Described]:
    """Describe each item by the recorded answers; at equal confidence the composite precedes the modalities."""
    described = []
    for item in items:
        questions = questions_of(arguments, schema, item)
        questions.sort(key=lambda question: question.view != COMPOSITE)
        outcomes = {
            question.view: judge(journal.replies(question.key), schema, number_plates=arguments.number_plates)
            for question in questions
        }
        views = {view: outcome.readings for view, outcome in outcomes.items()}
        choices = choose(views, min_confidence=arguments.min_confidence or 0.0)
        sentence = write_sentence(schema, {name: choice.value for name, choice in choices.items()})
        described.append(Described(item, outcomes, choices, sentence))
    return described


def write_results(
    arguments: Arguments, journal: Journal, schema: Schema, described: Sequence[Described]
) -> dict[str, Any]:
    """Write the captions of finished items and the report, each file whole or not at all."""
    finished = [one for one in described if one.finished]
    if arguments.apart:
        captions = captions_apart(arguments, schema, finished)
    else:
        named = [(next(path_of(image).name for image in one.item.images if image), one.sentence) for one in finished]
        captions = {"": [{"item": name, "description": sentence} for name, sentence in named]}
    prices = {"input_price": arguments.input_price, "output_price": arguments.output_price}
    report = make_report(described, schema, journal, **prices)
    markdown = as_markdown(report, f"Captions of {arguments.split}")
    base = arguments.data / "text" / arguments.split
    for suffix, content in {
        **{f"{of}.json": json.dumps(entries, indent=1, ensure_ascii=False) + "\n" for of, entries in captions.items()},
        ".report.json": json.dumps(report, indent=1, ensure_ascii=False) + "\n",
        ".report.md": markdown,
    }.items():
        write_text(base.with_name(base.name + suffix), content)
    print(markdown)
    return report


def captions_apart(
    arguments: Arguments, schema: Schema, described: Sequence[Described]
) -> dict[str, list[dict[str, str]]]:
    """Return the caption entries of each modality, by the ending of its file name."""
    least = 0.5 if arguments.min_confidence is None else arguments.min_confidence
    entries: dict[str, list[dict[str, str]]] = {f"_{modality}": [] for modality in arguments.modalities}
    for one in described:
        views = {view: outcome.readings for view, outcome in one.outcomes.items()}
        apart = choose_apart([views], arguments.modalities, min_confidence=least)
        for modality, image in zip(arguments.modalities, one.item.images, strict=True):
            if image is not None:
                values = {name: choice.value for name, choice in apart[modality].items()}
                entry = {"item": path_of(image).name, "description": write_sentences(schema, values)}
                entries[f"_{modality}"].append(entry)
    return entries


def run_command() -> None:
    """Run the command line; exit with status 1 and a message while questions are open."""
    try:
        report = main(parse(Arguments, __doc__, prog="python -m examples.prepare.captions"))
    except (UnusableError, FileExistsError, FileNotFoundError, BlockingIOError, ValueError, ImportError) as error:
        sys.exit(f"error: {printable_lines(str(error))}")
    if unfinished := report["with open questions"]:
        sys.exit(f"{len(unfinished)} items have open questions and no caption yet; run the same command again")


if __name__ == "__main__":
    run_command()
