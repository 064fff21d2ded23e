"""Documents to blocks: nothing is lost, nothing is doubled, and every position and target is where it belongs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from upcycle.text.encode import Document
from upcycle.text.pack import Block, Packer

DTYPES = [np.dtype(np.int32), np.dtype(np.bool_), np.dtype(np.int32)]


def document(*ids: int, continues: bool = False, target: list[bool] | None = None) -> Document:
    wanted = [True] * len(ids) if target is None else target
    return Document(np.array(ids, np.int32), np.array(wanted, np.bool_), continues)


def pack(documents: list[Document], seq_len: int) -> tuple[list[Block], Packer]:
    packer, blocks = Packer(seq_len), []
    for item in documents:
        packer.add(item)
        while (block := packer.take()) is not None:
            blocks.append(block)
    return blocks, packer


def shown(block: Block) -> list[tuple[int, int, str]]:
    """Id, position, and a mark for targets."""
    marks = ["*" if target else "" for target in block.target_T]
    return list(zip(block.ids_T.tolist(), block.position_T.tolist(), marks, strict=True))


def test_by_hand() -> None:
    """Documents of 3, 4 and 2 tokens; the second goes on in the second block, where it begins anew."""
    blocks, packer = pack([document(1, 2, 3), document(4, 5, 6, 7), document(8, 9)], 5)
    assert list(map(shown, blocks)) == [[(1, 0, ""), (2, 1, "*"), (3, 2, "*"), (4, 0, ""), (5, 1, "*")]]
    assert shown(packer.take_rest(0) or blocks[0]) == [(6, 0, ""), (7, 1, "*"), (8, 0, ""), (9, 1, "*"), (0, 0, "")]
    assert packer.tokens == 0


def test_pieces_of_a_document() -> None:
    """A piece goes on with the position of the one before it, and its first token is a target; not in a new block."""
    pieces = [document(1, 2), document(3, 4, continues=True), document(5, 6, continues=True), document(7, 8)]
    blocks, _ = pack(pieces, 4)
    assert list(map(shown, blocks)) == [
        [(1, 0, ""), (2, 1, "*"), (3, 2, "*"), (4, 3, "*")],
        [(5, 0, ""), (6, 1, "*"), (7, 0, ""), (8, 1, "*")],
    ]


def test_the_loss_asks_for_targets_alone() -> None:
    blocks, _ = pack([document(1, 2, 3, 4, target=[False, False, True, True])], 4)
    assert blocks[0].target_T.tolist() == [False, False, True, True]


def test_a_rest_without_targets_is_no_block() -> None:
    for rest in ([], [document(1)], [document(1, 2, target=[False, False])]):
        _, packer = pack(rest, 4)
        assert packer.take_rest(0) is None


def test_arrays_that_come_in_are_not_written_to() -> None:
    first = document(1, 2, 3)
    pack([first], 3)
    assert first.target_T.tolist() == [True, True, True]


@st.composite
def corpora(draw: st.DrawFn) -> list[Document]:
    """Documents with distinct ids; some are pieces that go on with the one before."""
    documents: list[Document] = []
    identity = 0
    for length in draw(st.lists(st.integers(0, 13), max_size=12)):
        target = draw(st.lists(st.booleans(), min_size=length, max_size=length))
        continues = bool(documents) and draw(st.booleans())
        documents.append(document(*range(identity, identity + length), continues=continues, target=target))
        identity += length
    return documents


@given(corpora(), st.integers(1, 9))
def test_blocks_are_the_documents(documents: list[Document], seq_len: int) -> None:
    blocks, packer = pack(documents, seq_len)
    total = sum(len(item.ids_T) for item in documents)
    assert len(blocks) == total // seq_len
    assert packer.tokens == total % seq_len == sum(len(item.ids_T) for item in packer.waiting)
    assert [id for block in blocks for id in block.ids_T.tolist()] == list(range(len(blocks) * seq_len))
    assert [id for item in packer.waiting for id in item.ids_T.tolist()] == list(range(len(blocks) * seq_len, total))


@given(corpora(), st.integers(1, 9))
def test_positions_and_targets(documents: list[Document], seq_len: int) -> None:
    """Told token by token, in the plainest way."""
    wanted = [bool(target) for item in documents for target in item.target_T]
    heads, number = set(), 0
    for item in documents:
        if len(item.ids_T) and not item.continues:
            heads.add(number)
        number += len(item.ids_T)
    for start, block in enumerate(pack(documents, seq_len)[0]):
        assert [block.ids_T.dtype, block.target_T.dtype, block.position_T.dtype] == DTYPES
        position = -1
        for place in range(seq_len):
            token = start * seq_len + place
            position = 0 if place == 0 or token in heads else position + 1
            assert block.position_T[place] == position
            assert block.target_T[place] == (wanted[token] and position > 0)


@given(corpora(), st.integers(2, 9), st.data())
def test_going_on_with_what_was_left(documents: list[Document], seq_len: int, data: st.DataObject) -> None:
    stop = data.draw(st.integers(0, len(documents)))
    first, packer = pack(documents[:stop], seq_len)
    second = Packer(seq_len, tuple(packer.waiting))
    for item in documents[stop:]:
        second.add(item)
    while (block := second.take()) is not None:
        first.append(block)
    assert list(map(shown, first)) == list(map(shown, pack(documents, seq_len)[0]))
