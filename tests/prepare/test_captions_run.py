"""Captions of a whole split from a local server: no answer is lost, no question is repeated."""

import json
import re
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from captions_server import (
    KEY,
    Asked,
    Behaviour,
    Server,
    always,
    answer,
    cut,
    fail,
    hang,
    hang_up,
    raw,
    say,
    serving,
    then_well,
)
from examples.prepare.captions import __main__ as command
from examples.prepare.captions import collect
from examples.prepare.captions.__main__ import main
from examples.prepare.captions.arguments import Arguments
from examples.prepare.captions.endpoint import UnusableError
from examples.prepare.captions.journal import Journal
from examples.prepare.captions.questions import Question, Reply
from examples.prepare.synthetic.dataset import write_dataset
from processes import as_command, start
from stmi_layers.training.splits import read_split
from toy_runs import DATA, SCHEDULE, train_toy

MODALITIES = ("RGB", "NI")


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three items in two modalities: nine questions."""
    for number in range(3):
        for modality in MODALITIES:
            path = tmp_path / "train" / modality / f"{number:06d}_cam1_0_00.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 16), (number * 20, 40 * (modality == "NI"), 100)).save(path)
    return tmp_path


def arguments(folder: Path, server: Server, **changes) -> Arguments:
    quick = {"modalities": MODALITIES, "backoff": 0.01, "height": 16}
    return Arguments(data=folder, base_url=server.url, model="tiny", **(quick | changes))


def journal_lines(folder: Path, split: str = "train") -> list[dict]:
    return [json.loads(line) for line in (folder / "text" / f"{split}.answers.jsonl").read_text().splitlines()]


def sentences(folder: Path) -> dict[str, str]:
    return {one["item"]: one["description"] for one in json.loads((folder / "text" / "train.json").read_text())}


# The journal

QUESTION = Question("a", "RGB", (), "?", "key")


def test_the_journal_gives_back_what_it_was_given(tmp_path):
    replies = [Reply('{"\u2028 \udc80\r\n', "no", "length", "m", None, 3, {"HTTP 500": 2}), Reply("two")]
    with Journal(tmp_path / "a.jsonl") as journal:
        for reply in replies:
            journal.add(QUESTION, reply)
        journal.add_failure(QUESTION, {"timeout": 6})
        spent, failures = journal.spent, journal.failures
    with Journal(tmp_path / "a.jsonl") as again:
        assert again.replies("key") == replies
        assert again.replies("other") == []
        assert (again.spent, again.failures) == (spent, failures)
        assert again.spent["answers without token counts"] == 2
        again.forget("key")
        assert again.replies("key") == []
    with Journal(tmp_path / "a.jsonl") as third:
        assert third.replies("key") == []
        assert third.spent["answers"] == 2
    assert len((tmp_path / "a.jsonl").read_bytes().splitlines()) == 4


def test_half_a_line_is_cut_off_and_the_rest_stays(tmp_path):
    path = tmp_path / "a.jsonl"
    with Journal(path) as journal:
        journal.add(QUESTION, Reply("one"))
        journal.add(QUESTION, Reply("two"))
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for length in range(first + 1, len(content), 13):
        path.write_bytes(content[:length])
        with pytest.warns(UserWarning, match="last line is incomplete"):
            journal = Journal(path)
        with journal:
            assert journal.replies("key") == [Reply("one")]
            journal.add(QUESTION, Reply("three"))
        with Journal(path) as journal:
            assert [reply.text for reply in journal.replies("key")] == ["one", "three"]


def test_a_foreign_line_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    for wrong in (b"{}\n", b"[]\n", b"x\n"):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"a\.jsonl:1 is not an answer; remove that line"):
            Journal(path)


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
def test_two_runs_cannot_share_a_journal(tmp_path):
    with Journal(tmp_path / "a.jsonl"), pytest.raises(BlockingIOError, match="is in use"):
        Journal(tmp_path / "a.jsonl")


# A whole split


@pytest.mark.slow
def test_every_fault_in_one_run_and_nothing_is_lost_or_asked_twice(folder, capsys):
    faults = [cut, fail(429, retry_after="0.05"), fail(500), raw(b"{"), hang_up]
    turns = Counter()

    def script(asked: Asked, before: int) -> Behaviour:
        if before < 2:
            turns["faults"] += 1
            return hang if turns["faults"] == 1 else faults[turns["faults"] % len(faults)]
        return answer

    with serving(script) as server:
        report = main(arguments(folder, server, timeout=1.5, input_price=2.0, output_price=10.0))
        asked = Counter(one.key for one in server.asked)
        assert len(asked) == 9
        assert set(asked.values()) == {3}
        main(arguments(folder, server))
        assert sum(asked.values()) == len(server.asked)
    assert report["captions"] == report["items"] == 3
    assert report["requests"]["answers"] == 9
    assert sum(report["requests"]["failed attempts"].values()) == 18
    assert report["requests"]["prompt tokens"] == 900
    assert report["requests"]["cost"] == pytest.approx((900 * 2 + 90 * 10) / 1e6)
    assert "captions of train: 100%" in capsys.readouterr().err
    lines = journal_lines(folder)
    assert len(lines) == 9
    assert Counter(line["view"] for line in lines) == {"RGB": 3, "NI": 3, "composite": 3}
    assert all(KEY not in path.read_text() for path in (folder / "text").iterdir())


def test_a_wrong_answer_is_repaired_once(folder):
    bad = ['{"attributes": []}', "not JSON at all", '{"attributes": [{"attribute": "age"']

    def script(asked: Asked, before: int) -> Behaviour:
        if asked.repair:
            return answer if asked.view != "NI" else say("worse")
        return say(bad[len(server.asked) % 3], finish="length")

    with serving(script) as server:
        report = main(arguments(folder, server))
        assert len(server.asked) == 18
        main(arguments(folder, server))
        assert len(server.asked) == 18
    repair = next(one for one in server.asked if one.repair)
    assert "was cut before its end" in repair.body["messages"][2]["content"]
    assert re.search(r"is missing|is not JSON", repair.body["messages"][2]["content"])
    views = report["views"]
    assert [views[view]["complete"] for view in ("RGB", "NI", "composite")] == [3, 0, 3]
    assert views["NI"]["invalid"] == views["NI"]["repaired"] == 3
    assert views["NI"]["unknown"] == 1.0
    assert [one["item"] for one in report["invalid"]] == ["000000_cam1_0_00", "000001_cam1_0_00", "000002_cam1_0_00"]
    assert report["captions"] == 3
    assert [line["text"] for line in journal_lines(folder)].count("worse") == 3


def test_the_right_half_of_an_answer_counts(folder):
    half = json.dumps({"attributes": [{"attribute": "age", "value": "young", "confidence": 0.9}]})
    with serving(always(say(half))) as server:
        report = main(arguments(folder, server, limit=1))
    assert [view["partial"] for view in report["views"].values()] == [1, 1, 1]
    assert sentences(folder) == {"000000_cam1_0_00.png": "A young person."}
    assert report["views"]["RGB"]["unknown"] == pytest.approx(12 / 13, abs=1e-3)
    assert len(report["partial"][0]["why"]) == 12


def test_refusals_are_recorded_and_asked_again_only_on_demand(folder):
    willing = threading.Event()

    def script(asked: Asked, before: int) -> Behaviour:
        return answer if willing.is_set() or asked.view == "NI" else say(None, refusal="No people.")

    with serving(script) as server:
        report = main(arguments(folder, server))
        assert len(report["refused"]) == 6
        assert report["refused"][0] == {"item": "000000_cam1_0_00", "view": "composite", "why": ["No people."]}
        assert report["captions"] == 3
        willing.set()
        main(arguments(folder, server))
        assert len(server.asked) == 9
        report = main(arguments(folder, server, again=("refused",)))
        assert len(server.asked) == 15
        assert report["refused"] == []
        assert report["requests"]["answers"] == 15
    assert sum("No people." in line.get("refusal", "") for line in journal_lines(folder)) == 6


def test_what_fails_is_left_open_and_asked_the_next_time(folder):
    broken = threading.Event()
    broken.set()

    def script(asked: Asked, before: int) -> Behaviour:
        return fail(500) if broken.is_set() and asked.view == "composite" else answer

    with serving(script) as server:
        report = main(arguments(folder, server, attempts=2))
        assert len(report["with open questions"]) == 3
        assert sentences(folder) == {}
        assert report["requests"]["failed attempts"] == {"HTTP 500": 6}
        broken.clear()
        report = main(arguments(folder, server, attempts=2))
        assert len(server.asked) == 6 + 6 + 3
    assert report["with open questions"] == []
    assert len(sentences(folder)) == 3
    assert report["requests"]["failed attempts"] == {"HTTP 500": 6}


def test_a_dead_server_ends_the_run(folder, monkeypatch):
    monkeypatch.setattr(collect, "MAX_FAILURES", 3)
    dead = r"3 questions in a row got no answer; the last: .*HTTP 503"
    with serving(lambda asked, before: answer if len(server.asked) <= 4 else fail(503)) as server:
        with pytest.raises(UnusableError, match=dead):
            main(arguments(folder, server, attempts=1, threads=1))
        assert len(server.asked) == 7
    assert len(journal_lines(folder)) == 7
    assert list(sentences(folder)) == ["000000_cam1_0_00.png"]


def test_an_interrupted_run_keeps_what_is_under_way_and_goes_on(folder, monkeypatch):
    def script(asked: Asked, before: int) -> Behaviour:
        time.sleep(0.05)
        return answer

    with serving(script) as server:
        ask_about = command.ask_about
        interrupted: list[str] = []

        def interrupt_once(item, *rest, **options):
            if item.name.startswith("000002") and not interrupted:
                interrupted.append(item.name)
                raise KeyboardInterrupt
            return ask_about(item, *rest, **options)

        monkeypatch.setattr(command, "ask_about", interrupt_once)
        with pytest.raises(KeyboardInterrupt):
            main(arguments(folder, server, threads=2))
        assert len(journal_lines(folder)) == len(server.asked) >= 4
        assert 1 <= len(sentences(folder)) <= 2
        main(arguments(folder, server))
        assert len(server.asked) == 9
    assert len(sentences(folder)) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.slow
def test_a_killed_process_goes_on_where_it_was(folder, tmp_path_factory):
    """Killed without warning, in the middle of requests; only what was under way then is asked again."""
    killed = threading.Event()
    options = ["--modalities", "RGB", "NI", "--height", "16", "--threads", "2", "--model", "tiny"]

    def script(asked: Asked, before: int) -> Behaviour:
        if len(server.asked) > 6:
            killed.wait(60)
        return answer

    with serving(script) as server:
        line = ("examples.prepare.captions", "--data", folder, "--base-url", server.url, *options)
        journal = folder / "text" / "train.answers.jsonl"
        process = start(as_command, *line, says=tmp_path_factory.mktemp("said") / "said.txt")
        deadline = time.monotonic() + 300
        while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
            assert time.monotonic() < deadline
            assert process.is_alive()
            time.sleep(0.01)
        process.kill()
        process.join()
        killed.set()
        assert 3 <= len(journal_lines(folder)) < 9
        assert not (folder / "text" / "train.json").exists()
        main(arguments(folder, server))
    assert len(sentences(folder)) == 3
    questions = Counter(line["question"] for line in journal_lines(folder))
    assert len(questions) == 9
    assert set(questions.values()) == {1}
    assert len(server.asked) <= 9 + 2  # what the two threads had under way


def test_other_rules_for_sentences_need_no_new_questions(folder):
    with serving(always(answer)) as server:
        report = main(arguments(folder, server))
        strict = main(arguments(folder, server, min_confidence=0.9))
        assert len(server.asked) == 9
        assert strict["unknown in the caption"] > report["unknown in the caption"]
        assert strict["views"] == report["views"] | {
            name: report["views"][name] | {"share of the values that won": view["share of the values that won"]}
            for name, view in strict["views"].items()
        }
        main(arguments(folder, server, schema="vehicles"))
        assert len(server.asked) == 18


def test_captions_per_modality_are_read_as_such_and_take_no_new_questions(folder):
    with serving(always(answer)) as server:
        main(arguments(folder, server))
        with pytest.raises(
            FileExistsError, match=r"train\.json takes the place of captions per modality; move it away"
        ):
            main(arguments(folder, server, apart=True))
        (folder / "text" / "train.json").unlink()
        main(arguments(folder, server, apart=True))
        assert len(server.asked) == 9
    assert not (folder / "text" / "train.json").exists()
    items = read_split(folder, "train", MODALITIES, captions="required")
    assert all(len(item.captions) == 2 for item in items)
    assert any(item.captions[0] != item.captions[1] for item in items)
    assert any(caption.count(".") > 1 for item in items for caption in item.captions)


def test_a_limit_asks_less_and_forgets_nothing(folder):
    with serving(always(answer)) as server:
        assert main(arguments(folder, server, limit=2))["items"] == 2
        assert (len(server.asked), len(sentences(folder))) == (6, 2)
        main(arguments(folder, server))
        everything = sentences(folder)
        assert main(arguments(folder, server, limit=1))["items"] == 3
        assert len(server.asked) == 9
    assert sentences(folder) == everything
    assert len(everything) == 3


def test_captions_of_somebody_else_are_not_replaced(folder):
    (folder / "text").mkdir()
    (folder / "text" / "train.json").write_text("[]")
    with serving(always(answer)) as server:
        with pytest.raises(FileExistsError, match=r"train\.json was not written by this command.*--overwrite"):
            main(arguments(folder, server))
        assert server.asked == []
        main(arguments(folder, server, overwrite=True))
    assert len(sentences(folder)) == 3


def test_a_missing_modality_is_not_asked_about(folder):
    (folder / "train" / "NI" / "000001_cam1_0_00.png").unlink()
    with serving(always(answer)) as server:
        report = main(arguments(folder, server, missing_modality="absent"))
    assert Counter(asked.view for asked in server.asked) == {"RGB": 3, "NI": 2, "composite": 2}
    assert report["captions"] == 3


def test_the_report_counts_what_the_answers_say(folder):
    """Views that differ in a known way: RGB is certain of red, NI of nothing, the composite of blue, a little less."""

    def script(asked: Asked, before: int) -> Behaviour:
        value = {"RGB": ("red", 0.9), "NI": (None, 1.0), "composite": ("Blue", 0.8)}[asked.view]
        size = {"RGB": ("large", 0.1), "NI": ("large", 0.9), "composite": ("large", 0.9)}[asked.view]
        pairs = {"colour": value, "size": size}
        entries = [{"attribute": name, "value": v, "confidence": c} for name, (v, c) in pairs.items()]
        return say(json.dumps({"attributes": entries}), usage=False)

    schema = folder / "parcel.json"
    adjectives = [{"name": name, "meaning": "?", "role": "adjective"} for name in ("size", "colour")]
    schema.write_text(json.dumps({"subject": "parcel", "attributes": adjectives}))
    with serving(script) as server:
        report = main(arguments(folder, server, schema=str(schema)))
    assert set(sentences(folder).values()) == {"A large red parcel."}
    views = report["views"]
    assert list(views) == ["RGB", "NI", "composite"]
    assert [view["unknown"] for view in views.values()] == [0.0, 0.5, 0.0]
    assert [view["confidence"] for view in views.values()] == [0.5, 0.9, 0.85]
    # RGB: colour against composite, size against both; NI: size against both; composite: colour, size against both.
    assert [view["agreement with other views"] for view in views.values()] == [0.6667, 1.0, 0.6667]
    assert [view["share of the values that won"] for view in views.values()] == [0.5, 0.0, 0.5]
    assert report["attributes"]["colour"]["unknown"] == {"RGB": 0.0, "NI": 1.0, "composite": 0.0, "caption": 0.0}
    assert report["attributes"]["colour"]["commonest values"] == {"red": 3}
    assert report["length"] | {"tokens counted by": ""} == {
        "mean words": 4.0,
        "mean characters": 19.0,
        "mean tokens": 7.0,
        "longest in tokens": 7,
        "over 77 tokens": 0,
        "tokens counted by": "",
    }
    assert report["requests"]["answers without token counts"] == 9
    assert json.loads((folder / "text" / "train.report.json").read_text()) == report
    markdown = (folder / "text" / "train.report.md").read_text()
    assert report["attributes"]["colour"]["agreement"] == 0.0
    assert report["attributes"]["size"]["agreement"] == 1.0
    assert "| colour | 0 | 1 | 0 | 0 | 0 |" in markdown
    assert "- over 77 tokens: 0" in markdown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_url": ""}, "give either --base-url"),
        ({"local": Path()}, "give either --base-url"),
        ({"base_url": "localhost:8000"}, "must begin with http:// or https://; received 'localhost:8000'"),
        ({"model": ""}, "--base-url needs --model"),
        ({"min_confidence": 1.5}, r"min_confidence must lie in \[0, 1\]; received 1.5"),
        ({"threads": 0}, "threads must be at least 1; received 0"),
        ({"timeout": 0.0}, "timeout must be positive"),
        ({"per_minute": -1.0}, "per_minute must not be negative; received -1"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Arguments(**({"data": Path(), "base_url": "http://127.0.0.1:1/v1", "model": "m"} | changes))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("{", "must be a JSON object; received '{'"),
        ("[]", r"must be a JSON object; received '\[\]'"),
        ('{"stream": true, "n": 2}', "fields must leave n, stream to this command"),
    ],
)
def test_wrong_fields_are_named(folder, fields, message):
    with serving(always(answer)) as server, pytest.raises(ValueError, match=message):
        main(arguments(folder, server, fields=fields))


def test_the_command_says_what_is_wrong_and_what_is_left(folder, monkeypatch, capsys):
    def run(server: Server, *options: str):
        line = ["captions", "--data", str(folder), "--modalities", "RGB", "NI", "--base-url", server.url, *options]
        monkeypatch.setattr(sys, "argv", line)
        command.run_command()

    with serving(lambda asked, before: fail(400) if asked.view == "NI" else answer) as server:
        with pytest.raises(SystemExit, match="2"):
            run(server)
        assert "--base-url needs --model" in capsys.readouterr().err
        with pytest.raises(SystemExit, match=r"error: .* has no split 'valid'"):
            run(server, "--model", "tiny", "--split", "valid")
        with pytest.raises(SystemExit, match="3 items have open questions and no caption yet"):
            run(server, "--model", "tiny", "--height", "16")
    assert "0 captions of 3 items" in capsys.readouterr().out


@pytest.mark.slow
def test_from_rendered_images_to_a_trained_model(tmp_path):
    """The synthetic set, its own captions thrown away; the trainer reads what the server said."""
    data = write_dataset(tmp_path / "set", train_identities=4, test_identities=4, train_images=2, test_images=2)
    for split in ("train", "test"):
        (data / "text" / f"{split}.json").unlink()
    everything = {"schema": "vehicles", "modalities": ("RGB", "NI", "TI"), "threads": 2}
    with serving(then_well(fail(500))) as server:
        for split in ("train", "test"):
            report = main(arguments(data, server, split=split, **everything))
            assert report["captions"] == report["items"]
            assert report["requests"]["answers"] == 4 * report["items"]
    modalities = ("RGB", "NI", "TI")
    items = read_split(data, "train", modalities, captions="required")
    assert all(len(item.captions) == 1 and item.captions[0].startswith("A") for item in items)
    required = replace(DATA, modalities=modalities, captions="required", image_size=(32, 32))
    train_toy(data, tmp_path / "run", data=required, schedule=replace(SCHEDULE, epochs=1))
    assert (tmp_path / "run" / "checkpoint.pt").is_file()
