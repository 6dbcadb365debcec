"""Run folders of earlier versions."""

import pytest

from unitsphere.errors import UsageError
from unitsphere.runs import Run


def test_a_run_of_before_a_setting_was_renamed_can_be_read_where_it_was_not_set(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    for given, fits in (("null", True), ("64", False)):
        (tmp_path / "config.yaml").write_text(f"trainer: {{chunks: 4, cache_rows: {given}}}\n")
        run = Run.open(tmp_path)
        if fits:
            assert run.config == {"trainer": {"chunks": 4}}
        else:
            with pytest.raises(UsageError, match=r"cache_rows, texts a pass, which is trainer.cache_tokens now"):
                _ = run.config
