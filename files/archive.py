"""torch's zip archives, checked before anything in them is used: torch itself looks at neither kinds nor checksums."""

import re
import zipfile
from typing import IO

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch.save before 1.6 begin
DIRECTORY = 0x10  # in a member's external attributes: torch leaves such a member's memory as it finds it
ENCRYPTED = 0x1
MEMBERS = re.compile(  # of torch.save
    r"data\.pkl|data/\d+|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id"
)


def check_tensor_archive(file: IO[bytes]) -> None:
    """Read a file of torch.save through once: every member of a known name, stored as it is, its checksum right.

    Raises:
        ValueError, zipfile.BadZipFile and what else a damaged zip file can raise, see files.tensors.UNREADABLE.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        tops = {member.filename.partition("/")[0] for member in members}
        names = [member.filename.partition("/")[2] for member in members]
        if len(tops) != 1 or len(set(names)) != len(names):
            raise ValueError(f"{len(members)} members under {sorted(tops)}, not all of one folder once")
        if "data.pkl" not in names:
            raise ValueError("it has no data.pkl")
        for member, name in zip(members, names, strict=True):
            check_member(member, name)
        for member in members:
            read_through(archive, member)


def check_member(member: zipfile.ZipInfo, name: str) -> None:
    """Raises ValueError unless a member is a plain stored file that torch.save writes; `name` inside the top folder."""
    if not MEMBERS.fullmatch(name):
        raise ValueError(f"unexpected member {member.filename}")
    if member.external_attr & DIRECTORY or member.is_dir():
        raise ValueError(f"member {member.filename} is marked as a directory")
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        raise ValueError(f"member {member.filename} is compressed")
    if member.flag_bits & ENCRYPTED:
        raise ValueError(f"member {member.filename} is encrypted")


def read_through(archive: zipfile.ZipFile, member: zipfile.ZipInfo, block: int = 1 << 20) -> None:
    """Read a member to its end, where zipfile compares its checksum; raises BadZipFile."""
    with archive.open(member) as file:
        while file.read(block):
            pass


def is_legacy(file: IO[bytes]) -> bool:
    """Whether a file is of torch.save before 1.6, which has no checksums."""
    file.seek(0)
    begin = file.read(len(LEGACY))
    file.seek(0)
    return begin == LEGACY
