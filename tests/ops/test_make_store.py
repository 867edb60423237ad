"""The journal of made rows: its answers are used again, lost ones are not guessed, no file is overwritten."""

from pathlib import Path

import pytest

from ops.make.records import Account, Answer, Begun, Failed, Judged
from ops.make.store import Done, Identity, Store, journal_path, opened
from runtime.errors import BadInput
from runtime.tasks.prompt import Verdict

WHO = Identity(recipe={"seed": 1, "method.samples": 4}, files={"teacher": "abc"})
RECORDS = [
    Begun(name="0/0", tokens=[1, 2], logprobs=[-0.5, -0.25]),
    Answer(name="0/0", text="é\n", stop="stop", tokens=3, at=1.5),
    Judged(name="0/0", verdict=Verdict(reward=0.5, passed=False, parts={"a": 1.0})),
    Failed(name="0/1", kind="empty", reason="none"),
]


def filled(out: Path) -> None:
    with opened(out, WHO, again=False) as store:
        for record in RECORDS:
            store.put(record)


def holds(store: Store) -> tuple:
    return store.answers, store.failures, store.begun, store.verdicts


def test_what_was_put_is_there_when_it_is_opened_again(tmp_path):
    out = tmp_path / "rows.jsonl"
    with opened(out, WHO, again=False) as store:
        for record in RECORDS:
            store.put(record)
        before = holds(store)
        assert store.has("0/0") and store.has("0/1") and not store.has("0/2")
    with opened(out, WHO, again=False) as store:
        assert holds(store) == before and store.begun == {}


def test_wherever_a_crash_cuts_it_off_the_next_call_goes_on(tmp_path):
    out = tmp_path / "rows.jsonl"
    filled(out)
    content = journal_path(out).read_bytes()
    counts = set()
    for size in range(len(content)):
        journal_path(out).write_bytes(content[:size])
        with opened(out, WHO, again=False) as store:
            counts.add(len(store.answers) + len(store.failures) + len(store.begun))
            for record in RECORDS:
                store.put(record)
            assert store.answers["0/0"].text == "é\n"
    assert counts == {0, 1}  # begun, then answered; the last record is never whole


@pytest.mark.parametrize(("recipe", "files", "said"), [
    ({"seed": 2, "method.samples": 4}, {"teacher": "abc"}, "seed = 1, the recipe has 2"),
    ({"seed": 1}, {"teacher": "abc"}, "method.samples = 4, the recipe has nothing"),
    ({"seed": 1, "method.samples": 4}, {"teacher": "abd"}, "what teacher holds has changed"),
])  # fmt: skip
def test_another_recipe_is_refused_and_leaves_all_as_it_was(tmp_path, recipe, files, said):
    out = tmp_path / "rows.jsonl"
    filled(out)
    before = journal_path(out).read_bytes()
    with (
        pytest.raises(BadInput, match=said) as caught,
        opened(out, Identity(recipe=recipe, files=files), False),
    ):
        pass
    assert "--again" in str(caught.value) and "\n" not in str(caught.value)
    assert journal_path(out).read_bytes() == before


def test_another_recipe_is_fine_where_nothing_was_answered_yet(tmp_path):
    out = tmp_path / "rows.jsonl"
    with opened(out, WHO, again=False):
        pass
    with opened(out, Identity(recipe={}, files={}), again=False) as store:
        store.put(RECORDS[1])
    with opened(out, Identity(recipe={}, files={}), again=False) as store:
        assert store.has("0/0")


def test_a_file_that_the_command_did_not_make_is_not_replaced(tmp_path):
    out = tmp_path / "rows.jsonl"
    out.write_text("mine\n")
    for _ in range(2):
        with pytest.raises(BadInput, match="is there already"), opened(out, WHO, again=False):
            pass
    assert not journal_path(out).exists()
    filled_before = tmp_path / "other.jsonl"
    filled(filled_before)
    filled_before.write_text("mine\n")  # put there while it was being made
    with pytest.raises(BadInput, match="is there already"), opened(filled_before, WHO, again=False):
        pass


def test_again_replaces_and_goes_on_without_again(tmp_path):
    out = tmp_path / "rows.jsonl"
    out.write_text("old\n")
    with opened(out, WHO, again=True) as store:
        store.put(RECORDS[1])
    with opened(out, WHO, again=False) as store:
        assert store.has("0/0") and store.done is None
        store.put(Done(account=Account(asked=1, kept=1), sha256="", at=0.0))
    with opened(out, WHO, again=True) as store:
        assert not store.has("0/0") and store.done is None


def test_a_second_process_on_the_same_file_is_refused(tmp_path):
    out = tmp_path / "rows.jsonl"
    with opened(out, WHO, again=False) as store:
        store.put(RECORDS[1])
        for again in (False, True):
            with pytest.raises(BadInput, match="another pippin make-data"), opened(out, WHO, again):
                pass
        assert store.has("0/0")
    with opened(out, WHO, again=False) as store:
        assert store.has("0/0")


@pytest.mark.parametrize("damage", ["flip", "foreign"])
def test_damage_is_named_and_not_guessed_at(tmp_path, damage):
    out = tmp_path / "rows.jsonl"
    filled(out)
    content = bytearray(journal_path(out).read_bytes())
    content[200] ^= 1
    journal_path(out).write_bytes(content if damage == "flip" else b"")
    if damage == "foreign":
        from runtime.journal import Journal

        journal = Journal(journal_path(out))
        journal.append(b'{"type":"something"}')
        journal.close()
    with pytest.raises(BadInput, match="is damaged, or no journal of pippin make-data"):
        Store(out, WHO, again=False)
    with opened(out, WHO, again=True) as store:
        assert not store.answers
