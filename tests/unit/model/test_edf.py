"""EDFs: what is accepted, what the template makes, and what a merge keeps of a person's edits."""

import random
import re
import tomllib
from pathlib import Path

import pytest
import tomlkit
from msgspec.structs import replace

from rc_tasks.errors import EdfError
from rc_tasks.model.edf import schema
from rc_tasks.model.edf.merge import EXPLANATION, merge
from rc_tasks.model.edf.schema import Edf, EdfValues

WHERE = "projects/reasoning:2025.1/env.toml"
TEMPLATE = (Path(__file__).parents[3] / "templates/env.toml.j2").read_text()
VALUES = EdfValues(
    name="reasoning:2025.1",
    image="/store/imgs/projects/reasoning:2025.1/image.sqsh",
    mounts=("/capstor:/capstor", "/users:/users"),
    workdir="/workspace",
    annotations={
        "com.hooks.aws_ofi_nccl.enabled": "true",
        "com.hooks.aws_ofi_nccl.variant": "cuda12",
    },
)


def rendered(**changes: object) -> str:
    return schema.render(TEMPLATE, "templates/env.toml.j2", replace(VALUES, **changes))


def flat(text: str) -> dict[str, object]:
    found: dict[str, object] = {}

    def walk(table: dict[str, object], above: str) -> None:
        for key, value in table.items():
            if isinstance(value, dict):
                walk(value, f"{above}{key}.")
            else:
                found[above + key] = value

    walk(tomllib.loads(text), "")
    return found


# Reading and checking


def test_loads_every_key() -> None:
    found = schema.loads(
        """
        base_environment = "common"
        image = 'nvcr.io#nvidia/pytorch:25.01-py3'
        workdir = "/w"
        entrypoint = false
        writable = true
        mounts = ["/capstor", "${SCRATCH:-}/a b:/b:ro+private", "./x.sqsh:/x:sqsh"]
        devices = ["nvidia.com/gpu=all"]
        env = { A = "1", B = "" }
        [annotations]
        com.hooks.cxi.enabled = "true"
        "com.hooks.x" = "ü"
        """,
        WHERE,
    )
    assert found == Edf(
        base_environment=("common",),
        image="nvcr.io#nvidia/pytorch:25.01-py3",
        workdir="/w",
        entrypoint=False,
        writable=True,
        mounts=("/capstor", "${SCRATCH:-}/a b:/b:ro+private", "./x.sqsh:/x:sqsh"),
        env={"A": "1", "B": ""},
        annotations={"com.hooks.cxi.enabled": "true", "com.hooks.x": "ü"},
        devices=("nvidia.com/gpu=all",),
    )


def test_what_is_not_written_is_told_apart_from_false() -> None:
    assert schema.loads("", WHERE) == Edf()
    assert schema.loads("", WHERE).entrypoint is None
    assert schema.loads('base_environment = ["a", "b"]', WHERE).base_environment == ("a", "b")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('mount = ["/a:/a"]', f"{WHERE}:2: mount is not a known key\n  next: did you mean mounts?"),
        ('mounts = ["a:b"]', "mounts: expected a mount SRC:DST of absolute paths"),
        ('mounts = "/a:/a"', "mounts: expected a list of strings"),
        ('annotations."a.b" = "1"\nannotations.a.b = "2"', "a.b is given twice, quoted and dotted"),
        ("[env]\nA = 1", f'{WHERE}:2: env: A: expected a string, found 1; write "1"'),
        ('[env]\n"A-B" = "1"', '"A-B" cannot be the name of an environment variable'),
        ('entrypoint = "true"', "entrypoint: expected true or false"),
        ("image = ''\nimage = ''", f"{WHERE}:3: not valid TOML: Cannot overwrite a value"),
        ("image = /store/image.sqsh", f"{WHERE}:2: not valid TOML: Invalid value, column 9"),
        ("[annotations", f"{WHERE}:2: not valid TOML"),
        ("[[annotations]]", "annotations: expected a table of strings"),
    ],
)
def test_mistake_in_an_edf(line: str, message: str) -> None:
    text = f"# by hand\n{line}\n"
    for refuse in (
        lambda: schema.check(text, WHERE),
        lambda: merge(text, rendered(), WHERE),
    ):
        with pytest.raises(EdfError) as caught:
            refuse()
        assert message in str(caught.value)


