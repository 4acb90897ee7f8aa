"""Contact sheets with words: titles over the columns, a name over each row."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN = 8  # pixels around and between cells
TITLE_HEIGHT, NAME_HEIGHT = 28, 22
TITLE_SIZE, NAME_SIZE = 16, 13
INK, FAINT_INK = (20, 20, 20), (90, 90, 90)


def fitted(picture: np.ndarray, side: int) -> np.ndarray:
    """RGB bytes [H, W, 3], whole and undistorted in the middle of a white square [side, side, 3]."""
    image = Image.fromarray(picture)
    scale = side / max(image.size)
    size = [max(1, round(scale * length)) for length in image.size]
    # Neither invents what a map does not have, as smoother filters do beside its edges.
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    square = Image.new("RGB", (side, side), "white")
    square.paste(image.resize(size, method), ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(square)


def titled_sheet(
    titles: Sequence[str], rows: Sequence[tuple[str, Sequence[np.ndarray | None]]]
) -> np.ndarray:
    """A grid of pictures.

    Args:
        titles: of the columns.
        rows: (name, cells), one RGB square [side, side, 3] for each title, all of one side; None leaves a cell white.

    Returns:
        RGB bytes [H, W, 3]
    """
    side = next(len(cell) for _, cells in rows for cell in cells if cell is not None)
    step = side + MARGIN
    sheet = Image.new(
        "RGB",
        (MARGIN + step * len(titles), TITLE_HEIGHT + len(rows) * (NAME_HEIGHT + step)),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        centre = (MARGIN + step * column + side / 2, TITLE_HEIGHT / 2)
        draw.text(centre, title, fill=INK, font=ImageFont.load_default(TITLE_SIZE), anchor="mm")
    small = ImageFont.load_default(NAME_SIZE)
    for row, (name, cells) in enumerate(rows):
        top = TITLE_HEIGHT + row * (NAME_HEIGHT + step)
        text = shortened(name, small, sheet.width - 2 * MARGIN)
        draw.text((MARGIN, top + NAME_HEIGHT / 2), text, fill=FAINT_INK, font=small, anchor="lm")
        for column, cell in enumerate(cells):
            if cell is not None:
                sheet.paste(Image.fromarray(cell), (MARGIN + step * column, top + NAME_HEIGHT))
    return np.asarray(sheet)


def shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, its middle replaced by … where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    kept = len(text)
    while kept > 2 and font.getlength(cut := f"{text[: kept // 2]}…{text[-(kept - kept // 2) :]}") > width:
        kept -= 1
    return cut
