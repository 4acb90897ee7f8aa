"""The published folder layouts as data: a tree of classes, or parts of known labels; `reading` makes rows of them."""

from typing import NamedTuple

BY_MASK = "by mask"  # anomalous where a picture has a mask
BY_PIXELS = "by pixels"  # every picture has a mask, and it is anomalous where that is not black


class Tree(NamedTuple):
    """Folders <class>/<pictures>/<good or a defect>, nested as deep as one likes; every name of `is_normal` is good.

    `masks` and `beside` (folders of other splits) are relative to the class's folder; `pictures` "" is that folder.
    """

    pictures: str = "test"
    masks: tuple[str, ...] = ("ground_truth",)
    beside: tuple[str, ...] = ()


class Part(NamedTuple):
    """A folder of pictures of one label. {class} stands for a class, a * in a folder's name for anything."""

    images: str
    label: int | str  # 0, 1, BY_MASK or BY_PIXELS
    masks: str | None = None  # their folder; None for none, "" for that of the pictures
    suffix: str = "_mask"


class Parts(NamedTuple):
    """Alternative lists of parts, of which the first with a folder counts, and how people write the layout."""

    words: str
    alternatives: tuple[tuple[Part, ...], ...]


MVTEC = Tree()
_BMAD = Parts(
    "test/{good,Ungood}/{img,label}/*.png",
    ((Part("test/good/img", 0), Part("test/ungood/img", 1, "test/ungood/label")),),
)
_POLYPS = Parts(
    "images/*.png and masks/*.png",
    ((Part("images", 1, "masks"),), (Part("original", 1, "ground truth"),)),
)
_YES_AND_NO = Parts(
    "{yes,no}/*.jpg",
    (
        (Part("no", 0), Part("yes", 1)),
        (Part("brain_tumor_dataset/no", 0), Part("brain_tumor_dataset/yes", 1)),
    ),
)
# Whatever is not listed here nor in `dataset.prepare.split_tables`, own sets included, is MVTEC: MVTec AD, its LOCO set
# (several masks a picture), MPDD, BTAD (`ok` and `ko`), DTD-Synthetic, the demo sets.
LAYOUTS: dict[str, Tree | Parts] = {
    "MVTecAD2": Tree("test_public", ("test_public/ground_truth",)),
    "VisA": Parts(
        "<class>/Data/Images/{Normal,Anomaly}/*.JPG",
        (
            (
                Part("{class}/Data/Images/Normal", 0),
                Part("{class}/Data/Images/Anomaly", 1, "{class}/Data/Masks/Anomaly"),
            ),
        ),
    ),
    **dict.fromkeys(("Brain", "Liver", "Retina"), _BMAD),
    **dict.fromkeys(("Colon_clinicDB", "Colon_colonDB", "Colon_Kvasir", "Colon_cvc300"), _POLYPS),
    "DAGM": Parts(
        "<class>/Test/*.PNG and <class>/Test/Label/*_label.PNG",
        ((Part("{class}/Test", BY_MASK, "{class}/Test/Label", "_label"),),),
    ),
    "KolektorSDD": Parts(
        "kos*/Part*.jpg and kos*/Part*_label.bmp", ((Part("kos*", BY_PIXELS, "", "_label"),),)
    ),
    **dict.fromkeys(("Br35H", "BrainMRI"), _YES_AND_NO),
}
