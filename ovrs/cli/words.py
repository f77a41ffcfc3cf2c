"""Commands about words and what is known: methods, prompts, vocabularies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ovrs import files
from ovrs.cli.edge import App
from ovrs.errors import OptionError

if TYPE_CHECKING:
    from ovrs.methods.preset import Preset
    from ovrs.words.vocabulary import Vocabulary

app = App()
vocabularies = App(help="Classes and their prompts.", no_args_is_help=True)
app.add_typer(vocabularies, name="vocabulary")


@app.command()
def methods() -> None:
    """List the methods, dense features and presets, each with its source."""
    from ovrs.methods import preset
    from ovrs.methods.registry import DENSE, METHODS

    of_clip, of_sam3 = ([m for m in METHODS.values() if m.family == family] for family in ("clip", "sam3"))
    for title, entries in (("--method", of_clip), ("--method, with --model sam3", of_sam3), ("--set dense=", DENSE)):
        typer.echo(f"{title}\n" + "\n".join(f"  {e.name:16} {e.what}  [{e.source}; {e.proof}]" for e in entries))
    typer.echo("golden: equal to arrays of the authors' code; equations: from the paper, with property tests")
    typer.echo("--preset")
    for file in sorted({name.partition("/")[0] for name in preset.names()}):
        found = preset.load(file)
        tuned = "  (tuned on labels: not zero-shot)" if found.tuned_on_labels else ""
        typer.echo(f"  {file}: {found.title}{tuned}\n    {', '.join(f'{file}/{e}' for e in found.datasets)}")
        typer.echo(f"    words: {_words_of(found)}")


def _words_of(found: Preset) -> str:
    if found.words is None:
        return "your own; the preset has none"
    from ovrs.methods.published import word_lists

    lists = word_lists(found.words)
    return f"{lists.title}, {lists.source}" + (f"; sentences: {found.sentences}" if found.sentences else "")


@app.command()
def prompts(
    words: Annotated[str, typer.Argument(metavar="VOCABULARY", help="A shipped name or a YAML file.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="YAML file to write.")] = None,
    llm_base_url: Annotated[str | None, typer.Option(help="Endpoint that speaks OpenAI's chat protocol.")] = None,
    llm_model: Annotated[str | None, typer.Option(help="The model's name at that endpoint.")] = None,
    scene_context: Annotated[str, typer.Option(help='Such as "RGB orthophoto, 0.1 m, German suburb, summer".')] = "",
    count: Annotated[int, typer.Option(min=1, max=20, help="Descriptions per class.")] = 5,
    rewrite: Annotated[bool, typer.Option("--rewrite", help="Also classes that have descriptions.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only look for faults in the file.")] = False,
) -> None:
    """Let a language model write context prompts, or check a prompt file. The key comes from OPENAI_API_KEY."""
    from ovrs.cache import cache_directory
    from ovrs.words import vocabulary as known_words
    from ovrs.words.prompts import LanguageModel, PromptError, write_prompts

    given = known_words.load(words)
    if check:
        _check_prompts(given)
        return
    if llm_model is None or out is None:
        raise OptionError("name the model and the file to write: --llm-model NAME -o FILE.yaml (or --check)")
    if rewrite:
        given = given.model_copy(
            update={"classes": tuple(c.model_copy(update={"descriptions": ()}) for c in given.classes)}
        )
    model = LanguageModel(base_url=llm_base_url, name=llm_model)
    try:
        done = write_prompts(
            given,
            model,
            context=scene_context,
            count=count,
            cache=cache_directory() / "prompts",
            progress=lambda name: typer.echo(f"written: {name}"),
        )
    except PromptError as error:
        if error.partial is not None:
            files.write_text(out, known_words.dump(error.partial))
            typer.echo(f"{out} holds what was good; the same command asks for the rest", err=True)
        raise
    files.write_text(out, known_words.dump(done))
    typer.echo(f"prompts: {out}")


def _check_prompts(words: Vocabulary) -> None:
    from ovrs.model.clip.text import longest_template, token_count
    from ovrs.words.lint import lint

    findings = lint(words, token_count, longest_template())
    for finding in findings:
        typer.echo(finding)
    if findings:
        raise typer.Exit(1)
    typer.echo("no faults found")


@vocabularies.command("list")
def vocabulary_list() -> None:
    """List the shipped vocabularies."""
    from ovrs.words import vocabulary as known_words

    for name in known_words.shipped():
        found = known_words.load(name)
        typer.echo(f"{name:14} {len(found.classes):3} classes  {found.title}")


@vocabularies.command("show")
def vocabulary_show(name: Annotated[str, typer.Argument(help="A shipped name or a YAML file.")]) -> None:
    """Classes and prompts of one vocabulary."""
    from ovrs.words import vocabulary as known_words

    for entry in known_words.load(name).classes:
        asked = f"asked for: {', '.join(entry.asked)}" if entry.asked else ", ".join(entry.synonyms) or "no synonyms"
        typer.echo(f"{entry.name} ({asked}), {entry.prompt_source}")
        for sentence in entry.descriptions:
            typer.echo(f"    {sentence}")
