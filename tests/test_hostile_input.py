"""Any JSON for banks and tables of notes: read, or one clear error.

Damaged files are in test_hostile.py.
"""

import json

import hypothesis
import hypothesis.strategies as st
import numpy as np

from datasets import limits, nsynth
from datasets.presets import reading
from proxy import spaces

SPACE = spaces.get("dexed")
SMALL = limits.Budget(bytes=2**20, voices=2_000, seconds=5.0)
SETTINGS = hypothesis.settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)


def check(bank):
    """What is read is of the space, whatever the file was."""
    np.testing.assert_array_equal(SPACE.snap(bank.presets), bank.presets)
    assert len(bank) == len(bank.names) == len(bank.sources) > 0
    assert len(str(bank.report)) < 8_000


def error_of(error, path):
    """One line that names the file, and no endless one."""
    text = str(error)
    assert str(path) in text and len(text) < 2_000


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(["name", "parameters", "lfo_speed", "x" * 500, ""]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("name", "parameters", "values", "presets", "lfo_speed"),
                    *("parameter_names", "algorithm", "pitch", "velocity"),
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@SETTINGS
@hypothesis.given(document=JSON, wrapped=st.integers(0, 3))
def test_any_json_is_read_or_refused(tmp_path_factory, document, wrapped):
    """As presets, and as the table of a folder of notes."""
    document = (
        document,
        [{"name": document, "parameters": document}],
        {"parameter_names": document, "presets": document},
        {"note": document, "other": {"pitch": document, "velocity": 1}},
    )[wrapped]
    folder = tmp_path_factory.mktemp("json")
    text = json.dumps(document)
    (folder / "a.json").write_text(text)
    try:
        check(reading.load(folder / "a.json", SPACE, budget=SMALL))
    except ValueError as error:
        error_of(error, folder / "a.json")
    (folder / "examples.json").write_text(text)
    try:
        nsynth.find(folder)
    except (ValueError, FileNotFoundError) as error:
        assert str(folder) in str(error) and len(str(error)) < 3_000
