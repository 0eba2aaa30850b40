"""The thirty days as data: what README.md, days/README.md and `make progress` are drawn from.

A day that is not built yet shows its plan, which stands in this file. Once `solutions/day_NN_*/lesson.md`
exists, the lesson's own title, summary, minutes and exercises take the plan's place, so that nothing is said
twice.

    python -m course_lib.classroom.syllabus --write     # bring the pages' generated parts up to date
    python -m course_lib.classroom.syllabus --check     # say what is out of date, exit 1 if anything is
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from course_lib.classroom import lesson as lessons


@dataclass(frozen=True)
class Day:
    """One day. `exercises` are public names: a part's dotted path under `course_lib`, or `dayNN.name`.

    `minutes` is the learner's time, 120 where there is no lesson yet. `folder` is the name under days/ and
    solutions/. `core`, the minutes of the exercises that the day requires, is known for built days only.
    """

    number: int
    slug: str
    title: str
    summary: str
    exercises: tuple[str, ...]
    minutes: int = 120
    built: bool = False
    core: int = 0

    @property
    def folder(self) -> str:
        return f"day_{self.number:02d}_{self.slug}"

    @property
    def week(self) -> int:
        return next(week.number for week in WEEKS if self.number in week.days)


@dataclass(frozen=True)
class Week:
    """A week: its days, and the artifact that its last day completes."""

    number: int
    title: str
    days: range
    artifact: str


WEEKS = (
    Week(1, "Foundations", range(1, 8), "A complete decoder-only forward pass"),
    Week(2, "Training and architecture", range(8, 15), "A 10M-parameter GPT, trained end to end"),
    Week(3, "Inference and hardware", range(15, 22), "Hand-written CUDA and Metal attention kernels"),
    Week(4, "Optimization and capstone", range(22, 31), "A complete inference engine and its benchmarks"),
)


def syllabus(root: Path | None = None) -> list[Day]:
    """All thirty days in order, each built one as its lesson says, the others as planned.

    `root` is the repository to look in, by default this one. LessonError for a lesson that does not parse.
    """
    base = root or lessons.root()
    return [_as_built(day, base) if day.number in lessons.available_days(base) else day for day in PLAN]


def find(number: int, root: Path | None = None) -> Day:
    """One day, by its number. Raises ValueError for a number that is not 1 to 30."""
    for day in syllabus(root):
        if day.number == number:
            return day
    raise ValueError(f"there is no day {number!r}: the course has days 1 to {len(PLAN)}")


def _as_built(day: Day, base: Path) -> Day:
    folder = lessons.find_day(day.number, base)
    lesson = lessons.load_lesson(folder)
    exercises = [lesson.exercises[name] for name in lesson.order]
    return replace(
        day,
        slug=folder.name[len("day_NN_") :],
        title=lesson.title,
        summary=lesson.summary,
        minutes=lesson.minutes,
        exercises=tuple(e.name for e in exercises if e.kind not in ("quiz", "warmup")),
        built=True,
        core=sum(e.minutes for e in exercises if e.core),
    )


PLAN = (
    Day(
        1,
        "math_fluency",
        "Math fluency drills",
        "What a language model is as a program, and the arithmetic it runs on: shapes, number formats, "
        "softmax, cross-entropy, sampling, counting FLOPs and bytes.",
        (
            "numerics.contractions",
            "numerics.softmax",
            "numerics.logsumexp",
            "numerics.cross_entropy",
            "numerics.perplexity",
            "numerics.numerical_gradient",
            "numerics.sample_categorical",
            "hardware.matmul_cost",
            "numerics.round_to_bfloat16",
        ),
    ),
    Day(
        2,
        "tensors_and_autograd",
        "Tensors and autograd",
        "Strides, views and broadcasting in NumPy, PyTorch and MLX, and reverse-mode differentiation on "
        "scalars.",
        (
            "tensors.broadcast_shapes",
            "tensors.contiguous_strides",
            "tensors.split_heads",
            "tensors.merge_heads",
            "tensors.sliding_windows",
            "autograd.scalar.Value",
            "autograd.scalar.topological_order",
            "autograd.scalar.backward",
        ),
    ),
    Day(
        3,
        "neural_networks",
        "Neural networks by hand",
        "An MLP language model with every backward pass written out, checked by finite differences, "
        "trained by SGD.",
        (
            "nn.linear_backward",
            "nn.gelu",
            "nn.gelu_backward",
            "nn.embedding_backward",
            "nn.cross_entropy_backward",
            "nn.sgd_step",
            "nn.mlp_train_step",
        ),
    ),
    Day(
        4,
        "training_dynamics",
        "Training dynamics and a tensor autograd",
        "Initialization, LayerNorm and RMSNorm, AdamW, schedules and clipping, and autograd that broadcasts.",
        (
            "nn.layer_norm_backward",
            "nn.rms_norm_backward",
            "train.adamw_step",
            "train.cosine_schedule",
            "train.clip_grad_norm",
            "autograd.tensor.unbroadcast",
            "autograd.tensor.Tensor.matmul",
        ),
    ),
    Day(
        5,
        "tokenization",
        "Tokenization",
        "From text to bytes to tokens and back: byte-level BPE trained, encoded, decoded and streamed, "
        "token for token what GPT-2 and GPT-4 do.",
        (
            "tokenizer.pair_counts",
            "tokenizer.merge_pair",
            "tokenizer.train_bpe",
            "tokenizer.encode_chunk",
            "tokenizer.decode",
            "tokenizer.split_special_tokens",
            "tokenizer.IncrementalDetokenizer",
        ),
    ),
    Day(
        6,
        "attention",
        "Attention",
        "Queries, keys and values, masks, many heads, positions, and what attention costs in FLOPs and "
        "bytes.",
        (
            "model.attention.scaled_dot_product",
            "model.attention.causal_mask",
            "model.attention.multi_head_attention",
            "model.attention.attention_cost",
            "model.attention.sinusoidal_positions",
            "model.attention.attention_backward",
        ),
    ),
    Day(
        7,
        "whole_gpt",
        "The Transformer block and a whole GPT",
        "GPT-2's forward pass in pure NumPy, real weights loaded into it, and text coming out.",
        (
            "model.numpy_gpt.block",
            "model.numpy_gpt.gpt_forward",
            "model.numpy_gpt.load_gpt2",
            "model.numpy_gpt.count_parameters",
            "decode.sample",
            "decode.generate",
        ),
    ),
    Day(
        8,
        "pretraining",
        "Pre-training at scale",
        "Cleaning, near-duplicates, packing, resumable loading, scaling laws, mixed precision, "
        "surviving a long run.",
        (
            "train.minhash_duplicates",
            "train.pack_documents",
            "train.TokenLoader",
            "train.training_flops",
            "train.mfu",
            "train.fit_scaling_law",
            "train.LossScaler",
        ),
    ),
    Day(
        9,
        "train_a_gpt",
        "Train a 10M-parameter GPT",
        "The whole training loop in PyTorch, resumed bit for bit after a kill, and a model of your own "
        "that talks.",
        (
            "model.gpt.GPT",
            "train.train_step",
            "train.evaluate",
            "train.save_checkpoint",
            "train.load_checkpoint",
            "train.fit",
        ),
    ),
    Day(
        10,
        "data_parallel",
        "Distributed training I",
        "Collectives and their cost, ring all-reduce, data parallelism, ZeRO and FSDP, in real processes.",
        (
            "parallel.ring_all_reduce",
            "parallel.GradientBuckets",
            "parallel.ZeroOptimizer",
            "parallel.ShardedParameter",
            "parallel.collective_cost",
            "parallel.zero_memory",
        ),
    ),
    Day(
        11,
        "model_parallel",
        "Distributed training II",
        "Tensor, sequence, context, pipeline and expert parallelism, and how to choose among them.",
        (
            "parallel.column_parallel_linear",
            "parallel.row_parallel_linear",
            "parallel.vocab_parallel_cross_entropy",
            "parallel.pipeline_bubble",
            "parallel.one_f_one_b_schedule",
            "parallel.ring_attention",
            "parallel.communication_volume",
        ),
    ),
    Day(
        12,
        "modern_architecture",
        "Modern architecture",
        "From GPT-2 to Llama, Qwen, Mistral, Mixtral and DeepSeek: RMSNorm, RoPE, SwiGLU, GQA, experts, MLA.",
        (
            "model.rms_norm",
            "model.apply_rope",
            "model.swiglu",
            "model.grouped_query_attention",
            "model.sliding_window_mask",
            "model.yarn_frequencies",
            "model.moe_layer",
            "model.latent_attention",
        ),
    ),
    Day(
        13,
        "lora_and_qlora",
        "LoRA and QLoRA",
        "Chat templates and loss masks, low-rank adapters, 4-bit NormalFloat, many adapters in one batch.",
        (
            "finetune.LoRALinear",
            "finetune.merge_lora",
            "finetune.response_mask",
            "quant.nf4_quantize",
            "quant.nf4_dequantize",
            "finetune.QLoRALinear",
            "finetune.batched_lora",
        ),
    ),
    Day(
        14,
        "alignment",
        "Alignment",
        "Reward models, PPO, DPO and GRPO, and a model whose verifiable reward you watch rise.",
        (
            "align.bradley_terry_loss",
            "align.gae",
            "align.ppo_clip_loss",
            "align.dpo_loss",
            "align.kl_estimators",
            "align.grpo_step",
        ),
    ),
    Day(
        15,
        "prefill_and_decode",
        "Prefill and decode",
        "Two phases with two bottlenecks, the KV cache, and lower bounds on time from bytes and FLOPs.",
        (
            "cache.kv_cache_bytes",
            "cache.ContiguousCache",
            "hardware.decode_lower_bound",
            "hardware.prefill_lower_bound",
            "hardware.max_concurrent_sequences",
            "decode.generate_cached",
        ),
    ),
    Day(
        16,
        "gpus_and_the_roofline",
        "GPU architecture and the roofline",
        "Warps, memory, tensor cores, occupancy; the roofline of published chips and of the machine in "
        "front of you.",
        (
            "hardware.roofline",
            "hardware.occupancy",
            "hardware.memory_transactions",
            "hardware.bank_conflicts",
            "hardware.tiled_matmul_traffic",
            "hardware.measure_roofline",
        ),
    ),
    Day(
        17,
        "cuda",
        "CUDA I",
        "Five kernels from vector_add to a register-tiled matmul, graded by result and by counted "
        "memory traffic, with or without a GPU.",
        (
            "kernels_cuda/vector_add.cu",
            "kernels_cuda/transpose.cu",
            "kernels_cuda/reduce_sum.cu",
            "kernels_cuda/matmul_tiled.cu",
            "kernels_cuda/matmul_register_tiled.cu",
        ),
    ),
    Day(
        18,
        "cuda_and_triton",
        "CUDA II and Triton",
        "Fused softmax and LayerNorm, attention by hand, Triton, torch.compile, and the way from source "
        "to launch.",
        (
            "kernels_cuda/softmax.cu",
            "kernels_cuda/layer_norm.cu",
            "kernels_cuda/attention_naive.cu",
            "kernels.triton.softmax",
            "kernels.triton.matmul",
            "kernels.triton.layer_norm",
        ),
    ),
    Day(
        19,
        "apple_silicon",
        "Apple Silicon, MLX and Metal",
        "Unified memory, lazy evaluation, Metal kernels from vector_add to attention, and the Llama "
        "block in MLX.",
        (
            "kernels_metal/vector_add.metal",
            "kernels_metal/reduce_sum.metal",
            "kernels_metal/matmul_tiled.metal",
            "kernels_metal/softmax.metal",
            "kernels_metal/attention_naive.metal",
            "model.mlx.block",
        ),
    ),
    Day(
        20,
        "kv_cache",
        "KV cache deep dive",
        "Layouts, sliding windows, 8-bit and 4-bit caches, eviction, prefix reuse: quality against "
        "memory, measured.",
        (
            "cache.RingCache",
            "cache.quantize_kv",
            "cache.h2o_keep",
            "cache.snapkv_keep",
            "cache.streaming_positions",
            "cache.CompressedCache",
        ),
    ),
    Day(
        21,
        "flash_attention",
        "FlashAttention 1, 2 and 3",
        "Tiling and online softmax, forward and backward, in NumPy, CUDA, Metal and Triton, its traffic "
        "counted.",
        (
            "kernels.online_softmax",
            "kernels.flash_forward",
            "kernels.flash_backward",
            "kernels_cuda/flash_attention.cu",
            "kernels_metal/flash_attention.metal",
            "kernels.triton.flash_attention",
            "kernels.flash_decoding",
        ),
    ),
    Day(
        22,
        "quantization",
        "Quantization",
        "absmax to GPTQ, AWQ, SmoothQuant, FP8 and k-quants, each with its perplexity, size and speed.",
        (
            "quant.quantize_absmax",
            "quant.quantize_groups",
            "quant.llm_int8_matmul",
            "quant.smooth_scales",
            "quant.awq_search",
            "quant.gptq",
            "quant.dequantize_q4_k",
            "quant.to_float8_e4m3",
        ),
    ),
    Day(
        23,
        "speculative_decoding",
        "Speculative decoding",
        "Draft and verify without changing the distribution: the proof, the speed-up, prompt lookup, "
        "trees, heads.",
        (
            "decode.verify",
            "decode.speculative_generate",
            "decode.expected_speedup",
            "decode.ngram_draft",
            "decode.tree_attention_mask",
            "decode.medusa_candidates",
        ),
    ),
    Day(
        24,
        "continuous_batching",
        "Continuous batching and PagedAttention",
        "Blocks, tables, reference counts, prefix reuse, admission, chunked prefill and preemption.",
        (
            "cache.BlockAllocator",
            "cache.BlockTable",
            "kernels.paged_attention",
            "engine.Scheduler.schedule",
            "engine.Scheduler.preempt",
            "cache.RadixPrefixCache",
        ),
    ),
    Day(
        25,
        "dflash",
        "DFlash internals",
        "A drafter that fills a whole block at once: built, trained, verified, and compared with other "
        "drafters.",
        (
            "decode.dflash.block_mask",
            "decode.dflash.condition",
            "decode.dflash.denoise",
            "decode.dflash.training_loss",
            "decode.dflash.DFlashDrafter",
        ),
    ),
    Day(
        26,
        "production_engines",
        "Production engines",
        "vLLM, SGLang, TensorRT-LLM, llama.cpp and MLX-LM read and measured: open-loop load, goodput, "
        "routing, cost.",
        (
            "bench.poisson_arrivals",
            "bench.detect_coordinated_omission",
            "bench.goodput",
            "bench.simulate_disaggregation",
            "bench.cost_per_million_tokens",
            "engine.prefix_aware_route",
        ),
    ),
    Day(
        27,
        "load_and_run",
        "Capstone I: load and run",
        "A real checkpoint's configuration and weights, the paged model runner, logits equal to the "
        "reference.",
        ("engine.load", "engine.ModelRunner.prepare", "engine.ModelRunner.forward"),
    ),
    Day(
        28,
        "the_loop",
        "Capstone II: the loop",
        "Requests, scheduler, sampler, streaming, stop strings, structured output, cancellation.",
        (
            "engine.Request",
            "engine.Engine.step",
            "decode.Sampler",
            "decode.beam_search",
            "engine.AsyncEngine",
        ),
    ),
    Day(
        29,
        "fast_and_served",
        "Capstone III: fast and served",
        "Compiled steps, your own kernels, quantized weights, speculation, and an OpenAI-compatible server.",
        ("engine.compile_decode", "engine.SpeculativeRunner", "engine.server.stream_chat", "engine.metrics"),
    ),
    Day(
        30,
        "measured",
        "Capstone IV: measured",
        "Your engine against the reference and its peers on your machine, and a roofline that explains "
        "the gap.",
        ("bench.run", "bench.explain_gap"),
    ),
)


def main(arguments: list[str] | None = None) -> int:
    """`--write` or `--check` the generated regions and figures of README.md and days/README.md."""
    from course_lib.classroom import pages

    given = sys.argv[1:] if arguments is None else arguments
    if given == ["--write"]:
        for path in pages.write(lessons.root()):
            print(f"wrote {path}")
        return 0
    if given == ["--check"]:
        stale = pages.stale(lessons.root())
        for path in stale:
            print(f"{path} is out of date: run python -m course_lib.classroom.syllabus --write")
        return 1 if stale else 0
    print("usage: python -m course_lib.classroom.syllabus --write | --check", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
