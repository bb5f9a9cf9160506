"""The extra is named when it is missing, and is not imported where it is not needed."""

import importlib
import subprocess
import sys

import pytest

import bochner.transformers  # noqa: F401


def test_without_transformers_the_import_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "bochner.transformers")
    with pytest.raises(ImportError, match=r'pip install "bochner\[transformers\]"'):
        importlib.import_module("bochner.transformers")


def test_importing_bochner_imports_neither_transformers_nor_data():
    code = "import bochner, sys; print({'transformers', 'bochner.data'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
