"""Finds the real data and golden numbers that lie beside the checkout."""

import os
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2] / "shared"


def shared(name: str) -> pathlib.Path:
    """Path of a shared test file.

    Args:
      name: its path below the shared folder.

    Returns:
      The path, when it exists. Otherwise the test is skipped, or, under
      continuous integration (the variable CI is set), fails.
    """
    path = ROOT / name
    if not path.exists():
        message = f"{path} is missing: this test needs the shared test data"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path
