"""Notebooks are essays: a title, inputs and outputs, little code, no algorithm. `.ci/run` executes them."""

import ast
import importlib
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST_CODE_LINES = 149
OURS = ("morphable", "renderer", "fitting")


def _cells(path: Path, kind: str) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def _code(path: Path) -> ast.Module:
    return ast.parse("\n".join(cell.source for cell in _cells(path, "code")))


def _is_short_term(node: ast.stmt) -> bool:
    bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
    return bases == ["AbstractResidualTerm"] and len(ast.unparse(node).splitlines()) <= 12


def test_there_are_notebooks():
    expected = {"01_a_face_from_numbers", "02_light_and_camera", "03_fit_one_photo", "04_design_your_own_fit"}
    expected |= {"05_one_rig_from_many_photos", "06_track_a_video", "07_your_own_model", "08_detail"}
    expected |= {"09_landmark_network"}
    assert expected <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_is_valid_and_in_current_format(self, path):
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        nbformat.validate(notebook)
        assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
        assert notebook.metadata.kernelspec.name == "python3"

    def test_opens_with_title_inputs_and_outputs(self, path):
        opening = nbformat.read(path, as_version=4).cells[0]
        assert opening.cell_type == "markdown"
        assert opening.source.startswith("# ")
        assert "**Inputs.**" in opening.source and "**Outputs.**" in opening.source

    def test_stores_no_outputs(self, path):
        for cell in _cells(path, "code"):
            assert cell.outputs == [] and cell.execution_count is None

    def test_is_short_and_defines_no_algorithm(self, path):
        """What a reader is to write himself, an energy term of ten lines, is the one thing that may be defined."""
        lines = [line for cell in _cells(path, "code") for line in cell.source.splitlines() if line.strip()]
        assert 0 < len(lines) <= MOST_CODE_LINES
        definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        statements = [node for node in _code(path).body if not _is_short_term(node)]
        found = [ast.unparse(n)[:60] for s in statements for n in ast.walk(s) if isinstance(n, definitions)]
        assert not found

    def test_explains_every_piece_of_code(self, path):
        kinds = [cell.cell_type for cell in nbformat.read(path, as_version=4).cells]
        assert ("code", "code") not in set(zip(kinds, kinds[1:], strict=False))

    def test_names_it_imports_from_us_exist(self, path):
        for node in ast.walk(_code(path)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
                module = importlib.import_module(node.module)
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]

    def test_knows_no_machine(self, path):
        text = path.read_text(encoding="utf-8")
        assert not [place for place in ("/work", "/home/", "/Users/", "/tmp", "C:\\") if place in text]