def test_an_annotation_that_is_no_string_is_kept_and_noted() -> None:
    """The Container Engine's successor takes its TOML; of variables it takes strings alone."""
    text = (
        "image = 'x'\nannotations.com.x.on = true\n"
        "[annotations.com.y]\nsize = 5\nday = 2026-01-02\nlist = ['a', 1]\nname = 'z'\n"
    )
    assert schema.loads(text, WHERE).annotations == {
        "com.x.on": "true",
        "com.y.size": "5",
        "com.y.day": "2026-01-02",
        "com.y.list": '["a", 1]',
        "com.y.name": "z",
    }
    assert list(schema.notes(text, WHERE)) == [
        f"{WHERE}:2: annotations: com.x.on is true and is kept; the Container Engine wants strings:"
        ' "true"',
        f'{WHERE}:4: annotations: com.y.size is 5 and is kept; the Container Engine wants strings: "5"',
        f"{WHERE}:5: annotations: com.y.day is 2026-01-02 and is kept; the Container Engine wants"
        ' strings: "2026-01-02"',
        f'{WHERE}:6: annotations: com.y.list is ["a", 1] and is kept; the Container Engine wants'
        ' strings: "[\\"a\\", 1]"',
    ]


def test_what_a_person_wrote_is_kept_as_it_is_written() -> None:
    generated = 'com.hooks.aws_ofi_nccl.enabled = "true"'
    assert generated in published()
    for written in (
        "com.hooks.aws_ofi_nccl.enabled = true",
        "com.hooks.aws_ofi_nccl.enabled = 2026-01-02",
    ):
        text = published().replace(generated, written)
        assert merge(text, rendered(), WHERE) == text


# Rendering


def test_the_shipped_template() -> None:
    assert rendered() == (
        'image = "/store/imgs/projects/reasoning:2025.1/image.sqsh"\n'
        'mounts = ["/capstor:/capstor", "/users:/users"]\n'
        'workdir = "/workspace"\n'
        "# Always written out: the Container Engine and its successor have opposite defaults.\n"
        "entrypoint = false\n"
        "writable = true\n"
        "\n"
        '# Values are strings, "true" too.\n'
        "[annotations]\n"
        'com.hooks.aws_ofi_nccl.enabled = "true"\n'
        'com.hooks.aws_ofi_nccl.variant = "cuda12"\n'
    )


def test_hostile_values_come_out_as_they_went_in() -> None:
    nasty = "a b:\"q\" 's' \\ \n\t\x7f\x1b ü 🚀 {{x}} <@ y @> ${#a[@]}"
    values = replace(
        VALUES,
        image=f"/{nasty}",
        mounts=(f"/{nasty.replace(':', '')}:/b",),
        workdir=f"/{nasty}",
        env={"A": nasty},
        annotations={"com.a b.ü": nasty},
    )
    found = schema.loads(schema.render(TEMPLATE, "t", values), WHERE)
    assert (found.image, found.workdir, found.mounts) == (values.image, values.workdir, values.mounts)
    assert (found.env, found.annotations) == (values.env, values.annotations)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("\n<@ imge @>", "t.j2:2: the template cannot be rendered: 'imge' is undefined"),
        ("\n\n<% if %>", "t.j2:3: the template cannot be rendered: Expected an expression"),
        ("<@ image | tml @>", "t.j2:1: the template cannot be rendered: No filter named 'tml'"),
        ("<% include 'x' %>", "t.j2:1: the template cannot be rendered: no loader"),
        ("\n<@ 1 / 0 @>", "t.j2:2: the template cannot be rendered: division by zero"),
        (
            "image = <@ image @>",
            "t.j2: the template does not make a valid EDF\n  | rendered text:1: not valid",
        ),
        ("imag = <@ image | toml @>", "rendered text:1: imag is not a known key"),
    ],
)
def test_mistake_in_the_template(template: str, message: str) -> None:
    with pytest.raises(EdfError) as caught:
        schema.render(template, "t.j2", VALUES)
    assert message in str(caught.value)


def test_path_that_is_not_utf8_is_an_error() -> None:
    with pytest.raises(EdfError, match="cannot be rendered"):
        rendered(image="/store/\udcff/image.sqsh")


def test_shell_code_and_go_templates_pass_through_the_template() -> None:
    line = "# ${#arr[@]} {{.Id}} [[ -n $x ]] <<EOF {% raw %}\n"
    assert schema.render(line, "t.j2", VALUES) == line


# Merging


def body(text: str) -> str:
    """The text without the tool's own lines."""
    ours = (*EXPLANATION, "# generated:")
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(ours))


