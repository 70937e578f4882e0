"""The judge: tokens of samples, references and wanted names become rewards."""

import numpy as np
import pytest

from nim4_jax.rl.judge import Judge
from nim4_jax.rl.rewards import RewardConfig

END = 1


class Letters:
    """A decoder whose text is one character a token; 0 is a space."""

    end_id = END

    def decode(self, ids):
        return "".join(" " if i == 0 else chr(ord("a") + i - 2) for i in ids)


def encode(text: str) -> list[int]:
    """Ids of a text and the end."""
    return [*(0 if c == " " else ord(c) - ord("a") + 2 for c in text), END]


def pack(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids, and where they are real; rubbish behind the mask."""
    width = max(map(len, rows), default=0) + 1
    ids = np.full((len(rows), width), 9, np.int32)
    mask = np.zeros(ids.shape, bool)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, True
    return ids, mask


def test_the_judge_reads_tokens_as_text():
    judge = Judge(Letters())
    ids = np.array([[2, 3, 1], [2, 4, 1], [1, 0, 0], [5, 5, 5]], np.int32)
    mask = np.array([[1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 1, 1]], bool)
    said = np.array([[2, 3, 1], [1, 0, 0]], np.int32)
    said_mask = np.array([[1, 1, 1], [1, 0, 0]], bool)
    earned = judge(ids, mask, said, said_mask)
    assert earned.shape == (2, 2) and earned.dtype == np.float32
    assert earned[0, 0] == 1.0 and earned[0, 1] == pytest.approx(np.exp(-1.0))
    assert earned[1, 0] == 1.0 and earned[1, 1] == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("names", "written", "expected"),
    [
        ((), ("call ada", "call eve"), (0.0, 0.0)),
        (("ada",), ("call ada", "call eve"), (0.5, -0.5)),
        (("ada", "eve"), ("call ada", "ada eve"), (0.0, 0.5)),
        (("ada", "ada"), ("call ada", ""), (0.5, -0.5)),  # said twice, counts once
        (("adam",), ("call ada", "adam"), (-0.5, 0.5)),
    ],
)
def test_wanted_names_of_the_batch_are_rewarded(names, written, expected):
    """R_context alone: + where a name stands, − where it is missing, on average."""
    judge = Judge(Letters(), RewardConfig(accuracy=0.0, hallucination=0.0, context=1.0))
    samples = pack([encode(text) for text in (*written, "call bob", "x")])
    said = pack([encode("call ada"), encode("call bob")])
    wanted = pack([[i for name in names for i in encode(name)], []])
    earned = judge(*samples, *said, *wanted)
    np.testing.assert_allclose(earned, [expected, (0.0, 0.0)])


def test_a_name_that_was_cut_off_is_not_wanted():
    """Its end token is missing; without any names the context is worth nothing."""
    judge = Judge(Letters())
    assert judge.read_names(*pack([[*encode("ada"), *encode("bob")[:-1]]])) == [
        ("ada",)
    ]
    samples, said = pack([encode("ada"), encode("ada")]), pack([encode("ada")])
    np.testing.assert_allclose(judge(*samples, *said), [[1.0, 1.0]])
