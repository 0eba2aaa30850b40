"""`make train`: from a text to a model that the engine loads, stopped, begun again, and misused."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from course_lib.assets import AssetError
from course_lib.model.gpt import load_gpt
from course_lib.tokenizer import Tokenizer
from course_lib.train import __main__ as command
from course_lib.train import run, texts
from course_lib.train.checkpoint import checkpoints
from course_lib.train.loop import TrainingStopped
from course_lib.train.run import Plan, Request, hold_out, train
from course_lib.train.step import evaluate
from course_lib.train.texts import read_text, split

SMALL = {"batch_size": 2, "block_size": 32}
QUICK = ["--model", "course-1m", "--steps", "24", "--batch-size", "2", "--block-size", "32", "--threads", "1"]


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "story.txt"
    lines = [f"Line {i} tells of the king and of {'no' if i % 3 else 'one'} queen.\n\n" for i in range(600)]
    path.write_text("".join(lines))
    return path


def go(*arguments: str) -> int:
    return command.main([*QUICK, *arguments])


def test_a_run_ends_in_a_model_that_loads_and_scores_as_it_says(story, tmp_path, capsys):
    runs = tmp_path / "runs"
    assert go("--data", str(story), "--runs", str(runs)) == 0
    shown = capsys.readouterr().out
    assert "bits/byte held out" in shown
    assert "make engine MODEL=mine" in shown
    facts = json.loads((runs / "mine" / "training.json").read_text())
    tokenizer = Tokenizer.load(runs / "mine" / "tokenizer.json")
    look = hold_out(read_text(story), tokenizer)
    model = load_gpt(runs / "mine")
    found = evaluate(model, look.ids, look.text_bytes, block_size=32)
    assert found == pytest.approx(facts["bits_per_byte"], rel=0.02), "but for the weights' last bits"
    assert facts["tokens"] == 24 * 2 * 32
    assert facts["recipe"]["steps"] == 24
    assert len([point for point in facts["curve"] if "bits_per_byte" in point]) == 8
    assert facts["curve"][-1]["loss"] < facts["curve"][0]["loss"]


def test_transformers_loads_the_model_and_tokenizer(story, tmp_path):
    from tokenizers import Tokenizer as Theirs
    from transformers import GPT2LMHeadModel

    assert go("--data", str(story), "--runs", str(tmp_path)) == 0
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "mine", dtype=torch.float32).eval()
    ours, words = Tokenizer.load(tmp_path / "mine" / "tokenizer.json"), "Line 7 tells of the queen"
    ids = ours.encode(words)
    assert Theirs.from_file(str(tmp_path / "mine" / "tokenizer.json")).encode(words).ids == ids
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits
        torch.testing.assert_close(
            load_gpt(tmp_path / "mine").eval()(torch.tensor([ids])), expected, rtol=1e-4, atol=1e-4
        )


def test_killed_from_outside_the_same_command_goes_on(story, tmp_path):
    arguments = [*QUICK, "--data", str(story), "--runs"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    folder = tmp_path / "cut" / "course-1m-story-2min" / "checkpoints"
    program = [sys.executable, "-m", "course_lib.train", *arguments]
    process = subprocess.Popen([*program, str(tmp_path / "cut")], env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not checkpoints(folder) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for name in ("cut", "whole"):
        subprocess.run(
            [*program, str(tmp_path / name)], env=environment, check=True, stdout=subprocess.DEVNULL
        )
    whole, cut = ((tmp_path / name / "mine" / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_a_finished_run_is_kept_and_new_begins_anew(story, tmp_path):
    assert go("--data", str(story), "--runs", str(tmp_path)) == 0
    first = (tmp_path / "mine" / "model.safetensors").read_bytes()
    assert go("--data", str(story), "--runs", str(tmp_path)) == 0, "nothing is left to do"
    assert (tmp_path / "mine" / "model.safetensors").read_bytes() == first
    assert go("--data", str(story), "--runs", str(tmp_path), "--new", "--seed", "5") == 0
    assert (tmp_path / "mine" / "model.safetensors").read_bytes() != first
    assert (tmp_path / "mine.before" / "model.safetensors").read_bytes() == first
    assert len(list(tmp_path.glob("course-1m-story-2min-before-*"))) == 1


def test_other_settings_than_the_run_was_begun_with_are_refused(story, tmp_path, capsys):
    assert go("--data", str(story), "--runs", str(tmp_path)) == 0
    assert go("--data", str(story), "--runs", str(tmp_path), "--lr", "0.5") == 1
    assert "was begun with lr 0.006, not 0.5" in capsys.readouterr().err


def test_steps_may_change_until_the_rate_falls(story, tmp_path):
    text = read_text(story)
    request = Request("course-1m", "2min", 0.0, {**SMALL, "steps": 40})

    def stop(record):
        if record["step"] == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(request, text, tmp_path, torch.device("cpu"), report=stop)
    shorter = Request("course-1m", "2min", 0.0, {**SMALL, "steps": 20})
    facts = train(shorter, text, tmp_path, torch.device("cpu"))
    assert (facts["recipe"]["steps"], facts["recipe"]["cooldown"]) == (20, 6)
    with pytest.raises(TrainingStopped, match="has made 20 of 20 steps"):
        train(request, text, tmp_path, torch.device("cpu"))


def test_two_processes_in_one_folder_are_refused(story, tmp_path):
    request = Request("course-1m", "2min", 0.0, {**SMALL, "steps": 20})
    with run.alone(tmp_path), pytest.raises(TrainingStopped, match="Another process is training"):
        train(request, read_text(story), tmp_path, torch.device("cpu"))


def test_the_budget_becomes_steps(story, tmp_path, monkeypatch):
    seconds = []

    def slow(*arguments):
        seconds.append(2.0)
        return 2.0

    monkeypatch.setattr(run, "seconds_a_step", slow)
    text = read_text(story)
    tokenizer = run.tokenizer_for(text, tmp_path / "tokenizer.json")
    corpus = run.prepare(text.train, tokenizer, tmp_path / "tokens")
    for budget, steps in (("2min", 51), ("15min", 382)):
        plan = run.new_plan(
            Request("course-1m", budget, 0.0, {}), text, tokenizer, corpus, torch.device("cpu")
        )
        assert plan.recipe.steps == steps
    full = run.new_plan(Request("course-1m", "full", 0.0, {}), text, tokenizer, corpus, torch.device("cpu"))
    assert full.recipe.steps * full.recipe.tokens == pytest.approx(run.FULL_TOKENS["course-1m"], rel=0.001)
    assert len(seconds) == 2, "a full run needs no measurement"


def test_measuring_a_step_leaves_the_model_as_it_was(story, tmp_path):
    text = read_text(story)
    tokenizer = run.tokenizer_for(text, tmp_path / "tokenizer.json")
    corpus = run.prepare(text.train, tokenizer, tmp_path / "tokens")
    model = run.MODELS["course-1m"](tokenizer.vocab_size, 0.0, 0)
    before = [weight.clone() for weight in model.parameters()]
    assert run.seconds_a_step(model, run.replace(run.USUAL, batch_size=2, block_size=32), corpus) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_plan_survives_the_disk(tmp_path):
    plan = Plan("course-1m", "corpus", "2min", 0.1, "", run.with_steps(run.USUAL, 100))
    plan.write(tmp_path)
    assert Plan.read(tmp_path) == plan
    (tmp_path / "run.json").write_text('{"model": "course-1m"')
    with pytest.raises(TrainingStopped, match=r"run.json cannot be read.*NEW=1"):
        Plan.read(tmp_path)


def test_the_modern_design_is_trained_and_saved_as_a_qwen3(story, tmp_path):
    from transformers import Qwen3ForCausalLM

    arguments = ["--model", "modern-1m", "--steps", "20", "--batch-size", "2", "--block-size", "32"]
    assert command.main([*arguments, "--data", str(story), "--runs", str(tmp_path), "--tensorboard"]) == 0
    theirs = Qwen3ForCausalLM.from_pretrained(tmp_path / "mine", dtype=torch.float32).eval()
    from course_lib.model.load import load_model, open_checkpoint

    ours = load_model(open_checkpoint(tmp_path / "mine"), torch.device("cpu"), torch.float32)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    assert list((tmp_path / "modern-1m-story-2min" / "tensorboard").glob("events.*"))


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--model", "gpt5"], 2, "There is no model 'gpt5'"),
        (["--data", "no/such/file.txt"], 1, "There is no text 'no/such/file.txt'"),
        (["--data", "tinystories"], 1, "COURSE_OFFLINE forbids to fetch it"),
        (["--batch-size", "0"], 1, "must be 1 or more"),
    ],
)
def test_what_cannot_work_is_said_in_a_sentence(arguments, status, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    (tmp_path / "ok.txt").write_text("A short text. " * 1000)
    given = [
        "--steps",
        "20",
        "--runs",
        str(tmp_path / "runs"),
        "--data",
        str(tmp_path / "ok.txt"),
        *arguments,
    ]
    assert command.main(given) == status
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


def test_a_text_too_small_or_not_utf8_is_refused(tmp_path):
    (tmp_path / "small.txt").write_text("Too little.")
    with pytest.raises(ValueError, match="small has 11 characters of text; expected 10,000 or more"):
        read_text(tmp_path / "small.txt")
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9" * 9000)
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8"):
        read_text(tmp_path / "latin.txt")


def test_a_folder_is_its_text_files_in_order_and_the_last_are_held_out(tmp_path):
    for i in range(40):
        (tmp_path / f"{i:02}.md").write_text(f"{i:02} " * 300)
    (tmp_path / "picture.png").write_bytes(b"\xff" * 1000)
    text = read_text(tmp_path)
    assert [document[:2] for document in text.train] == [f"{i:02}" for i in range(38)]
    assert [part[:2] for part in text.held_out.split("\n\n")] == ["38", "39"]


def test_one_document_is_cut_at_a_paragraph():
    paragraphs = [f"Paragraph {i}. " * 20 for i in range(100)]
    whole = "\n\n".join(paragraphs)
    text = split("one", [whole])
    assert text.train[0] + text.held_out == whole
    assert text.held_out.startswith("Paragraph")
    assert 0.03 < len(text.held_out) / len(whole) <= 0.051


def test_documents_come_whole_over_a_network_that_cuts_characters(monkeypatch, tmp_path):
    """Against a server of our own: the pieces that are read end within a character and within a separator."""
    import http.server
    import threading

    content = texts.END_OF_TEXT.join(["Zwölf Boxkämpfer. " * 50000, "日本語。" * 90000, "End."]).encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/text"
        known = texts.Download("a test", url, lambda: texts.one_file(url, 10**9), 10**9)
        monkeypatch.setitem(texts.DOWNLOADS, "test", known)
        monkeypatch.setenv("COURSE_DATA", str(tmp_path))
        monkeypatch.delenv("COURSE_OFFLINE")
        found = texts.fetched("test")
    finally:
        server.shutdown()
        server.server_close()
    assert [len(document) for document in found] == [900000 - 1, 360000, 4]
    assert texts.fetched("test") == found, "the second time from the disk"

    monkeypatch.setitem(
        texts.DOWNLOADS, "gone", texts.Download("gone", url, lambda: texts.one_file(url, 9), 9)
    )
    with pytest.raises(AssetError, match="could not be fetched"):
        texts.fetched("gone")
    assert not (tmp_path / "texts" / "gone.txt").exists()
