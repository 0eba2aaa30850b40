"""`python -m checks.parity`: how far each family's logits are from Transformers', on tiny random checkpoints.

float32 on the CPU; the largest difference of any logit, with weights as stored and as packed for a processor.
"""

import tempfile
from pathlib import Path

import torch

from checks.library.test_families import FAMILIES, TOLERANCE, reference_model, worst
from course_lib.model import load_model, open_checkpoint


def main() -> None:
    print(f"{'family':28}{'as stored':>12}{'packed':>12}{'spread of the logits':>24}")
    for name, (model_type, options) in FAMILIES.items():
        reference = reference_model(model_type, options)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            reference.save_pretrained(folder)
            ids = torch.randint(0, 71, (3, 97), generator=torch.Generator().manual_seed(0))
            expected = reference(ids).logits
            checkpoint = open_checkpoint(Path(folder))
            errors = [worst(load_model(checkpoint, pack=pack)(ids), expected) for pack in (False, True)]
        print(f"{name:28}{errors[0]:12.1e}{errors[1]:12.1e}{expected.std().item():24.2f}")
    print(f"tolerance: {TOLERANCE:.0e}")


if __name__ == "__main__":
    main()