def published() -> str:
    return merge(None, rendered(), WHERE)


def test_a_new_file_is_the_rendered_text_with_the_record_at_its_head() -> None:
    text = published()
    head, _, rest = text.partition("\n\n")
    assert rest == rendered()
    assert head.startswith("\n".join(EXPLANATION) + "\n# generated: image=")
    assert max(map(len, head.splitlines())) <= 105
    assert merge("\ufeff\r\n", rendered(), WHERE) == text


def test_merging_the_same_again_changes_nothing() -> None:
    assert merge(published(), rendered(), WHERE) == published()


def test_generated_values_follow() -> None:
    text = merge(
        published(),
        rendered(
            image="/elsewhere/image.sqsh",
            mounts=("/iopsstor:/iopsstor",),
            annotations={"com.hooks.aws_ofi_nccl.enabled": "false", "com.hooks.cxi.enabled": "true"},
            env={"A": "1"},
        ),
        WHERE,
    )
    assert body(text) == (
        "\n"
        'image = "/elsewhere/image.sqsh"\n'
        'mounts = ["/iopsstor:/iopsstor"]\n'
        'workdir = "/workspace"\n'
        "# Always written out: the Container Engine and its successor have opposite defaults.\n"
        "entrypoint = false\n"
        "writable = true\n"
        "\n"
        '# Values are strings, "true" too.\n'
        "[annotations]\n"
        'com.hooks.aws_ofi_nccl.enabled = "false"\n'
        'com.hooks.cxi.enabled = "true"\n'
        "\n"
        "[env]\n"
        'A = "1"\n'
    )


def test_what_a_person_changed_added_or_deleted_stays() -> None:
    text = published()
    text = text.replace('workdir = "/workspace"', "workdir = '/mine' # better")
    text = text.replace("writable = true\n", "")
    text = text.replace('variant = "cuda12"', 'variant = "cuda12" # why\ncom.hooks.mine = "1"')
    text += '\n[env]\n# mine\nB = "2"\n'
    merged = merge(text, rendered(workdir="/other", writable=False, env={"A": "1", "B": "3"}), WHERE)
    assert body(merged) == body(text) + 'A = "1"\n'
    again = merge(merged, rendered(workdir="/third", env={"A": "2"}), WHERE)
    assert body(again) == body(merged).replace('A = "1"', 'A = "2"')


def test_a_persons_value_that_the_template_passes_through_stays_a_persons() -> None:
    text = published().replace('workdir = "/workspace"', 'workdir = "/b"')
    text = merge(text, rendered(workdir="/b"), WHERE)
    text = merge(text, rendered(workdir="/c"), WHERE)
    assert schema.loads(text, WHERE).workdir == "/b"


def test_a_value_that_a_person_puts_back_is_generated_again() -> None:
    text = published().replace('workdir = "/workspace"', 'workdir = "/b"')
    text = merge(text, rendered(workdir="/c"), WHERE).replace('"/b"', "'/workspace'")
    assert schema.loads(merge(text, rendered(workdir="/c"), WHERE), WHERE).workdir == "/c"


def test_the_image_is_always_ours() -> None:
    mine = re.sub(r"^image = .*$", "image = '/mine.sqsh' # c", published(), flags=re.MULTILINE)
    assert f'image = "{VALUES.image}" # c' in merge(mine, rendered(), WHERE)
    gone = re.sub(r"^image = .*\n", "", published(), flags=re.MULTILINE)
    assert schema.loads(merge(gone, rendered(), WHERE), WHERE).image == VALUES.image


def test_a_value_no_longer_generated_goes_and_its_comment_stays() -> None:
    text = published().replace('variant = "cuda12"', 'variant = "cuda12" # see wiki')
    less = {"com.hooks.aws_ofi_nccl.enabled": "true"}
    merged = merge(text, rendered(annotations=less), WHERE)
    assert body(merged) == body(text).replace('com.hooks.aws_ofi_nccl.variant = "cuda12" ', "")
    mine = text.replace("cuda12", "cuda13")
    assert body(merge(mine, rendered(annotations=less), WHERE)) == body(mine)


