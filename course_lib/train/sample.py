"""What a model says while it learns."""

import torch
from torch import nn

from course_lib.tokenizer import Tokenizer


@torch.no_grad()
def sample(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompt: str = "\n",
    tokens: int = 100,
    temperature: float = 0.8,
    context: int = 256,
    seed: int = 0,
) -> str:
    """Continue `prompt` by `tokens` tokens, and return prompt and continuation.

    Each token is computed from scratch, so no key/value cache is needed: fine for a look now and then. The
    random numbers come from a generator of its own: training goes on as if nobody had looked.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    ids = tokenizer.encode(prompt)
    for _ in range(tokens):
        window = torch.tensor([ids[-context:]], device=device)
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(window)[0, -1].float().cpu()  # (V,)
        probabilities = torch.softmax(logits / temperature, dim=-1)
        ids.append(int(torch.multinomial(probabilities, 1, generator=generator)))
    model.train(was_training)
    return tokenizer.decode(ids, skip_special=True)
