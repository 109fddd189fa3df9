"""Finds rows that a sample file holds twice: a run appended to itself, or to a file that it had written before."""

import numpy as np
import pandas as pd

from analysis.columns import distinct

SURE = 10.0  # bits: a thousand to one against the same answers by chance


def recurring(keys: np.ndarray) -> int | None:
    """The first row whose hashed key occurs in an earlier row; None if there is none."""
    if distinct(keys.copy()) == len(keys):
        return None
    return int(pd.Series(keys).duplicated().to_numpy().argmax())


def period(keys: np.ndarray) -> int | None:
    """The period of a file that repeats its first rows to its end, in rows; None if it does not repeat.

    Args:
        keys: (rows,) uint64, equal where rows are.
    """
    blocks = np.flatnonzero(keys == keys[0])[1:]
    for block in blocks[len(keys) % blocks == 0]:
        if np.array_equal(keys[block:], keys[:-block]):
            return int(block)
    return None


def is_repeat(problems: np.ndarray, answers: np.ndarray, block: int) -> bool:
    """Whether equal blocks of rows are one run written again, and not equal answers.

    That answers of one problem are equal, or that all are, is no repeat: a block has to hold several problems, and answers so
    different that independent ones would hardly come in the same order.

    Args:
        problems, answers: (rows,) uint64, equal where problems and answers (verdict and text) are.
        block: rows of a block.
    """
    if len(pd.unique(problems[:block])) < 2:
        return False
    shares = pd.Series(answers[:block]).value_counts(normalize=True).to_numpy()
    return bool(-(shares * np.log2(shares)).sum() * block >= SURE)
