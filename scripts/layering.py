#!/usr/bin/env python3
"""Checks the layers of src/rmoe: scripts/layering.py [ROOT]. Prints one line a fault; exit code 1 when there is one.

1. A folder includes only itself and folders of a lower number (LAYERS).
2. The folders in TORCH_FREE reach no torch header, neither directly nor through a header of ours; what is compiled
   there stays fast to compile, and parsers can be fuzzed without torch.
3. Headers of ours are included as "rmoe/folder/file.h", exist, and say `#pragma once`; a header, and a source without
   one, opens with a comment on what it is.
"""
import pathlib
import re
import sys

LAYERS = [
    ["base"],
    ["kernels", "config", "io", "plot"],
    ["ops", "dist", "data"],
    ["routing"],
    ["recurrence", "routers"],  # plug-ins behind the interfaces in routing
    ["nn"],
    ["models"],
    ["eval", "compare"],
    ["hf"],  # reads runs with eval
    # These run models with eval; adapt and train carry on what hf imported; reproduce compares with compare; what Python
    # reaches besides the ops.
    ["train", "adapt", "analysis", "reproduce", "python"],
    ["bench"],  # measures them all
    ["cli"],
]
TORCH_FREE = ["base", "kernels", "config", "data", "io", "plot", "compare", "reproduce", "cli"]

LEVEL = {folder: level for level, folders in enumerate(LAYERS) for folder in folders}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
TORCH = re.compile(r"^(ATen|c10|torch|caffe2)/")


class Source:
    """One file: its name below src/rmoe, and its includes as (line, name, quoted)."""

    def __init__(self, path, name):
        self.name = name
        self.folder = name.split("/")[0] if "/" in name else ""
        self.text = path.read_text(encoding="utf-8")
        self.includes = [
            (number, found[2], found[1] == '"')
            for number, line in enumerate(self.text.splitlines(), 1)
            if (found := INCLUDE.match(line))
        ]


def way_to_torch(source, sources, seen):
    """The chain of includes from a file to a torch header, or None."""
    for _, name, _ in source.includes:
        if TORCH.match(name):
            return [name]
        inner = sources.get(name.removeprefix("rmoe/"))
        if name.startswith("rmoe/") and inner and inner.name not in seen:
            seen.add(inner.name)
            rest = way_to_torch(inner, sources, seen)
            if rest:
                return [name] + rest
    return None


def faults(root):
    top = root / "src" / "rmoe"
    files = sorted(p for p in top.rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh"))
    sources = {(name := str(p.relative_to(top))): Source(p, name) for p in files}
    if not sources:
        yield f"{top}: no sources"
    for source in sources.values():
        where = f"src/rmoe/{source.name}"
        if source.folder not in LEVEL:
            yield f"{where}:1: folder '{source.folder}' has no place in LAYERS of scripts/layering.py"
            continue
        has_header = source.name.rsplit(".", 1)[0] + ".h" in sources
        opening = source.text.removeprefix("#pragma once").lstrip()
        if (source.name.endswith(".h") or not has_header) and not opening.startswith("//"):
            yield f"{where}:1: a file opens with a comment on what it is"
        if source.name.endswith(".h") and "#pragma once" not in source.text:
            yield f"{where}:1: a header says #pragma once"
        for line, name, quoted in source.includes:
            if not name.startswith("rmoe/"):
                if quoted:
                    yield f'{where}:{line}: "{name}": our headers are included as "rmoe/folder/file.h", others in <>'
                continue
            inner = name.removeprefix("rmoe/")
            folder = inner.split("/")[0]
            if inner not in sources:
                yield f"{where}:{line}: src/{name} does not exist"
            elif folder != source.folder and LEVEL.get(folder, -1) >= LEVEL[source.folder]:
                yield f"{where}:{line}: {source.folder} may not include {folder}, which is no lower layer"
        if source.folder in TORCH_FREE:
            way = way_to_torch(source, sources, {source.name})
            if way:
                yield f"{where}:1: {source.folder} is torch-free, but includes {' -> '.join(way)}"


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent.parent)
    count = 0
    for fault in faults(root):
        print(fault)
        count += 1
    if count:
        print(f"layering: {count} fault{'s' if count > 1 else ''}", file=sys.stderr)
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
