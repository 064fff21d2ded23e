"""Model cards that somebody has edited: what is theirs stays, byte for byte."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.cards import BASE, BASE_CARD, Makes, block_of, data_of, made_once, told
from tests.conftest import edit_json
from upcycle.errors import InputError
from upcycle.ship.card import BEGIN, END, card, facts_of


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Makes:
    return made_once(tmp_path_factory.getbasetemp(), text)


def test_only_the_block_of_an_edited_card_is_written(made: Makes) -> None:
    facts = facts_of(made("trained"))
    start = "\ufeff---\r\nlicense: my-own   # a comment\r\nbroken: [\r\n---\r\n\r\n# My words\r\n"
    before = f"{start}{BEGIN}\r\nold\r\n{END} and after\rthe end, without a line break \u00e9"
    text = told(facts, before)
    assert text.startswith(start + BEGIN)
    assert text.endswith(f"{END} and after\rthe end, without a line break \u00e9")
    assert "old" not in text
    assert "\n" not in block_of(text).replace("\r\n", "")
    assert block_of(text).replace("\r\n", "\n") == block_of(told(facts))
    assert told(facts, text) == text


def test_a_card_without_a_block_gets_one_at_its_end(made: Makes) -> None:
    facts = facts_of(made("moe"), base_card=BASE_CARD)
    before = "---\nzebra: 1 # kept\ntags:\n- mine\nlicense: mit\n---\n# Mine\n\nWords"
    text = told(facts, before)
    assert text.startswith(
        "---\nzebra: 1 # kept\ntags:\n- mine\nlicense: mit\nlanguage:\n- en\n- 'no'\nlibrary_name: tr"
    )
    assert f"\n---\n# Mine\n\nWords\n\n{BEGIN}\n" in text
    data = data_of(text)
    assert (data.license, data.tags, data.base_model) == ("mit", ["mine"], BASE)
    assert told(facts, text) == text


@pytest.mark.parametrize("before", ["# Mine\n", "\ufeff# Mine\r\n\r\n", "---\n---\n# Mine", "---\n\n---\n# Mine\n"])
def test_a_card_without_metadata_gets_some(before: str, made: Makes) -> None:
    text = told(facts_of(made("moe"), base_card=BASE_CARD), before)
    front = data_of(text.removeprefix("\ufeff"))
    assert (front.license, front.base_model, front.library_name) == ("apache-2.0", BASE, "transformers")
    assert before.strip("\ufeff-\r\n") in text
    assert text.startswith("\ufeff") == before.startswith("\ufeff")
    breaks = set(re.findall(r"\r\n|\n", text))
    assert breaks == {"\r\n" if "\r\n" in before else "\n"}


def test_a_base_that_the_card_names_is_its_own_affair(made: Makes) -> None:
    text = told(facts_of(made("moe"), base_card=BASE_CARD), "---\nbase_model: other/one\nlicense: other\n---\n")
    data = data_of(text)
    assert (data.base_model, data.get("base_model_relation")) == ("other/one", None)


@pytest.mark.parametrize("before", ["", "\n \n", "\ufeff"])
def test_an_empty_card_is_none(before: str, made: Makes) -> None:
    facts = facts_of(made("moe"))
    assert told(facts, before) == told(facts)


@pytest.mark.parametrize("before", [BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}", f"{BEGIN}{BEGIN}{END}"])
def test_markers_that_leave_it_open_what_is_whose(before: str, made: Makes) -> None:
    with pytest.raises(InputError, match="does not say what of it is upcycle's") as raised:
        told(facts_of(made("moe")), f"# Mine\n{before}\n")
    assert raised.value.hint is not None
    assert raised.value.found is not None


@pytest.mark.parametrize("front", ["a: [", "- a", "{a: b}", "a: |\n  text\n b: c", "a: !x {}\n..."])
def test_metadata_that_cannot_be_added_to(front: str, made: Makes) -> None:
    with pytest.raises(InputError, match=r"README\.md") as raised:
        told(facts_of(made("moe")), f"---\n{front}\n---\n# Mine\n")
    assert "at its head" in str(raised.value)


def test_a_name_that_is_no_repository(made: Makes) -> None:
    with pytest.raises(InputError, match="is no name of a repository"):
        card(facts_of(made("moe")), "a/b`c")


def test_the_metadata_of_a_new_card_is_in_order(made: Makes) -> None:
    text = told(facts_of(made("trained"), base_card=BASE_CARD))
    front = yaml.safe_load(text.split("---")[1])
    names = ["language", "license", "library_name", "pipeline_tag", "base_model", "base_model_relation", "tags"]
    assert list(front) == names


def test_an_adapter_names_no_place_of_this_machine(made: Makes, tmp_path: Path) -> None:
    shutil.copytree(made("adapter-lora"), tmp_path / "adapter")
    edit_json(tmp_path / "adapter/adapter_config.json", base_model_name_or_path="/home/me/models/tiny", revision=None)
    text = told(facts_of(tmp_path / "adapter"))
    assert "/home" not in text
    assert "called `tiny`" in text
    assert data_of(text).base_model is None
