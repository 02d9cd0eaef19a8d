"""Model settings from a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from learners.deepfm.config import DeepFMConfig
from learners.nn.heads import Head
from learners.training.model_file import read_model_config


def written(folder: Path, text: str) -> Path:
    """A file of that text."""
    path = folder / "model.toml"
    path.write_text(text)
    return path


def test_what_a_file_leaves_out_keeps_its_default(tmp_path: Path) -> None:
    """Settings of every type, heads among them."""
    heads = '[{ name = "click" }, { name = "conversion", given = "click", hidden = [32] }]'
    path = written(tmp_path, f"hidden = [256, 128]\nadmit_after = 2\nexpire_after_s = 86400\nseed = 3\nheads = {heads}")
    conversion = Head("conversion", given="click", hidden=(32,))
    wanted = DeepFMConfig(
        hidden=(256, 128), admit_after=2, expire_after_s=86400.0, seed=3, heads=(Head("click"), conversion)
    )
    assert read_model_config(path) == wanted
    assert read_model_config(written(tmp_path, "")) == DeepFMConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hidden = [", "is no TOML"),
        ("admit_afer = 2", "admit_afer, which is no setting.*Write admit_after"),
        ("zzz = 2", "Known: dim, hidden"),
        ('heads = [{ nam = "click" }]', r"heads\[0\].nam, which is no setting.*Write name"),
        ('dim = "8"', "Expected `int`"),
        ("dim = 0", "dim=0 must be positive"),
        ('heads = [{ name = "conversion", given = "click" }]', "must begin with one that is given nothing"),
        ('heads = [{ name = "click" }, { name = "conversion" }]', 'Write .* given = "click"'),
        ("heads = 3", "Expected `array`"),
    ],
)
def test_a_file_that_means_nothing_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """With the name, the value and the remedy."""
    with pytest.raises(ValueError, match=message) as refused:
        read_model_config(written(tmp_path, text))
    assert not re.search(r"\.\.|Head\(", str(refused.value))
