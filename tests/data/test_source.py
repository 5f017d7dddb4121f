"""What a source says of itself, before anything is opened."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pwl_hf.data import DataError, DataSource


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": ""}, "the data has no name"),
        ({"label_names": []}, "label_names must be names, got none"),
        ({"max_samples": 0}, "max_samples must be 1 or more, got 0"),
        ({"holdout": 1}, "above 0 and below 1, got 1"),
        ({"holdout": 0.0}, "above 0 and below 1"),
        ({"holdout": float("nan")}, "above 0 and below 1"),
        ({"holdout": 0.1, "streaming": True}, "nothing can be held out of a stream"),
        ({"unlabelled": True, "label_column": "label"}, "unlabelled data has no label_column"),
        ({"unlabelled": True, "label_names": ["a"]}, "unlabelled data has no label_column"),
        ({"name": "digits", "streaming": True}, "leave out streaming"),
        ({"name": "digits", "config": "small"}, "leave out config"),
        ({"name": "digits", "revision": "main"}, "leave out revision"),
    ],
)
def test_settings_that_contradict_raise(settings, message):
    with pytest.raises(DataError, match=message):
        DataSource(**{"name": "org/data", **settings})


def test_source_can_be_compared_and_does_not_show_its_token():
    source = DataSource("org/data", label_names=["a", "b"], token="hf_secret")
    assert source == DataSource("org/data", label_names=("a", "b"), token="hf_secret")
    assert len({source, DataSource("org/data")}) == 2
    assert "hf_secret" not in repr(source)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_naming_a_source_imports_nothing_heavy():
    heavy = run(
        "import sys; from pwl_hf.data import DataSource; DataSource('digits');"
        "print(sorted({'torch', 'transformers', 'datasets', 'numpy', 'sklearn', 'PIL'} & set(sys.modules)))"
    )
    assert heavy == "[]"


def test_without_datasets_opening_says_what_to_install():
    said = run(
        "import sys; sys.modules['datasets'] = None\n"
        "from pwl_hf.data import DataError, DataSource\n"
        "try:\n"
        "    from pwl_hf.data import open_split\n"
        "except DataError as error:\n"
        "    print(error)"
    )
    assert said == 'reading data needs the package datasets: pip install "pwl-hf[evaluate]"'


def test_unknown_name_of_the_package_raises():
    with pytest.raises(ImportError, match="no_such_name"):
        from pwl_hf.data import no_such_name  # noqa: F401