def test_a_file_by_hand_keeps_every_value_and_gets_the_missing_ones() -> None:
    text = (
        'image = "/capstor/old/image.sqsh"\n'
        'mounts = ["/capstor", "/iopsstor", "/users"]\n'
        "\n"
        "[annotations]\n"
        'com.hooks.aws_ofi_nccl.variant = "cuda11"\n'
    )
    merged = merge(text, rendered(), WHERE)
    assert body(merged).lstrip("\n") == (
        f'image = "{VALUES.image}"\n'
        'mounts = ["/capstor", "/iopsstor", "/users"]\n'
        'workdir = "/workspace"\n'
        "entrypoint = false\n"
        "writable = true\n"
        "\n"
        "[annotations]\n"
        'com.hooks.aws_ofi_nccl.variant = "cuda11"\n'
        'com.hooks.aws_ofi_nccl.enabled = "true"\n'
    )
    later = merge(merged, rendered(mounts=(), workdir="/x"), WHERE)
    assert body(later) == body(merged).replace("/workspace", "/x")


NEW = {
    "com.hooks.aws_ofi_nccl.enabled": "new",
    "com.hooks.aws_ofi_nccl.variant": "cuda12",
    "com.hooks.cxi.enabled": "false",
}


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        (
            '[annotations.com.hooks.aws_ofi_nccl]\nenabled = "true" # c\n# end\n\n[env]\nA = "1"',
            '[annotations.com.hooks.aws_ofi_nccl]\nenabled = "new" # c\nvariant = "cuda12"\n# end\n\n'
            '[env]\nA = "1"\n\n[annotations.com.hooks.cxi]\nenabled = "false"\n',
        ),
        (
            'annotations.com.hooks.aws_ofi_nccl.enabled = "true" # c\n[env]\nA = "1"\n',
            'annotations.com.hooks.aws_ofi_nccl.enabled = "new" # c\n'
            'annotations.com.hooks.aws_ofi_nccl.variant = "cuda12"\n'
            'annotations.com.hooks.cxi.enabled = "false"\n[env]\nA = "1"\n',
        ),
        (
            'annotations = { com.hooks.aws_ofi_nccl.enabled = "true" , a = "}, # x" } # c\n',
            'annotations = { com.hooks.aws_ofi_nccl.enabled = "new", '
            'com.hooks.aws_ofi_nccl.variant = "cuda12", a = "}, # x", com.hooks.cxi.enabled = "false" }'
            " # c\n",
        ),
        (
            "annotations = {}\n",
            # The record says that `enabled` stood here: a person deleted it.
            'annotations = { com.hooks.aws_ofi_nccl.variant = "cuda12", '
            'com.hooks.cxi.enabled = "false" }\n',
        ),
        (
            "[annotations]\n  'com.hooks.aws_ofi_nccl.enabled'   =   'true' # c",
            "[annotations]\n  'com.hooks.aws_ofi_nccl.enabled'   =   \"new\" # c\n"
            '  com.hooks.aws_ofi_nccl.variant = "cuda12"\n  com.hooks.cxi.enabled = "false"\n',
        ),
        (
            '[ annotations . "com" ]\nhooks.aws_ofi_nccl.enabled = "true"\n[env]\n[annotations]\n',
            '[ annotations . "com" ]\nhooks.aws_ofi_nccl.enabled = "new"\n'
            'hooks.aws_ofi_nccl.variant = "cuda12"\nhooks.cxi.enabled = "false"\n'
            "[env]\n[annotations]\n",
        ),
        (
            '[annotations.com.hooks.aws_ofi_nccl]\nenabled = "true"\n[annotations]\n# mine\n',
            '[annotations.com.hooks.aws_ofi_nccl]\nenabled = "new"\nvariant = "cuda12"\n'
            '[annotations]\ncom.hooks.cxi.enabled = "false"\n# mine\n',
        ),
        (
            '[annotations.com]\nhooks = { aws_ofi_nccl = { enabled = "true" } }\n',
            '[annotations.com]\nhooks = { aws_ofi_nccl.enabled = "new", '
            'aws_ofi_nccl.variant = "cuda12", cxi.enabled = "false" }\n',
        ),
    ],
    ids=["nested", "top", "inline", "emptied", "quoted", "apart", "two-tables", "inline-nested"],
)
def test_annotations_are_edited_in_the_form_they_have(annotations: str, expected: str) -> None:
    old = {"com.hooks.aws_ofi_nccl.enabled": "true"}
    record = re.search(r"annotations\S+=\w{8}", merge(None, rendered(annotations=old), WHERE))
    assert record is not None
    head = f"# généré\n# generated: {record[0]}\n"
    text = f'{head}image = "x"\nmounts=[]\nworkdir=""\nentrypoint=true\nwritable=true\n{annotations}'
    merged = merge(text, rendered(annotations=NEW), WHERE)
    assert merged[merged.index("writable=true\n") + len("writable=true\n") :] == expected
    assert merge(merged, rendered(annotations=NEW), WHERE) == merged
    # And back: what was added goes again, in every form.
    back = merge(merged, rendered(annotations={}), WHERE)
    assert not {key for key in flat(back) if "aws_ofi_nccl" in key or "cxi" in key}


