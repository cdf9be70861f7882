"""From a student's ids to a teacher's: the bytes of tokens, and which tokens of both stand for the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from veto_pl.data.token_bytes import token_bytes
from veto_pl.data.tokenising import AS_TEXT
from veto_pl.data.translator import Translator
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.tokenizers import CharacterTokenizer
from veto_pl.testing.tokenizer_kinds import CONTROL, CORPUS, KINDS, tokenizer_of

ALIGNABLE = [kind for kind in KINDS if kind != "word pieces"]
PAIRS = [(one, other) for one in ALIGNABLE for other in ALIGNABLE if one != other]
quick = settings(deadline=None, max_examples=50)
anchor = "Paris"


def ids_of(kind, text):
    """The ids of a text that stands in the middle of another, control words taken for text."""
    tokenizer = tokenizer_of(kind)
    before, whole = tokenizer([anchor, anchor + text], add_special_tokens=False, **AS_TEXT)["input_ids"]
    assert whole[: len(before)] == before, "the test needs a text that does not merge with what is in front of it"
    return whole[len(before) :]


def translator_of(one, other, **ends):
    student, teacher = tokenizer_of(one), tokenizer_of(other)
    ends = {"student_ends": [student.eos_token_id], "teacher_ends": [teacher.eos_token_id]} | ends
    return Translator(student, teacher, **ends)


@pytest.mark.parametrize("kind", ALIGNABLE)
@quick
@given(data=st.data())
def test_the_bytes_of_any_ids_are_those_that_the_tokenizer_decodes(kind, data):
    tokenizer, known = tokenizer_of(kind), token_bytes(tokenizer_of(kind))
    plain = sorted(set(range(len(known.pieces))) - known.names.keys())
    ids = data.draw(st.lists(st.sampled_from(plain), max_size=8))
    before = tokenizer(anchor, add_special_tokens=False)["input_ids"]
    try:
        text = known.joined(ids).decode()
    except UnicodeDecodeError:
        return
    assert tokenizer.decode([*before, *ids]) == tokenizer.decode(before) + text


@pytest.mark.parametrize("kind", ALIGNABLE)
def test_ids_that_are_no_text_are_known_by_their_names(kind):
    known = token_bytes(tokenizer_of(kind))
    assert {"<s>", "</s>", "<pad>", "<unk>", *CONTROL} == set(known.names.values())
    assert known.lengths([tokenizer_of(kind).eos_token_id]).tolist() == [1]


def test_every_byte_has_an_id_of_its_own_in_the_byte_level_alphabet():
    known = token_bytes(tokenizer_of("bytes"))
    assert {bytes([byte]) for byte in range(256)} <= set(known.pieces)


def test_an_added_token_of_a_byte_level_tokenizer_is_the_text_that_it_shows():
    core = Tokenizer(models.BPE({"a": 0}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    tokenizer.add_tokens(["  ", "é", "<think>"])
    assert token_bytes(tokenizer).pieces == (b"a", b"  ", "é".encode(), b"<think>")


def test_tokens_that_are_not_decoded_one_by_one_are_refused_by_name():
    with pytest.raises(ConfigurationError, match=r"TokenizersBackend.*cannot be aligned .*got WordPiece\. Take"):
        token_bytes(tokenizer_of("word pieces"))
    core = Tokenizer(models.WordLevel({"a": 0, "b": 1}))  # decoded with spaces in between
    with pytest.raises(ConfigurationError, match="got none"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=core))


@pytest.mark.parametrize("kind", ALIGNABLE)
def test_identical_tokenizers_have_one_unit_for_each_token_and_share_every_id(kind):
    texts = [text for text in CORPUS if tokenizer_of(kind).unk_token_id not in ids_of(kind, text)]
    rows = [[*ids_of(kind, text), tokenizer_of(kind).eos_token_id] for text in texts]
    translator = translator_of(kind, kind)
    for ids, (theirs, units) in zip(rows, translator(rows), strict=True):
        assert theirs == ids
        assert units.student.tolist() == units.teacher.tolist() == list(range(len(ids)))
    mine, theirs = translator.shared
    assert torch.equal(mine, theirs)
    assert len(mine) == len(tokenizer_of(kind).get_vocab())


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_units_of_two_kinds_are_the_same_bytes(one, other):
    translator, mine, theirs = (
        translator_of(one, other),
        token_bytes(tokenizer_of(one)),
        token_bytes(tokenizer_of(other)),
    )
    rows = [ids_of(one, text) for text in CORPUS]
    aligned = 0
    for ids, (found, units) in zip(rows, translator(rows), strict=True):
        for u in range(units.count):
            own = [i for i, unit in zip(ids, units.student.tolist(), strict=True) if unit == u]
            other_ids = [i for i, unit in zip(found, units.teacher.tolist(), strict=True) if unit == u]
            if not any(i in theirs.names for i in other_ids) and not any(i in mine.names for i in own):
                assert mine.joined(own) == theirs.joined(other_ids) != b""
        aligned += int((units.student >= 0).sum())
    assert aligned > 0.85 * sum(map(len, rows))


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_shared_ids_are_pairs_of_the_same_bytes_or_names(one, other):
    translator = translator_of(one, other)
    pairs = list(zip(*(side.tolist() for side in translator.shared), strict=True))
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs) > 40
    for a, b in pairs:
        known = translator.mine.names.get(a), translator.theirs.names.get(b)
        assert known[0] == known[1] if any(known) else translator.mine.pieces[a] == translator.theirs.pieces[b]


def test_a_character_is_paired_with_itself_and_not_with_its_byte():
    translator = translator_of("bytes", "sentence pieces")
    pieces = tokenizer_of("sentence pieces").get_vocab()
    partner = dict(zip(*(side.tolist() for side in translator.shared), strict=True))
    assert partner[tokenizer_of("bytes").get_vocab()["a"]] == pieces["a"] != pieces["<0x61>"]
    assert partner[tokenizer_of("bytes").get_vocab()["Ċ"]] == pieces["<0x0A>"]


def test_digits_that_the_teacher_merges_are_one_unit_and_what_follows_is_another():
    tokenizer = CharacterTokenizer("42x ").load()
    core = Tokenizer(models.BPE({" ": 0, "4": 1, "2": 2, "x": 3, "42": 4, " 42": 5}, [("4", "2"), (" ", "42")]))
    core.decoder = decoders.Fuse()
    teacher = PreTrainedTokenizerFast(tokenizer_object=core)
    ids = tokenizer(" 42x")["input_ids"]
    [(found, units)] = Translator(tokenizer, teacher, [tokenizer.eos_token_id], [])([ids])
    assert teacher.convert_ids_to_tokens(found) == [" 42", "x"]
    assert units.student.tolist() == [0, 0, 0, 1]


def test_eos_is_aligned_with_the_teachers_and_never_added():
    student, teacher = CharacterTokenizer("ab", eos="<end>").load(), CharacterTokenizer("ba", eos="<stop>").load()
    translator = Translator(student, teacher, [student.eos_token_id], [teacher.eos_token_id])
    ids = student("ab")["input_ids"]
    (whole, units), (cut, parts) = translator([[*ids, student.eos_token_id], ids])
    assert whole == [*teacher("ab")["input_ids"], teacher.eos_token_id]
    assert units.student.tolist() == [0, 1, 2]
    assert cut == whole[:2]
    assert parts.count == 2
    pairs = set(zip(*(side.tolist() for side in translator.shared), strict=True))
    assert (student.eos_token_id, teacher.eos_token_id) in pairs


def test_an_end_is_the_teachers_of_the_same_name_if_that_ends_its_texts():
    student = teacher = tokenizer_of("characters")
    end, turn = (student.convert_tokens_to_ids(word) for word in ("</s>", "<|im_end|>"))
    for their_ends, wanted in (([turn, end], [end, turn]), ([turn], [turn, turn]), ([end], [end, end])):
        translator = Translator(student, teacher, [end, turn], their_ends)
        assert [translator([[i]])[0][0][0] for i in (end, turn)] == wanted
        assert sorted(translator.shared[1].tolist()) == sorted(set(translator.shared[1].tolist()))


def test_a_mark_is_the_teachers_of_the_same_name_and_text_that_spells_it_is_text():
    translator = translator_of("characters", "bytes")
    student, teacher = tokenizer_of("characters"), tokenizer_of("bytes")
    mark, spelled = (
        student.convert_tokens_to_ids("<|im_end|>"),
        [student.convert_tokens_to_ids(c) for c in "<|im_end|>"],
    )
    (found, units), (text, others) = translator([[*ids_of("characters", "it"), mark], spelled])
    assert found[-1] == teacher.convert_tokens_to_ids("<|im_end|>")
    assert units.student.tolist()[-1] == units.teacher.tolist()[-1] >= 0
    assert teacher.convert_tokens_to_ids("<|im_end|>") not in text
    assert teacher.decode(text) == "<|im_end|>"
    assert others.count > 1


BROKEN = [b"ab\xffcd", b"\xc3(", b"\xff\xfe", "é".encode()[::-1] + b"a", b"a\xf0\x9f\x99 \x80", "aé🙂".encode()]


def bytes_of(text):
    """The ids of single bytes, and the end of the text."""
    vocabulary = {piece: i for i, piece in enumerate(token_bytes(tokenizer_of("bytes")).pieces) if len(piece) == 1}
    return [*(vocabulary[bytes([byte])] for byte in text), tokenizer_of("bytes").eos_token_id]


@pytest.mark.parametrize("broken", BROKEN)
def test_bytes_that_are_no_text_are_read_one_by_one(broken):
    """Else a student could leave the comparison by writing one, and a policy gradient finds that out."""
    teacher = tokenizer_of("sentence pieces")
    [(found, units)] = translator_of("bytes", "sentence pieces")([bytes_of(broken)])
    assert (units.student >= 0).all()
    assert (units.teacher >= 0).all()
    assert token_bytes(teacher).joined(found[:-1]) == broken
    assert found[-1] == teacher.eos_token_id


@quick
@given(text=st.binary(max_size=24))
def test_any_bytes_are_compared_up_to_a_character_that_is_cut(text):
    [(found, units)] = translator_of("bytes", "sentence pieces")([bytes_of(text)[:-1]])
    compared = int((units.student >= 0).sum())
    assert token_bytes(tokenizer_of("sentence pieces")).joined(found) == text[:compared]
    rest = text[compared:]
    assert len(rest) <= 3
    if rest:
        with pytest.raises(UnicodeDecodeError, match="unexpected end of data"):
            rest.decode()


@pytest.mark.parametrize(("text", "aligned"), [("aé".encode()[:-1], 1), (b"a\xf0\x9f\x99", 1), (b"\xc3", 0)])
def test_a_character_that_a_row_was_cut_in_is_not_compared(text, aligned):
    [(_, units)] = translator_of("bytes", "sentence pieces")([bytes_of(text)[:-1]])
    assert (units.student >= 0).tolist() == [True] * aligned + [False] * (len(text) - aligned)


@pytest.mark.parametrize("broken", [b"it\xffis", b"\xc3it", b"it"])
def test_where_the_teacher_has_no_bytes_they_are_what_it_does_not_know(broken):
    """They ended the alignment at first, so what a student wrote behind them had no loss."""
    teacher = tokenizer_of("characters")
    [(found, units)] = translator_of("bytes", "characters")([bytes_of(broken)])
    assert (units.student >= 0).all()
    assert found.count(teacher.unk_token_id) == sum(byte > 127 for byte in broken)
    assert found[-1] == teacher.eos_token_id


@pytest.mark.parametrize("text", ["ab", "abXab", "X", "abXXb"], ids=["known", "inside", "first", "twice"])
def test_text_that_the_teacher_does_not_know_is_its_unknown_token(text):
    student, teacher = CharacterTokenizer("abX").load(), CharacterTokenizer("ba").load()
    [(found, units)] = Translator(student, teacher, [1], [1])([student(text)["input_ids"]])
    assert units.student.tolist() == units.teacher.tolist() == list(range(len(text)))
    assert [i == teacher.unk_token_id for i in found] == [letter == "X" for letter in text]


def test_a_character_that_the_teacher_writes_otherwise_is_read_in_bytes():
    """As by a tokenizer that normalises: `e` with a combining accent becomes one character, other bytes."""
    teacher = _normalising()
    text = "ae\u0301ba" * 2
    row = bytes_of(text.encode())[:-1]
    [(found, units)] = Translator(tokenizer_of("bytes"), teacher, [], [])([row])
    assert token_bytes(teacher).joined(found) == text.encode()
    assert units.student.tolist() == units.teacher.tolist() == list(range(len(row)))


def _normalising():
    core = Tokenizer(models.BPE({name: i for i, name in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


@pytest.mark.parametrize("word", ["<unk>", "<pad>"])
def test_an_id_of_which_nobody_knows_what_it_stands_for_is_read_as_its_name(word):
    student, teacher = tokenizer_of("characters"), tokenizer_of("bytes")
    row = [*ids_of("characters", "it"), student.convert_tokens_to_ids(word), *ids_of("characters", "is")]
    [(found, units)] = translator_of("characters", "bytes")([row])
    assert teacher.decode(found) == f"it{word}is"
    assert teacher.convert_tokens_to_ids(word) not in found
    assert (units.student >= 0).all()
    assert (units.teacher >= 0).all()
    mark = int(units.student[2])
    assert (units.student == mark).sum() == 1
    assert teacher.decode([i for i, unit in zip(found, units.teacher, strict=True) if unit == mark]) == word


def test_a_mark_that_the_teacher_lacks_is_read_as_its_name():
    """It ended the alignment of its row at first: a narrow way out for a student."""
    teacher = CharacterTokenizer("abit<|>_mrsx", eos="</s>").load()
    student = tokenizer_of("characters")
    row = [*ids_of("characters", "it"), student.convert_tokens_to_ids("<|im_start|>"), *ids_of("characters", "is")]
    translator = Translator(student, teacher, [student.eos_token_id], [teacher.eos_token_id])
    [(found, units)] = translator([row])
    assert units.student.tolist() == [0, 1, 2, 3, 4]
    assert units.teacher.tolist() == [0, 1, *[2] * len("<|im_start|>"), 3, 4]
    assert "".join(teacher.convert_ids_to_tokens(found)) == "it<|im_start|>is"
    assert translator.lacking(row) == [row[2]]


def test_what_a_teacher_cannot_read_at_all_takes_its_unit_away_and_no_more():
    core = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    core.decoder = decoders.Fuse()
    teacher = PreTrainedTokenizerFast(tokenizer_object=core)
    student = CharacterTokenizer("abX").load()
    end = student.eos_token_id
    [(found, units)] = Translator(student, teacher, [end], [])([[*student("aXb")["input_ids"], end]])
    assert teacher.convert_ids_to_tokens(found) == ["a", "b"]
    assert units.student.tolist() == [0, -1, 1, -1]
    assert units.teacher.tolist() == [0, 1]


@pytest.mark.parametrize(("one", "other"), PAIRS)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_nothing_that_a_student_can_write_ends_the_comparison(one, other, data):
    """Whatever ids, in any order: all are compared but a character that the row is cut in."""
    student = tokenizer_of(one)
    row = [*data.draw(st.lists(st.integers(0, len(student.get_vocab()) - 1), max_size=12)), student.eos_token_id]
    [(found, units)] = translator_of(one, other)([row])
    assert (units.student >= 0).all()
    assert len(found) == len(units.teacher)
    assert units.student.tolist() == sorted(units.student.tolist())
    assert set(units.teacher.tolist()) == set(range(units.count))


@pytest.mark.parametrize("rows", [[], [[]]], ids=["no row", "an empty row"])
def test_nothing_written_has_no_units(rows):
    assert [(ids, units.count) for ids, units in translator_of("bytes", "characters")(rows)] == [([], 0)] * len(rows)


@quick
@given(st.lists(st.integers(0, 329), max_size=30))
def test_whatever_ids_are_sampled_are_aligned_up_to_a_character_that_is_cut(ids):
    mine, theirs = (token_bytes(tokenizer_of(kind)) for kind in ("bytes", "sentence pieces"))
    [(found, units)] = translator_of("bytes", "sentence pieces")([ids])
    written, text = mine.joined(ids), theirs.joined(found)
    assert written.startswith(text)
    assert len(written) - len(text) <= 3 + max([len(mine.pieces[i]) for i in ids], default=0)  # a cut character
    assert len(units.student) == len(ids)
