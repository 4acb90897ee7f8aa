"""The page itself, in gradio: what is on it and what a click does. All arithmetic is in `app.scoring`."""

import html
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from PIL import Image

from app.scoring import (
    MOST_PICTURES,
    Shown,
    Side,
    Threshold,
    common_scale,
    decision,
    drawn,
    read_pictures,
    score_pictures,
    subject_in_words,
    threshold_of,
    typed_number,
    word_effects,
    words_attended,
)
from evaluation.photographs.subject import DOMAIN_NAMES, Subject

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing is reported anywhere

TITLE = "Anomaly scores"
KEPT_SECONDS = 3600  # uploaded and drawn pictures are deleted after that
LARGEST_UPLOAD = "200mb"
ONE_AT_A_TIME = {"concurrency_limit": 1, "concurrency_id": "model"}
SCORE_COLUMNS = ("picture", "score", "decision")
WORD_COLUMNS = ("without", "score", "the word adds")
ATTENTION_COLUMNS = ("word of the prompts", "share of attention", "share if even")
CSS = """
.numbers { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
.numbers th, .numbers td { text-align: left; padding: .25rem .5rem; border-bottom: 1px solid #d8dade; }
.numbers td { overflow-wrap: anywhere; }
"""
State = list[tuple[list[Shown], Threshold]]  # of every side


def shown_to_visitors(function: Callable) -> Callable:
    """The function with what it refuses as a message on the page."""
    import gradio

    def told(*arguments):
        try:
            return function(*arguments)
        except (ValueError, OSError) as error:
            raise gradio.Error(str(error), print_exception=False) from error

    return told


def score(
    sides: Sequence[Side],
    files: list[str] | None,
    text: str,
    domain: str,
    typed: str,
    opacity: float,
    cut: float,
) -> list[Any]:
    """Click on "Score": [state, message, then of every side its headline, gallery and table]."""
    subject = subject_in_words(text, domain)
    number = typed_number(typed)
    pictures, refused = read_pictures(files)
    state = [(score_pictures(side, pictures, subject), threshold_of(side, subject, number)) for side in sides]
    message = "".join(f"<p>{html.escape(reason)}, left out</p>" for reason in refused)
    outputs = [state, message]
    for side, (found, threshold), gallery in zip(sides, state, galleries(state, opacity, cut), strict=True):
        rows = [[one.name, f"{one.score:.5f}", decision(one.score, threshold.value)] for one in found]
        outputs += [summary(side, found, threshold), gallery, table(SCORE_COLUMNS, rows)]
    return outputs


def summary(side: Side, found: Sequence[Shown], threshold: Threshold) -> str:
    """A side's heading in HTML: its name, the decision, the threshold and the scale."""
    if threshold.value is None:
        said = f"ranked, not decided; no threshold: {threshold.origin}"
    else:
        count = sum(decision(one.score, threshold.value) == "anomalous" for one in found)
        said = f"{count} of {len(found)} anomalous (threshold {threshold.value:.5g}, {threshold.origin})"
    low, high = common_scale(found)
    scale = f"Blue is {low:.4g}, red {high:.4g} in all pictures below."
    return f"{heading_of(side)}<p>{html.escape(said)}. {scale}</p>"


def heading_of(side: Side) -> str:
    """A side's name as a heading."""
    return f"<h3>{html.escape(side.name)}</h3>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in HTML, every cell escaped."""
    lines = [("th", head), *(("td", row) for row in rows)]
    cells = ["".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in line) for tag, line in lines]
    return '<table class="numbers">' + "".join(f"<tr>{line}</tr>" for line in cells) + "</table>"


def galleries(state: State | None, opacity: float, cut: float) -> list[list[tuple[Any, str]]]:
    """Of every side [(heatmap, caption)]; nothing is scored again."""
    found = []
    for shown, (value, _) in state or []:
        scale = common_scale(shown)
        found.append(
            [
                (drawn(one, scale, opacity, cut, value), caption(one, decision(one.score, value)))
                for one in shown
            ]
        )
    return found


def caption(one: Shown, word: str) -> str:
    """What stands below a picture."""
    return f"{one.name}: {one.score:.5f}" + (f", {word}" if word else "")


