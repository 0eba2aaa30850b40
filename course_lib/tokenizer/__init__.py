"""Text to token ids and back: byte-level BPE of our own."""

from course_lib.tokenizer.bpe import (
    decode,
    encode_chunk,
    encode_long_chunk,
    merge_pair,
    pair_counts,
    train_bpe,
)
from course_lib.tokenizer.detokenize import IncrementalDetokenizer
from course_lib.tokenizer.files import read_tokenizer, read_tokenizer_json, tokenizer_from_gguf
from course_lib.tokenizer.formats import byte_to_unicode, pair_ranks, read_ranks, unicode_to_byte
from course_lib.tokenizer.pretokenize import (
    CL100K_PATTERN,
    GPT2_PATTERN,
    PRETOKENIZERS,
    pretokenize_cl100k,
    pretokenize_gpt2,
    pretokenize_smollm,
)
from course_lib.tokenizer.sentencepiece import SentencePieceTokenizer
from course_lib.tokenizer.special import split_special_tokens
from course_lib.tokenizer.tokenizer import Tokenizer

__all__ = [
    "CL100K_PATTERN",
    "GPT2_PATTERN",
    "PRETOKENIZERS",
    "IncrementalDetokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "byte_to_unicode",
    "decode",
    "encode_chunk",
    "encode_long_chunk",
    "merge_pair",
    "pair_counts",
    "pair_ranks",
    "pretokenize_cl100k",
    "pretokenize_gpt2",
    "pretokenize_smollm",
    "read_ranks",
    "read_tokenizer",
    "read_tokenizer_json",
    "split_special_tokens",
    "tokenizer_from_gguf",
    "train_bpe",
    "unicode_to_byte",
]