def test_what_a_person_wrote_in_the_way_of_a_generated_key_is_told() -> None:
    with pytest.raises(EdfError) as caught:
        merge('[annotations]\ncom.hooks.aws_ofi_nccl = "off"\n', rendered(), WHERE)
    assert str(caught.value).startswith(f"{WHERE}:2: annotations.com.hooks.aws_ofi_nccl.enabled is ")
    with pytest.raises(EdfError, match=r"annotations\.com\.hooks is generated and cannot be written"):
        merge('[annotations]\ncom.hooks.x = "1"\n', rendered(annotations={"com.hooks": "1"}), WHERE)


@pytest.mark.parametrize("written", ["", 'image = "/x"\n'], ids=["lost", "changed"])
def test_what_tomlkit_cannot_keep_is_refused_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    # tomlkit 0.15 does this to [a.b.c], [a.b], [a], [a.b.d] in this order.
    monkeypatch.setattr(tomlkit.TOMLDocument, "as_string", lambda _: written)
    text = '[annotations.com]\nx = "1"\n'
    with pytest.raises(EdfError, match="image is generated and cannot be written") as caught:
        merge(text, rendered(), WHERE)
    assert "plain dotted keys under one [annotations] table" in (caught.value.hint or "")


def test_a_value_that_holds_a_line_of_the_record_is_told() -> None:
    text = f'[env]\nA = """\n{published().splitlines()[2]}\n"""\n'
    with pytest.raises(EdfError, match="a value of several lines"):
        merge(text, rendered(), WHERE)


ARRAY = """mounts = [ # all
    "/capstor:/capstor", # first, "quoted" ]
    # between
    '/users:/users'
    , ]  # after
"""


def test_an_array_over_many_lines_stays_when_it_need_not_change() -> None:
    text = re.sub(r"^mounts = .*\n", lambda _: ARRAY, published(), flags=re.MULTILINE)
    assert merge(text, rendered(), WHERE) == text
    merged = merge(text, rendered(mounts=("/a:/a", "/b:/b")), WHERE)
    assert (
        'mounts = [\n    # all\n    # first, "quoted" ]\n    # between\n'
        '    "/a:/a",\n    "/b:/b",\n]  # after\n'
    ) in merged


def test_crlf_stays_crlf() -> None:
    text = published().replace("\n", "\r\n")
    assert merge(text, rendered(), WHERE) == text
    merged = merge(text, rendered(workdir="/x", env={"A": "1"}), WHERE)
    assert merged.count("\n") == merged.count("\r\n")
    assert schema.loads(merged, WHERE).env == {"A": "1"}


def test_byte_order_mark_goes() -> None:
    assert merge("\ufeff" + published(), rendered(), WHERE) == published()


def test_a_file_of_comments_only_gets_every_value_and_keeps_them() -> None:
    merged = merge("# ours\n# two", rendered(), WHERE)
    assert "# ours\n# two\n" in merged
    assert flat(merged) == flat(rendered())


def test_top_level_keys_go_above_the_first_table_and_its_comments() -> None:
    merged = merge('# file\n\n# about env\n[env]\nB = "1"\n', rendered(annotations={}), WHERE)
    assert "# file\n\nimage = " in merged
    assert 'writable = true\n\n# about env\n[env]\nB = "1"\n' in merged


def test_two_records_that_git_merged_both_count() -> None:
    ours, theirs = published(), merge(None, rendered(workdir="/theirs"), WHERE)
    line = next(line for line in theirs.splitlines(keepends=True) if "workdir=" in line)
    text = ours.replace("\n\nimage", f"\n{line}\nimage").replace("/workspace", "/theirs")
    merged = merge(text, rendered(workdir="/new"), WHERE)
    assert schema.loads(merged, WHERE).workdir == "/new"
    assert len(re.findall(r"\bworkdir=", merged)) == 1


