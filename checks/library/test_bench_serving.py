"""The benches of the engine run and count right; how fast it is, a quiet machine has to say."""

import dataclasses
import io

import pytest
from rich.console import Console

from checks.tiny import tiny_engine, tiny_llama, tiny_model
from course_lib.bench import serving
from course_lib.bench.decode import transformers_twin
from course_lib.bench.ratios import median_ratio, steepest_growth
from course_lib.bench.serving import Load, Spent

MODEL = tiny_model(tiny_llama(max_position_embeddings=512))


def test_a_ratio_is_the_middle_one_of_the_rounds():
    assert median_ratio([2, 30, 3], [1, 1, 1]) == 3  # a disturbed round does not count
    assert median_ratio([10, 2], [5, 4]) == pytest.approx(1.25)
    with pytest.raises(ValueError):
        median_ratio([1, 2], [1])


def test_growth_is_measured_against_the_size():
    assert steepest_growth({1: 3.0, 10: 30.0}) == pytest.approx(1)
    assert steepest_growth({1: 1.0, 2: 1.0, 4: 1.0}) == pytest.approx(0.5)
    assert steepest_growth({1: 1.0, 2: 2.0, 4: 8.0}) == pytest.approx(2)  # quadratic at the end


def test_a_load_compares_speeds():
    load = Load("x", "float32", 100, ours=[Spent(2.0, 4.0)], transformers=[Spent(6.0, 6.0)])
    assert (load.ratio, load.processor_ratio) == (3.0, 1.5)
    assert load.speed(load.ours) == 50


@pytest.mark.parametrize("short", [True, False])
def test_loads_are_what_their_names_say(short):
    work = serving.loads(31, short)
    sizes = {name: len(requests) for name, requests in work.items()}
    many = 16 if short else 64
    assert sizes == {"batch 1": 1, "batch 8": 8, "prefill 512": 1, f"{many} mixed": many}
    assert [len(prompt) for prompt, _ in work["prefill 512"]] == [512]
    assert all(0 <= token < 31 for requests in work.values() for prompt, _ in requests for token in prompt)


def test_both_engines_do_all_of_the_work(monkeypatch):
    """Ours computes every token it was asked for, and Transformers as many as the longest of each batch."""
    engine = tiny_engine(MODEL, 256)
    twin = transformers_twin(MODEL.config, dict(MODEL.named_weights()), MODEL.dtype)
    work = [([i + 1] * (3 + i), 2 + i % 5) for i in range(10)]
    asked, generate = [], twin.generate

    def noted(ids, **how):
        asked.append((*ids.shape, how["max_new_tokens"]))
        return generate(ids, **how)

    monkeypatch.setattr(twin, "generate", noted)
    serving.run_ours(engine, work)
    serving.run_transformers(twin, work)
    assert not engine.has_work
    assert engine.counters.finished == {"length": len(work)}
    assert asked == [(8, 10, 6), (2, 12, 6)]  # (texts, tokens of the longest, new tokens)


def test_the_step_is_taken_apart():
    assert serving.step_time(MODEL, 3, 20, 2) > 0
    assert serving.queue_time(50, 3) > 0
    share = serving.scheduler_share(MODEL, 5, 20, 3)
    assert share["requests"] == 5
    assert 0 < share["books"] < 1


def test_requests_in_the_middle_of_their_texts():
    engine = tiny_engine(MODEL, 64, prefix_cache="off")
    requests = serving.running(engine, 3, 20)
    engine.step()
    assert [request.num_tokens for request in requests] == [21] * 3
    assert engine.counters.computed_tokens == 3  # one each: nothing was read


def test_tables_fit_a_terminal():
    load = Load("64 mixed", "bfloat16", 1000, [Spent(1.0, 1.0)], [Spent(2.0, 2.0)])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(serving.race_table([load, dataclasses.replace(load, dtype="float32")]))
    console.print(serving.growth_table("A step by batch", "requests", "ms", {1: 10.0, 8: 16.0, 64: 70.0}))
    text = console.export_text()
    assert "64 mixed" in text
    assert "2.00" in text
    assert "0.20" in text  # from 1 to 8: 1.6 times the time for 8 times the requests
    assert "…" not in text
