"""Streams a data set from the Hub with the library `datasets`, which also sees to caches, mirrors and proxies."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

from upcycle.errors import InputError
from upcycle.text.forms import content_of, without_nulls
from upcycle.text.records import Cursor, Record


class HubSource:
    """The rows of one split of a data set, named `ORG/NAME[:CONFIG[:SPLIT]]`; the split is `train` if not given."""

    def __init__(self, name: str, text_field: str) -> None:
        """Ask the Hub what there is; raise InputError when the data set cannot be had."""
        import datasets  # type: ignore[import-untyped]

        self.name, self.text_field = name, text_field
        repository, config, split = [*name.split(":"), "", ""][:3]
        with self._readable():
            builder = datasets.load_dataset_builder(repository, config or None)
            self.rows = builder.as_streaming_dataset(split=split or "train")
        self.files = [[name, f"version {builder.hash}"]]

    def read(self, at: Cursor) -> Iterator[Record]:
        """Yield the rows after a place; raise InputError naming the row when one is wrong."""
        rows = deepcopy(self.rows)  # load_state_dict below changes the object for good
        if at.inner:
            rows.load_state_dict(at.inner)
        number, iterator = at.unit, iter(rows)
        while True:
            with self._readable():
                if (row := next(iterator, None)) is None:
                    return
            where = f"{self.name}:row {number + 1}"
            after = Cursor(unit=number + 1, inner=rows.state_dict())
            yield Record(content_of(without_nulls(row), where, self.text_field), where, number, after)
            number += 1

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of datasets, its readers and its file systems, which have no kind in common
            reason = (str(error) or type(error).__name__).strip().splitlines()[0]
            hint = "it was looked for on the Hub, for there is no such file or directory here"
            raise InputError(f"the data set cannot be read ({reason})", where=self.name, hint=hint) from error