def redraw(count: int, state: State | None, opacity: float, cut: float) -> Any:
    """A moved slider: the gallery of each of `count` sides."""
    found = galleries(state, opacity, cut) or [[] for _ in range(count)]
    return found if count > 1 else found[0]  # one output is not a list for gradio


def words(sides: Sequence[Side], files: list[str] | None, text: str, domain: str) -> Any:
    """Click on "Which words matter": of every side its tables, for the first picture."""
    subject = subject_in_words(text, domain)
    pictures, _ = read_pictures(files)
    tables = [words_of_side(side, pictures[0][1], subject) for side in sides]
    return tables if len(sides) > 1 else tables[0]


def words_of_side(side: Side, picture: Image.Image, subject: Subject) -> str:
    """In HTML what every typed word adds to a score, and what the most abnormal patch attends to, if anything."""
    effects = word_effects(side, picture, subject)
    told = table(WORD_COLUMNS, [[one.word, f"{one.score:.5f}", f"{one.adds:+.5f}"] for one in effects])
    attended = words_attended(side, picture, subject)
    if not attended:
        return told
    rows = [[one.word, f"{one.share:.1%}", f"{one.even:.1%}"] for one in attended]
    return f"{told}<p>Cross-attention: what the patch with the highest score looks at.</p>" + table(
        ATTENTION_COLUMNS, rows
    )


def build(sides: Sequence[Side], text: str = "", threshold: float | None = None) -> Any:
    """The page as gradio.Blocks.

    Args:
        sides: one or two models.
        text, threshold: what stands in the fields to begin with.
    """
    import gradio

    page = gradio.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS))
    with page:
        gradio.Markdown(f"# {TITLE}\nDrop pictures, say what they show. Nothing leaves this machine.")
        state = gradio.State(time_to_live=KEPT_SECONDS)
        with gradio.Row():
            files = gradio.File(label=f"Pictures, up to {MOST_PICTURES}", file_count="multiple", height=180)
            with gradio.Column():
                said = gradio.Textbox(text, label="What they show", placeholder="steel bolt", max_lines=1)
                domain = gradio.Radio(list(DOMAIN_NAMES), value=DOMAIN_NAMES[0], label="Domain")
                typed = gradio.Textbox(  # gradio.Number has 0 for an empty field
                    "" if threshold is None else f"{threshold:g}",
                    label="Threshold (empty: each run's calibrated one)",
                    placeholder="0.42",
                    max_lines=1,
                )
        with gradio.Row():
            opacity = gradio.Slider(0, 1, 0.5, label="Heatmap's opacity")
            cut = gradio.Slider(0, 1, 0.0, label="Leave colours below this share of the scale away")
        with gradio.Row():
            run = gradio.Button("Score", variant="primary", elem_id="score")
            explain = gradio.Button("Which words matter (first picture)", elem_id="words")
        message = gradio.HTML()
        columns, tables, shown = [], [], []
        with gradio.Row():
            for side in sides:
                with gradio.Column(min_width=320):
                    heading = gradio.HTML(heading_of(side))
                    gallery = gradio.Gallery(label="Heatmaps", columns=2, object_fit="contain")
                    scores = gradio.HTML()
                    tables.append(gradio.HTML())
                    columns += [heading, gallery, scores]
                    shown.append(gallery)
        click = shown_to_visitors(partial(score, sides))
        asked = [files, said, domain, typed, opacity, cut]
        gradio.on([run.click, said.submit], click, asked, [state, message, *columns], **ONE_AT_A_TIME)
        explain.click(
            shown_to_visitors(partial(words, sides)), [files, said, domain], tables, **ONE_AT_A_TIME
        )
        for slider in (opacity, cut):
            slider.release(partial(redraw, len(sides)), [state, opacity, cut], shown)
    return page


def launch(page: Any, host: str, port: int, wait: bool = True) -> None:
    """Serve the page; with `wait` until it is stopped. Raises OSError where the port is taken."""
    import gradio

    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=not wait,
        max_file_size=LARGEST_UPLOAD,
        footer_links=[],
        theme=theme,
        css=CSS,
        ssr_mode=False,
    )
