"""Documents of any length in rows of one length, and what a token in such a row may see."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from course_lib.parts import exercise


class Packed(NamedTuple):
    """Rows of tokens, and where each token comes from. All three have the shape (rows, block)."""

    tokens: Int64[np.ndarray, "rows block"]
    documents: Int64[np.ndarray, "rows block"]  # index of the token's document; -1 in padding
    positions: Int64[np.ndarray, "rows block"]  # from 0 at the first token of the document in its row


@exercise(day=8)
def pack_documents(
    documents: Sequence[Sequence[int]], block_size: int, end_id: int, pad_id: int = 0
) -> Packed:
    """Lay documents end to end, each followed by end_id, and cut the stream into rows.

    No token is lost: a document that does not fit goes on in the next row. Only the last row can
    be too short, and is filled up with pad_id.

    Args:
        documents: token ids, one sequence each. Empty ones still get their end_id.
        block_size: tokens a row, 1 or more.
        end_id: what follows each document, and belongs to it.
        pad_id: what fills the last row. Its document is -1, its position 0.

    Returns:
        Packed(tokens, documents, positions), int64, of shape (rows, block_size); no documents at
        all give no rows. Packed.documents tells, for each token, which of the given documents it
        belongs to, counted from 0. Positions count from 0 at a document's first token in each
        row: what went before is in another row, which attention cannot reach.

    Raises:
        ValueError: block_size is below 1.

    Source: Brown et al. (2020), "Language Models are Few-Shot Learners", appendix B.
    """
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; a row has 1 token or more")
    tokens = [token for document in documents for token in (*document, end_id)]
    owners = [i for i, document in enumerate(documents) for _ in range(len(document) + 1)]
    missing = -len(tokens) % block_size
    row_tokens = np.array(tokens + [pad_id] * missing, dtype=np.int64).reshape(-1, block_size)
    row_owners = np.array(owners + [-1] * missing, dtype=np.int64).reshape(-1, block_size)

    column = np.arange(block_size)
    first = np.ones(row_owners.shape, dtype=bool)  # does a document begin (or go on) here?
    first[:, 1:] = row_owners[:, 1:] != row_owners[:, :-1]
    start = np.maximum.accumulate(np.where(first, column, 0), axis=1)
    return Packed(row_tokens, row_owners, np.where(row_owners < 0, 0, column - start))


@exercise(day=8)
def document_ids(tokens: Int64[np.ndarray, "... t"], end_id: int) -> Int64[np.ndarray, "... t"]:
    """Number the documents in each row of tokens: 0 for what the row begins with, then 1, 2, …

    Args:
        tokens: rows cut from a stream in which every document is followed by end_id.
        end_id: the last token of its document, not the first of the next.

    Returns:
        An int64 array of tokens' shape.
    """
    ends = np.asarray(tokens) == end_id
    ids = np.zeros(ends.shape, dtype=np.int64)
    # A token's number is how many ends stand before it, itself not counted.
    ids[..., 1:] = np.cumsum(ends[..., :-1], axis=-1)
    return ids


def document_mask(documents: Int64[np.ndarray, "... block"]) -> Bool[np.ndarray, "... block block"]:
    """Who may look at whom: causal, and within a document. True where query i may see key j.

    Padding (document -1) may look nowhere, and nobody looks at it.
    """
    t = documents.shape[-1]
    same = documents[..., :, None] == documents[..., None, :]
    return same & (documents[..., :, None] >= 0) & np.tri(t, dtype=bool)


def loss_mask(documents: Int64[np.ndarray, "... block"]) -> Bool[np.ndarray, "... targets"]:
    """Which of the block - 1 predictions count: those of a token of the same document.

    Entry i is about token i + 1, predicted at token i. A document's first token cannot be known from
    the document before; its end token is a target like any other, or a model never learns to stop.
    """
    return (documents[..., 1:] == documents[..., :-1]) & (documents[..., 1:] >= 0)
