"""What `validate` knows of the trainers' arguments is what the installed libraries take."""

from __future__ import annotations

from camel_ray.api import hf_arguments
from camel_ray.api.generate import hf_arguments_text


def test_the_kept_arguments_are_in_sync_with_the_installed_libraries() -> None:
    assert hf_arguments.FILE.read_text(encoding="utf-8") == hf_arguments_text()
