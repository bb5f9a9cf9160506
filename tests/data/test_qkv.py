"""Files of queries, keys and values: round trips and every way in which one can be wrong."""

import sys

import numpy as np
import pytest
import torch

from bochner.data.qkv import QKV, load_qkv, save_qkv


def make_qkv(heads=3, length=5, dim=4, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return QKV(*(torch.randn(heads, length, dim, generator=g).to(dtype) for _ in range(3)))


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        (".npz", torch.float16),
        (".npz", torch.float32),
        (".npz", torch.float64),
        (".safetensors", torch.float16),
        (".safetensors", torch.bfloat16),
        (".safetensors", torch.float32),
        (".safetensors", torch.float64),
    ],
)
def test_round_trip_keeps_bits_and_dtype(tmp_path, suffix, dtype):
    saved = make_qkv(dtype=dtype)
    save_qkv(tmp_path / f"layer{suffix}", *saved)
    loaded = load_qkv(str(tmp_path / f"layer{suffix}"))
    for before, after in zip(saved, loaded, strict=True):
        assert after.dtype == dtype
        assert torch.equal(before, after)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_views_shared_memory_and_gradients_are_saved(tmp_path, suffix):
    x = torch.randn(5, 3, 4, requires_grad=True).transpose(0, 1)
    save_qkv(tmp_path / f"x{suffix}", x, x, x[..., :2])
    q, k, v = load_qkv(tmp_path / f"x{suffix}")
    assert torch.equal(q, x)
    assert torch.equal(k, x)
    assert v.shape == (3, 5, 2)
    assert x.requires_grad


def test_other_byte_orders_and_more_arrays_are_read(tmp_path):
    a = np.ones((1, 2, 3))
    np.savez(tmp_path / "a.npz", q=a.astype(">f4"), k=a.astype("<f4"), v=a.astype("f4"), extra=a)
    assert load_qkv(tmp_path / "a.npz").q.dtype == torch.float32


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"x{suffix}"
    save_qkv(path, *make_qkv())
    before = path.read_bytes()

    def half(file, *args, **kwargs):
        (tmp_path / str(file)).write_bytes(b"half")
        raise OSError("disk full")

    import safetensors.torch

    monkeypatch.setattr(np, "savez", lambda file, **arrays: half(file))
    monkeypatch.setattr(safetensors.torch, "save_file", lambda arrays, file: half(file))
    with pytest.raises(OSError, match="disk full"):
        save_qkv(path, *make_qkv(heads=1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_missing_file_and_suffix(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load_qkv(tmp_path / "none.npz")
    for call in (lambda p: load_qkv(p), lambda p: save_qkv(p, *make_qkv())):
        with pytest.raises(
            ValueError, match=r"suffix '\.pt'; expected one of \.npz, \.safetensors"
        ):
            call(tmp_path / "x.pt")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 truncated"])
def test_damaged_files(tmp_path, suffix, content):
    (tmp_path / f"x{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match="is not a readable"):
        load_qkv(tmp_path / f"x{suffix}")


def test_a_lone_npy_file_is_no_archive(tmp_path):
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, np.ones((1, 2, 3)))
    with pytest.raises(ValueError, match="is not a readable .npz archive"):
        load_qkv(tmp_path / "x.npz")


def test_missing_array(tmp_path):
    np.savez(tmp_path / "x.npz", q=np.ones((1, 2, 3)), key=np.ones((1, 2, 3)))
    with pytest.raises(ValueError, match=r"holds the arrays \['key', 'q'\].*missing: k, v"):
        load_qkv(tmp_path / "x.npz")


def test_arrays_that_are_no_numbers(tmp_path):
    a = np.ones((1, 2, 3), dtype=np.float32)
    np.savez(tmp_path / "int.npz", q=a.astype(int), k=a, v=a)
    with pytest.raises(TypeError, match="q has dtype int64; expected float16"):
        load_qkv(tmp_path / "int.npz")
    np.savez(tmp_path / "object.npz", q=a, k=np.array([None]), v=a)
    with pytest.raises(ValueError, match="is not a readable .npz archive: .*allow_pickle"):
        load_qkv(tmp_path / "object.npz")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": torch.ones(2, 3, 5, 4)}, ValueError, r"q has shape \[2, 3, 5, 4\].*q\[0\]"),
        ({"v": torch.ones(5, 4)}, ValueError, r"v has shape \[5, 4\]; expected \[heads"),
        ({"k": torch.ones(3, 0, 4)}, ValueError, r"k has shape \[3, 0, 4\].*none of them 0"),
        ({"k": torch.ones(1, 5, 4)}, ValueError, r"k \[1, 5, 4\].*differ in heads"),
        ({"v": torch.ones(3, 6, 4)}, ValueError, r"v \[3, 6, 4\] differ in length"),
        ({"k": torch.ones(3, 5, 8)}, ValueError, "q and k differ in dim"),
        ({"k": torch.ones(3, 5, 4).double()}, TypeError, "expected one dtype"),
        ({"q": torch.ones(3, 5, 4).long()}, TypeError, r"q has dtype torch\.int64"),
        ({"k": torch.ones(3, 5, 4) * torch.inf}, ValueError, r"k holds NaN.*\[0, 0, 0\]"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, change, error, message):
    arrays = make_qkv()._asdict() | change
    with pytest.raises(error, match=message):
        save_qkv(tmp_path / "x.npz", **arrays)
    assert list(tmp_path.iterdir()) == []
    np.savez(tmp_path / "x.npz", **{name: x.numpy() for name, x in arrays.items()})
    with pytest.raises(error, match=r"x\.npz"):
        load_qkv(tmp_path / "x.npz")


def test_nan_is_located(tmp_path):
    q, k, v = make_qkv()
    v[1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match=r"v holds NaN or infinity, first at .* = \[1, 2, 3\]"):
        save_qkv(tmp_path / "x.safetensors", q, k, v)


def test_bfloat16_needs_safetensors(tmp_path):
    with pytest.raises(TypeError, match=r"bfloat16, which \.npz cannot hold.*\.safetensors"):
        save_qkv(tmp_path / "x.npz", *make_qkv(dtype=torch.bfloat16))
    assert list(tmp_path.iterdir()) == []


def test_missing_safetensors_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        save_qkv(tmp_path / "x.safetensors", *make_qkv())
