"""Files of torch.save that are damaged or forged: named, and without harm."""

import io
import resource
import zipfile

import numpy as np
import pytest

from nim4_jax.weights.torch_file import TensorPlace, TorchFile

HEAD = b"\x80\x02"


def write(path, pickled: bytes, version: int = 20) -> str:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/data.pkl", pickled)
        archive.writestr("model/data/0", np.arange(6, dtype=np.float32).tobytes())
    content = bytearray(file.getvalue())
    content[content.index(b"PK\1\2") + 6] = version
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    "pickled",
    [
        HEAD + b"}r\xff\xff\xff\x7f.",  # a memo of 2³¹ places
        HEAD + b"X\xff\xff\xff\x7fa.",  # a text of 2 GB
        HEAD + b"\x8d" + b"\xff" * 8 + b"a.",
        HEAD + b"]R.",
        HEAD + b"ctorch\nFloatStorage\nK\1a.",
        HEAD + b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
        HEAD + b"K\1Q.",
        HEAD,
        b"",
    ],
)
def test_a_damaged_pickle_is_named_and_takes_no_memory(tmp_path, pickled):
    path = write(tmp_path / "model.pth.tar", pickled)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        made = TorchFile(path)
    except ValueError as error:
        assert path in str(error)
    else:
        assert made.content == {}
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100_000  # kB


def test_an_archive_of_another_version_is_named(tmp_path):
    path = write(tmp_path / "model.pth.tar", HEAD + b"}.", version=84)
    with pytest.raises(ValueError, match=r"model\.pth\.tar .*zip file version"):
        TorchFile(path)


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (0, (2, 4), (4, 1)),
        (3, (2, 2), (2, 1)),
        (5, (2,), (-6,)),  # before the storage
        (0, (2,), (-1,)),
        (-1, (2,), (1,)),
        (0, (1 << 40,), (0,)),  # one element, a million million times
        (0, (2, 3), (1,)),
        (0, ("2",), (1,)),
        (7, (0,), (1,)),
    ],
)
def test_no_tensor_reaches_out_of_its_storage(tmp_path, offset, shape, stride):
    file = TorchFile(write(tmp_path / "model.pth.tar", HEAD + b"}."))
    place = TensorPlace("0", offset, shape, stride, np.dtype(np.float32))
    with pytest.raises(ValueError, match=r"model\.pth\.tar: storage 0"):
        file.get(place)


def test_tensors_lie_where_they_say(tmp_path):
    file = TorchFile(write(tmp_path / "model.pth.tar", HEAD + b"}."))
    turned = TensorPlace("0", 1, (2, 2), (1, 3), np.dtype(np.float32))
    np.testing.assert_array_equal(file.get(turned), [[1, 4], [2, 5]])
    empty = TensorPlace("0", 6, (0, 3), (3, 1), np.dtype(np.float32))
    assert file.get(empty).shape == (0, 3)
