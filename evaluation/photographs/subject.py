"""What a photograph shows, in the words of a prompt: a known class, or anybody's own text."""

import hashlib
from typing import NamedTuple

from dataset.constants import DOMAINS, REAL_NAMES
from dataset.custom import register_dataset
from files.foreign_paths import has_control
from files.nearest import do_you_mean
from forward_utils import FREE_CLASS

DOMAIN_NAMES = ("Industrial", "Medical")
REGISTERED = "photographs "  # how the names of registered subjects begin


class Subject(NamedTuple):
    """What prompts say of a photograph.

    `class_name`: the class of `dataset`, or "object", AA-CLIP's class of prompts that name no product. `text`: what the
    templates are filled with. `domain`: "Industrial" or "Medical", chooses the blur of the map.
    """

    class_name: str
    text: str
    domain: str
    dataset: str | None = None

    def registered(self) -> str:
        """The name of a data set of this class alone, known to everything that makes prompts from here on."""
        digest = hashlib.sha256(repr(self).encode("utf-8", "backslashreplace")).hexdigest()[:16]
        name = f"{REGISTERED}{digest}"
        if name not in REAL_NAMES:
            register_dataset(name, ".", self.domain, {self.class_name: self.text})
        return name


def subject_of_text(text: str, domain: str | None = None) -> Subject:
    """The subject of free words, such as "steel bolt".

    Raises:
        ValueError: the text is empty or holds control characters, or there is no such domain.
    """
    if not isinstance(text, str) or not text.strip() or has_control(text):
        raise ValueError(
            f"--text {text!r}: expected words on one line that say what the pictures show, such as 'steel bolt'"
        )
    return Subject(FREE_CLASS, text.strip(), checked_domain(domain or DOMAIN_NAMES[0]))


def subject_of_class(class_name: str, dataset: str | None = None, domain: str | None = None) -> Subject:
    """The subject of a class that a data set has, with its words; "object" for prompts that name no product.

    Args:
        dataset: whose class it is; None where only one data set has it.
        domain: instead of the data set's.

    Raises:
        ValueError: no data set has the class, or several with different words; or there is no such data set or domain.
    """
    among = {name: classes for name, classes in REAL_NAMES.items() if not name.startswith(REGISTERED)}
    if dataset is not None and dataset not in among:
        raise ValueError(f"--dataset {dataset}: expected one of {', '.join(among)}")
    among = among if dataset is None else {dataset: among[dataset]}
    found = {
        name: Subject(class_name, classes[class_name], checked_domain(domain or DOMAINS[name]), name)
        for name, classes in among.items()
        if class_name in classes
    }
    if not found and class_name == FREE_CLASS:
        return subject_of_text(FREE_CLASS, domain or (DOMAINS[dataset] if dataset else None))
    if not found:
        known = [one for classes in among.values() for one in classes]
        where = f"data set {dataset} has" if dataset else "the known data sets have"
        raise ValueError(
            f"--class_name {class_name}: {where} no such class{do_you_mean(class_name, known)}; say in your own words "
            "what the pictures show: --text 'steel bolt'"
        )
    if len({(one.text, one.domain) for one in found.values()}) > 1:
        words = ", ".join(f"{name} ({one.text!r})" for name, one in found.items())
        raise ValueError(
            f"--class_name {class_name}: several data sets have it: {words}; choose with --dataset"
        )
    return next(iter(found.values()))


def checked_domain(domain: str) -> str:
    """The domain itself. Raises ValueError where there is no such."""
    if domain not in DOMAIN_NAMES:
        raise ValueError(f"--domain {domain}: expected {' or '.join(DOMAIN_NAMES)}")
    return domain