def test_keys_with_spaces_and_signs_are_remembered() -> None:
    odd = {"a b.c=d#": "1", "ü": "2"}
    text = merge(None, rendered(annotations=odd), WHERE)
    assert merge(text, rendered(annotations=odd), WHERE) == text
    changed = merge(text, rendered(annotations=dict.fromkeys(odd, "3")), WHERE)
    assert schema.loads(changed, WHERE).annotations == dict.fromkeys(odd, "3")


# A person and the tool take turns; the person's edits are written as text, as a person would.

KEYS = ["com.hooks.a.enabled", "com.hooks.a.variant", "com.hooks.b.enabled", "com.c", "own"]


def a_template(rng: random.Random) -> str:
    keys = rng.sample(KEYS[:4], rng.randint(0, 4))
    return rendered(
        image=f"/s/{rng.randint(0, 2)}.sqsh",
        mounts=tuple(f"/m{n}:/m{n}" for n in range(rng.randint(0, 3))),
        workdir=f"/w{rng.randint(0, 3)}",
        entrypoint=rng.random() < 0.5,
        annotations={key: str(rng.randint(0, 2)) for key in keys},
        env={f"E{n}": str(rng.randint(0, 2)) for n in rng.sample(range(3), rng.randint(0, 3))},
    )


def a_persons_edit(
    rng: random.Random, text: str, theirs: dict[str, object]
) -> tuple[str, str | None, object]:
    """The edited text, the key that was edited, and its new value (None: deleted)."""
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = text.split(newline)
    values = flat(text)
    kind = rng.choice(["change", "delete", "comment", "blank", "add"])
    at = [n for n, line in enumerate(lines) if re.match(r"[\w.]+ = .*[^{]$", line)]
    if kind == "blank":
        lines.insert(rng.randint(0, len(lines)), "")
        return newline.join(lines), None, None
    if kind == "comment":
        n = rng.choice(at)
        lines[n] += f" # note é {rng.random()}"
        return newline.join(lines), None, None
    if kind == "add":
        name = f"P{rng.randint(0, 10**9)}"
        if "[env]" in lines:
            lines.insert(lines.index("[env]") + 1, f"{name} = 'mine'")
        else:
            lines += ["[env]", f"{name} = 'mine'"]
        return newline.join([*lines, ""]), f"env.{name}", "mine"
    n = rng.choice(at)
    above = next((line[1:-1] for line in reversed(lines[:n]) if re.fullmatch(r"\[.*\]", line)), "")
    name = lines[n].partition(" = ")[0]
    key = f"{above}.{name}" if above else name
    if key == "image" or key not in values:
        return text, None, None
    if kind == "delete":
        del lines[n]
        return newline.join(lines), key, None
    mine: object = f"/mine{rng.random()}"
    if isinstance(values[key], bool):
        if key in theirs:  # a second change would put the generated value back
            return text, None, None
        mine = not values[key]
        lines[n] = f"{name} = {str(mine).lower()}"
    elif isinstance(values[key], list):
        lines[n] = f"{name} = ['{mine}:/x']"
        mine = [f"{mine}:/x"]
    else:
        lines[n] = f"{name} = '{mine}'  # mine"
    return newline.join(lines), key, mine


@pytest.mark.parametrize("seed", range(30))
def test_a_persons_edits_are_never_lost(seed: int) -> None:
    rng = random.Random(seed)
    template = a_template(rng)
    text = merge(None, template, WHERE)
    if seed % 5 == 0:
        text = text.replace("\n", "\r\n")
    theirs: dict[str, object] = {}
    notes: set[str] = set()
    for _ in range(12):
        for _ in range(rng.randint(0, 3)):
            text, key, value = a_persons_edit(rng, text, theirs)
            if key is not None:
                theirs[key] = value
        notes = set(re.findall(r"# note é \S+", text))
        if rng.random() < 0.7:
            template = a_template(rng)
        merged = merge(text, template, WHERE)
        assert merge(merged, template, WHERE) == merged
        found, wanted, before = flat(merged), flat(template), flat(text)
        for key, value in theirs.items():
            assert found.get(key) == value, key
        for key, value in wanted.items():
            if key not in theirs:
                assert found[key] == value, key
        for key in found.keys() - wanted.keys() - theirs.keys():
            raise AssertionError(f"{key} was generated once and is still here")
        assert notes <= set(re.findall(r"# note é \S+", merged))
        unchanged = {key for key in before if found.get(key) == before[key]}
        kept = [line for line in body(text).split("\n") if line.partition(" = ")[0] in unchanged]
        assert set(kept) <= set(body(merged).split("\n"))
        text = merged
