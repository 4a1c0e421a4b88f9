"""Reads data sets of the Hugging Face hub as a stream.

Streaming keeps the rows out of the cache in the home directory: the prepared data set is the only copy. `datasets`
runs no code of a data set since its version 4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from camel_ray.data.rows import Place, SourceRow
from camel_ray.errors import DataError, StorageUnavailable

_URI = re.compile(r"hf://(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?$")


def rows(uri: str, *, subset: str | None, split: str) -> Iterator[SourceRow]:
    """Rows of `hf://owner/name` or `hf://owner/name@revision`. Integer labels get their names in a column `label_name`.

    Raises DataError if there is no such data set, subset or split, and StorageUnavailable if the hub cannot be reached.
    """
    match = _URI.match(uri)
    if match is None:
        raise DataError(
            f"{uri} is not the address of a hub data set; write hf://owner/name or hf://owner/name@revision"
        )
    # Imported here: it takes a second, and most data sets are local.
    import datasets
    import huggingface_hub.errors as hub_errors
    from datasets.exceptions import DatasetNotFoundError

    try:
        stream = datasets.load_dataset(match["name"], subset, split=split, revision=match["revision"], streaming=True)
        label = (stream.features or {}).get("label")
        names = list(label.names) if isinstance(label, datasets.ClassLabel) else []
        for number, columns in enumerate(stream, start=1):
            if names and isinstance(columns.get("label"), int) and 0 <= columns["label"] < len(names):
                columns = {**columns, "label_name": names[columns["label"]]}
            yield SourceRow(columns, Place(uri, number, "row"))
    except (DatasetNotFoundError, hub_errors.RepositoryNotFoundError, FileNotFoundError) as error:
        raise DataError(
            f"{uri} was not found on the hub, or needs a login; check the name or run `hf auth login`"
        ) from error
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{uri} (subset {subset}, split {split}) cannot be read: {reason}; set `subset` or `split`"
        ) from error
    except OSError as error:
        raise StorageUnavailable(
            f"{uri} cannot be read now ({type(error).__name__}); check the network and run again"
        ) from error
