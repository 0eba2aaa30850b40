"""The perplexity that quantizing costs: `course_lib.bench.perplexity` on course-10m."""

import math

import pytest
import torch

from course_lib.bench.perplexity import FORMATS, Format, measure
from course_lib.engine.load import load
from course_lib.train.run import hold_out
from course_lib.train.texts import read_text

TOKENS = 600  # more than a window of 512


@pytest.fixture(scope="module")
def exact():
    return measure("course-10m", "corpus", FORMATS[0], TOKENS)


def test_perplexity_by_its_definition(exact):
    loaded = load("course-10m")
    ids = hold_out(read_text("corpus"), loaded.tokenizer, TOKENS).ids
    probs = []
    with torch.inference_mode():
        for window in (range(512), range(512, TOKENS)):
            logits = loaded.model(ids[None, window.start : window.stop])[0].double()
            probs += [logits[i - window.start].softmax(-1)[ids[i + 1]].item() for i in window]
    assert len(probs) == TOKENS
    assert exact.perplexity == pytest.approx(math.prod(p ** (-1 / TOKENS) for p in probs), rel=1e-5)


@pytest.mark.parametrize(
    ("form", "worse", "bits"),
    [
        (Format("bf16", torch.bfloat16), 0.01, 16),
        (Format("int8", torch.float32, "int8"), 0.005, 8),
        (Format("int4", torch.float32, "int4", 32), 0.1, 4),
        (Format("fp32", torch.float32, kv_cache_dtype="int8"), 0.01, 32),
        (Format("int8", torch.float32, "int8", kv_cache_dtype="int8"), 0.01, 8),
    ],
)
def test_fewer_bits_cost_little(exact, form, worse, bits):
    result = measure("course-10m", "corpus", form, TOKENS)
    assert result.perplexity != exact.perplexity
    assert abs(math.log(result.perplexity / exact.perplexity)) < worse
    assert result.weight_bytes < exact.weight_bytes * (bits / 32 + 0.15)
    assert (result.kv_bytes < exact.kv_bytes / 3) == (form.kv_cache_dtype == "int8")
