"""The tree is the argument: imports go one way, and importing costs little."""

import ast
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BELOW = {"morphable": {"renderer", "fitting"}, "renderer": {"fitting"}, "fitting": set()}


def _imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_imports_go_one_way():
    for package, forbidden in BELOW.items():
        for path in (ROOT / package).rglob("*.py"):
            tops = {name.split(".")[0] for name in _imported(path)}
            assert not tops & forbidden, f"{path} imports {tops & forbidden}"


def test_renderer_knows_meshes_not_faces():
    for path in (ROOT / "renderer").glob("*.py"):
        used = {n for n in _imported(path) if n.startswith("morphable")}
        assert used <= {"morphable.mesh", "morphable.colour", "morphable.uv"}, f"{path} imports {used}"


def test_photos_do_not_need_video():
    for path in (ROOT / "fitting").glob("*.py"):
        used = {n for n in _imported(path) if n.split(".")[:2] == ["fitting", "clip"]}
        assert not used or path.name == "cli.py", f"{path} imports {used}"


def test_packages_are_ours_and_import_without_heavy_libraries():
    script = (
        "import json, sys, morphable, renderer, fitting;"
        "import fitting.clip.files, fitting.clip.synthetic, fitting.clip.tracking;"
        "print(json.dumps([sorted({m.split('.')[0] for m in sys.modules}),"
        "[p.__file__ for p in (morphable, renderer, fitting)]]))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    modules, files = json.loads(out.stdout)
    heavy = {"av", "open3d", "dlib", "matplotlib", "trimesh", "pygltflib", "plotly", "IPython"}
    assert not heavy & set(modules)
    assert all(Path(f).is_relative_to(ROOT) for f in files)
