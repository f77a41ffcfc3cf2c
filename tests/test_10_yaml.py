"""YAML that people write: words stay words, faults name line and mend, nothing explodes."""

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from ovrs import options, yamlfile
from ovrs.errors import OptionError, VocabularyError
from ovrs.methods import preset
from ovrs.words import vocabulary


def read(text):
    return yamlfile.parse(text, "f.yaml", VocabularyError).data


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("no", "no"),
        ("Yes", "Yes"),
        ("off", "off"),
        ("2026-01-01", "2026-01-01"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("=", "="),
        ("<<", "<<"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("-7", -7),
        ("1e-4", 1e-4),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("[a, no]", ["a", "no"]),
    ],
)
def test_values_are_what_they_look_like(written, meant):
    found = read(f"k: {written}\n")["k"]
    assert found == meant
    assert type(found) is type(meant)


def test_shipped_files_read_as_before():
    for name in vocabulary.shipped():
        text = yaml.safe_dump(vocabulary.load(name).model_dump(mode="json"), allow_unicode=True)
        assert vocabulary.parse(text, name) == vocabulary.load(name)
    assert all(preset.method_options(name) for name in preset.names())


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: 2\na: 3", "f.yaml:3: .*the key 'a' stands here a second time .first in line 1"),
        ("x:\n  - {a: 1, a: 2}", "f.yaml:2: .*second time"),
        ("a: 1\n\tb: 2", "f.yaml:2: no valid YAML.*indent with blanks, not with a tab"),
        ("a: 1\nb: [", "f.yaml:2: no valid YAML"),
        (LAUGHS, "f.yaml:5: aliases repeat more than"),
        ("a: &x [*x]", "f.yaml:1: .x stands for nothing that is complete"),
        ("a: !!python/object:os.system x", "f.yaml:1: the tag .* is not taken"),
        ("- " * 40 + "x", "f.yaml:1: nested more than 32 deep"),
        ("[" * 100_000, "f.yaml:1: nested more than 32 deep"),
        ("1: a", "f.yaml:1: .*the key '1' is no word; write it in quotes"),
        ("ok: 1\n[a]: b", "f.yaml:2: .*a key must be a word"),
        ("a: 1\n---\nb: 2", "f.yaml:2: .*another document"),
        ("a: 1\nb: \x07", "f.yaml:2: .*character '.x07' is not allowed"),
    ],
)
def test_faults_name_line_and_mend(text, told):
    with pytest.raises(VocabularyError, match=told) as caught:
        read(text)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_text_are_told_apart(tmp_path):
    def told(path):
        with pytest.raises(VocabularyError) as caught:
            yamlfile.read_text(path, VocabularyError)
        return str(caught.value)

    file = tmp_path / "a.yaml"
    for content, words in ((b"a: 1\nb: \x9e\n", "a.yaml:2: byte 0x9e is no UTF-8"), ("a".encode("utf-16"), "UTF-16")):
        file.write_bytes(content)
        assert words in told(file)
    with file.open("wb") as stream:
        stream.truncate(yamlfile.MAX_BYTES + 1)
    assert "at most 16" in told(file)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "symbolic links" in told(tmp_path / "loop")
    assert "is a folder" in told(tmp_path)
    assert "no file at" in told(tmp_path / "none")
    assert "no ordinary file" in told(type(tmp_path)("/dev/zero"))
    assert "is no file name" in told(tmp_path / "a\0b")
    file.write_bytes(b"\xef\xbb\xbfa: 1")
    assert read(yamlfile.read_text(file, VocabularyError)) == {"a": 1}


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("name: 1.0", 'v.yaml:4: classes.1.name: 1.0 is no text in YAML; write it in quotes: "1.0"'),
        ("name: true", 'write it in quotes: "true"'),
        ("name:", "classes.1.name: no value is given"),
        ("name: ' '", "classes.1.name: it is empty"),
        ('name: "a\\u202eb"', "character 2 is right-to-left override"),
        ('name: "a\\0b"', "character 2 is a control character .U.0000"),
        ("name: SHIP", "found twice: ship"),
        ("name: b\n  colour: #203a7a", "v.yaml:5: `#` begins a comment|no colour is given"),
        ("name: b\n  colour: red", "v.yaml:5: .*'red' is no colour"),
        ("name: b\n  synonyms: boat", "expected a list"),
        ("name: b\n  synonyms: [' ']", "classes.1.synonyms.0: it is empty"),
        ("name: b\n  color: red", "v.yaml:5: classes.1.color: there is no such key here"),
        ("plain", "expected keys and values"),
    ],
)
def test_wrong_classes_are_explained(entry, told):
    with pytest.raises(VocabularyError, match=told):
        vocabulary.parse(f"name: v\nclasses:\n- name: ship\n- {entry}\n", "v.yaml")


def test_words_of_yaml_are_class_names():
    words = vocabulary.parse("name: v\nclasses:\n- name: no\n- name: 2026-01-01\n- name: yes\n  synonyms: [on]\n", "v")
    assert words.class_names == ("no", "2026-01-01", "yes")
    assert words.classes[2].synonyms == ("on",)


@pytest.mark.parametrize("threshold", [".nan", ".inf", "2", "true", "much"])
def test_thresholds_are_numbers_between_0_and_1(threshold):
    with pytest.raises(VocabularyError, match=r"v:2: background"):
        vocabulary.parse(
            f"name: v\nbackground: {{class_name: a, threshold: {threshold}}}\nclasses: [{{name: a}}, {{name: b}}]", "v"
        )


@pytest.mark.parametrize(
    "names", [["straße", "STRASSE"], ["caf\u00e9", "cafe\u0301"], ["a  b", "a b"], ["a\x1bb"], ["\u200b"]]
)
def test_names_that_look_alike_or_cannot_be_seen_are_refused(names):
    with pytest.raises(VocabularyError, match="--classes"):
        vocabulary.from_names(names)


def test_names_that_are_one_question_are_warned_of(caplog):
    vocabulary.parse("name: v\nclasses: [{name: bare soil}, {name: bare-soil}]", "v")
    assert "cannot tell apart" in caplog.text


def test_options_take_no_switch_for_a_number_and_nothing_endless():
    for wrong in ({"gsd": True}, {"gsd": float("inf")}, {"bbox": (0, 0, float("nan"), 1)}):
        with pytest.raises(OptionError, match=r"gsd|bbox"):
            options.build(scene=wrong)
    assert options.build(scene={"nodata": float("nan")}).scene.nodata != 0
    with pytest.raises(OptionError, match="--set steps:1: no valid YAML"):
        preset.parse_settings(["steps=[1"])
    assert preset.parse_settings(["lr=1e-4", "bare=no", "dense=sclip"]) == {"lr": 1e-4, "bare": "no", "dense": "sclip"}
    assert options.build(method=preset.parse_settings(["bare=no"])).method.bare is False


def test_only_ten_faults_are_listed():
    class Numbers(BaseModel):
        a: list[int]

    document = yamlfile.parse("a:\n" + "- x\n" * 15, "f", VocabularyError)
    with pytest.raises(ValidationError) as caught:
        Numbers.model_validate(document.data)
    lines = document.told(document.faults(caught.value)).splitlines()
    assert lines[0].startswith("f:2: a.0: ")
    assert len(lines) == 11
    assert "5 more faults" in lines[-1]
