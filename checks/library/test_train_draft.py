"""Learning from a teacher, and what a target accepts from its draft."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from course_lib.bench import train as bench
from course_lib.model.gpt import GPT, GPTConfig
from course_lib.tokenizer import Tokenizer
from course_lib.train.data import prepare
from course_lib.train.distill import TeachingLoader
from course_lib.train.loader import TokenLoader
from course_lib.train.step import train_step

LETTERS = Tokenizer({bytes([byte]): i for i, byte in enumerate(b"abcdefghij ")}, {})


def gpt(seed: int, width: int = 16) -> GPT:
    torch.manual_seed(seed)
    model = GPT(GPTConfig(11, n_positions=48, n_embd=width, n_layer=2, n_head=2))
    with torch.no_grad():
        model.wte.weight.mul_(10)  # opinions that differ
    return model.eval()


@pytest.fixture
def loader(tmp_path):
    rng = np.random.default_rng(0)
    shards = prepare(["".join(rng.choice(list("abcdefghij "), 3000))], LETTERS, tmp_path).paths
    return lambda: TokenLoader(shards, batch_size=4, block_size=16)


@pytest.mark.parametrize("truth", [0.0, 0.25, 1.0])
def test_targets_are_the_teachers_probabilities_and_the_truth(loader, truth):
    teacher = gpt(0)
    x, y = loader().next_batch()
    inputs, opinion = TeachingLoader(loader(), teacher, truth).next_batch()
    assert np.array_equal(inputs, x)
    assert opinion.dtype == np.float32
    np.testing.assert_allclose(opinion.sum(-1), 1, rtol=1e-5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        taught = teacher(torch.from_numpy(x)).float().softmax(-1).numpy()
    expected = (1 - truth) * taught + truth * np.eye(11)[y]
    np.testing.assert_allclose(opinion, expected, rtol=1e-4, atol=1e-6)


def test_the_whole_truth_is_ordinary_training(loader):
    losses = []
    for source in (loader(), TeachingLoader(loader(), gpt(0), truth=1.0)):
        model = gpt(1)
        x, y = source.next_batch()
        batch = [(torch.from_numpy(x), torch.from_numpy(y))]
        losses.append(
            train_step(model, torch.optim.SGD(model.parameters(), lr=0.1), batch, dtype=torch.float32)
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_student_comes_to_think_as_its_teacher(loader):
    teacher, student = gpt(0), gpt(1)
    source = TeachingLoader(loader(), teacher)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    prompts = torch.randint(11, (16, 12), generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def divergence() -> float:
        mine, theirs = (model(prompts).log_softmax(-1).flatten(0, 1) for model in (student, teacher))
        return F.kl_div(mine, theirs, log_target=True, reduction="batchmean").item()

    before = divergence()
    for _ in range(150):
        x, y = source.next_batch()
        train_step(student, optimizer, [(torch.from_numpy(x), torch.from_numpy(y))])
    assert divergence() < before / 2


def test_resuming_is_the_inner_loaders(loader):
    source, again = TeachingLoader(loader(), gpt(0)), TeachingLoader(loader(), gpt(0))
    source.next_batch()
    again.load_state_dict(source.state_dict())
    for a, b in zip(source.next_batch(), again.next_batch(), strict=True):
        assert np.array_equal(a, b)


@torch.no_grad()
def speculate(target: GPT, draft: GPT, prompt: torch.Tensor, new: int, k: int) -> tuple[int, int]:
    """Greedy speculation as an engine does it: draft k tokens, verify, keep what agrees and one more."""
    ids, accepted, rounds = prompt, 0, 0
    while ids.shape[1] - prompt.shape[1] + k < new:
        guess = bench.continue_greedily(draft, ids, k)
        right = target(guess).argmax(-1)[:, ids.shape[1] - 1 :]  # what the target says after each guess
        run = 0
        while run < k and guess[0, ids.shape[1] + run] == right[0, run]:
            run += 1
        ids = torch.cat([guess[:, : ids.shape[1] + run], right[:, run : run + 1]], dim=1)
        accepted, rounds = accepted + run, rounds + 1
    return accepted, rounds


@pytest.mark.parametrize("k", [1, 4])
def test_acceptance_counted_on_the_targets_path_is_that_of_speculation(k):
    target, draft = gpt(0), gpt(0)
    with torch.no_grad():
        for weight in draft.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    prompts = torch.randint(11, (6, 8), generator=torch.Generator().manual_seed(1))
    expected = [speculate(target, draft, prompt[None], 30, k) for prompt in prompts]
    found = bench.greedy_acceptance(target, draft, prompts, 30, k)
    assert found == tuple(map(sum, zip(*expected, strict=True)))
    assert 0 < found[0] < k * found[1], "neither nothing nor everything, or the test would show little"


def test_a_model_accepts_all_of_its_own_guesses():
    prompts = torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(1))
    accepted, rounds = bench.greedy_acceptance(gpt(0), gpt(0), prompts, 20, 4)
    assert accepted == 4 * rounds > 0
