"""What a decoder must know to build itself: sizes, and the choices in which the families differ."""

from dataclasses import dataclass
from typing import Literal

from course_lib.model.errors import CheckpointError

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class RopeParameters:
    """How rotary embeddings turn, under Hugging Face's names. `rope_type` says how they were stretched:

    default   not at all
    linear    all angles divided by `factor`
    llama3    only slow pairs divided by `factor`; between `low_freq_factor` and `high_freq_factor` full
              turns within the original length lies the ramp
    yarn      likewise, between `beta_slow` and `beta_fast` turns; cosines and sines take the factor
              `attention_factor`
    table     each pair's angle divided by its own number in `factors`
    """

    rope_theta: float = 10_000.0
    rope_type: str = "default"
    factor: float = 1.0
    original_max_position_embeddings: int = 8192
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """One shape for all families: sizes, named as in Hugging Face's Llama, and choices, Llama's by default.

    rope                None: positions are learned, one vector each (GPT-2)
    local_rope          what layers with a sliding window use instead of `rope`, if anything (Gemma 3)
    attention_bias      on the query, key and value projections; output_bias: on the one behind attention
    fused_qkv           the checkpoint stores those three projections as one matrix (GPT-2)
    norm                "rms" or "layer"; norm_offset is added to the stored weight (Gemma: 1)
    qk_norm             each query and key head is normalized before it is turned (Qwen 3, Gemma 3)
    post_norms          what attention and MLP give is normalized before it is added (Gemma 3)
    gated_mlp           three matrices, act(gate) * up; otherwise two
    attention_scale     multiplies the scores; None: 1 / sqrt(head_dim)
    logit_softcap       logits c become c * tanh(logits / c)
    layer_types         FULL or SLIDING for each layer; repeated where it is shorter than the model
    num_experts         0: one MLP a layer; otherwise so many, of which each token takes num_experts_per_tok
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    norm_eps: float = 1e-5
    rope: RopeParameters | None = RopeParameters()
    local_rope: RopeParameters | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    fused_qkv: bool = False
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0
    qk_norm: bool = False
    post_norms: bool = False
    activation: str = "silu"
    gated_mlp: bool = True
    attention_scale: float | None = None
    embedding_scale: float = 1.0
    logit_softcap: float | None = None
    sliding_window: int | None = None
    layer_types: tuple[str, ...] = (FULL,)
    num_experts: int = 0
    num_experts_per_tok: int = 0
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError(
                f"{self.num_attention_heads} query heads cannot share {self.num_key_value_heads} key/value "
                "heads evenly: the first number must be a multiple of the second."
            )
        if self.rope and self.head_dim % 2:
            raise CheckpointError(
                f"head_dim is {self.head_dim}; rotary embeddings turn pairs, so it must be even."
            )
        if self.num_experts_per_tok > self.num_experts:
            raise CheckpointError(
                f"Each token is to take {self.num_experts_per_tok} experts; there are {self.num_experts}."
            )
        if SLIDING in self.layer_types and not self.sliding_window:
            raise CheckpointError("Some layers are to have a sliding window, but its width is not given.")

    def window(self, layer: int) -> int | None:
        """How many tokens a layer's queries see, themselves included; None: all."""
        sliding = self.layer_types[layer % len(self.layer_types)] == SLIDING
        return self.sliding_window if sliding else None

    def layer_rope(self, layer: int) -> RopeParameters | None:
        return self.local_rope if self.local_rope and self.window(layer) else self.rope

    @property
    def parameters(self) -> int:
        """How many numbers the model has learned; a tied output head is not counted twice."""
        c, f = self.hidden_size, self.intermediate_size
        query, key_value = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = c * (query + 2 * key_value) + query * c
        attention += self.attention_bias * (query + 2 * key_value) + self.output_bias * c
        attention += self.qk_norm * 2 * self.head_dim
        inner = 2 if self.gated_mlp else 1  # matrices that lead into the MLP's inner width
        mlp = (inner + 1) * c * f + self.mlp_bias * (inner * f + c)
        if self.num_experts:
            mlp = self.num_experts * (mlp + c)  # c: a row of the router
        norm = c * (2 if self.norm == "layer" else 1)
        layer = attention + mlp + norm * (4 if self.post_norms else 2)
        tables = self.vocab_size * c * (1 if self.tie_word_embeddings else 2)
        positions = 0 if self.rope else self.max_position_embeddings * c
        return tables + positions + self.num_hidden_layers * layer + norm
