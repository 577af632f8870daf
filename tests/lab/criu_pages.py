"""Image directories as CRIU's own library reads them: which pages, and their bytes.

It is part of Debian's criu 3.17.1, which nobody here wrote.
"""
import os

from pycriu import images

PAGE = 4096
PARENT, LAZY, PRESENT = 1, 2, 4


class Broken(Exception):
    """What is wrong with an image directory."""


def pagemap_names(directory):
    return sorted(name for name in os.listdir(directory) if name.startswith("pagemap-"))


class Pagemap:
    """One pagemap-*.img of one directory, with its pages."""

    def __init__(self, directory, name):
        self.directory, self.name = str(directory), name
        with open(os.path.join(directory, name), "rb") as file:
            head, *entries = images.load(file)["entries"]
        self.pages_name = f"pages-{head['pages_id']}.img"
        self.entries = [(int(str(entry["vaddr"]), 0), entry["nr_pages"], _flags(entry))
                        for entry in entries]
        self._check()

    def _check(self):
        """The rules that CRIU's restore applies."""
        last, present = 0, 0
        for start, pages, flags in self.entries:
            where = f"{self.directory}/{self.name}: {start:#x}, {pages} pages, flags {flags}"
            if start % PAGE or pages < 1 or start < last:
                raise Broken(f"{where}: unaligned, empty, or before the end of the one before")
            if flags not in (PARENT, PRESENT, PRESENT | LAZY):
                raise Broken(f"{where}: no flags of a page that is stored")
            last = start + pages * PAGE
            present += pages if flags & PRESENT else 0
        size = os.path.getsize(os.path.join(self.directory, self.pages_name))
        if size != present * PAGE:
            raise Broken(f"{self.directory}/{self.pages_name}: {size} bytes for {present} pages")

    def count(self, flag):
        return sum(pages for _, pages, flags in self.entries if flags & flag)

    def ranges(self, flag):
        """[(first address, end)] of entries with that flag, those that touch as one."""
        merged = []
        for start, pages, flags in self.entries:
            if not flags & flag:
                continue
            if merged and merged[-1][1] == start:
                merged[-1][1] = start + pages * PAGE
            else:
                merged.append([start, start + pages * PAGE])
        return [tuple(one) for one in merged]

    def present(self):
        """{address: bytes} of the pages that lie in this directory."""
        pages = {}
        with open(os.path.join(self.directory, self.pages_name), "rb") as file:
            for start, count, flags in self.entries:
                if flags & PRESENT:
                    for number in range(count):
                        pages[start + number * PAGE] = file.read(PAGE)
        return pages

    def memory(self):
        """{address: bytes} of the directory and its parents, as a restore finds them."""
        pages, parent = self.present(), None
        for start, count, flags in self.entries:
            if not flags & PARENT:
                continue
            if parent is None:
                parent = Pagemap(os.path.join(self.directory, "parent"), self.name).memory()
            for address in range(start, start + count * PAGE, PAGE):
                if address not in parent:
                    raise Broken(f"{self.directory}/{self.name}: {address:#x} is not in the parent")
                pages[address] = parent[address]
        return pages


def _flags(entry):
    flags = entry.get("flags", PRESENT)
    if isinstance(flags, int):
        return flags
    names = {"PE_PARENT": PARENT, "PE_LAZY": LAZY, "PE_PRESENT": PRESENT}
    return sum(names[name.strip()] for name in flags.split("|") if name.strip())


def depth(directory):
    """How many directories its chain of parents has, itself included."""
    levels = 1
    while os.path.exists(os.path.join(directory, "parent")):
        directory = os.path.join(directory, "parent")
        levels += 1
    return levels


def difference(ours, theirs):
    """Pages of one memory that the other has not, or has with other bytes, as one line."""
    lacking = sorted(theirs.keys() - ours.keys())
    more = sorted(ours.keys() - theirs.keys())
    changed = sorted(address for address in ours.keys() & theirs.keys()
                     if ours[address] != theirs[address])
    said = []
    for what, addresses in (("lacking", lacking), ("not in the other", more),
                            ("different", changed)):
        if addresses:
            said.append(f"{len(addresses)} pages {what}, the first {addresses[0]:#x}")
    return "; ".join(said)
