"""What launchers ask of the process."""

import jax.numpy as jnp
import pytest

from nim4_jax.process import errors


def test_a_device_that_is_full_is_no_traceback(capsys):
    """The words of XLA, which asked for 512 TiB, and what needs less."""

    def ask(_):
        jnp.zeros((1 << 47,)).block_until_ready()

    with pytest.raises(SystemExit) as ended:
        errors.guard(ask)([])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1
    assert "Out of memory" in told and "config.micro_batches" in told


def test_a_mistake_of_ours_is_a_traceback():
    """Nobody but us can mend it."""

    def fail(_):
        raise KeyError("ours")

    with pytest.raises(KeyError):
        errors.guard(fail)([])
