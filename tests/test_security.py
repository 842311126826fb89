"""What SECURITY.md says about the code holds."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path
    for name in ("src", "scripts", "benchmarks")
    for path in (ROOT / name).rglob("*.py")
)
FORBIDDEN_CALLS = {
    "eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system",
    "os.popen", "pickle.load", "pickle.loads", "pickle.dump", "pickle.dumps",
    "pd.read_pickle",
}  # fmt: skip


def calls(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: k.value for k in node.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_read_can_run(path):
    for name, keywords in calls(path):
        assert name not in FORBIDDEN_CALLS, name
        if name == "torch.load":
            assert ast.unparse(keywords["weights_only"]) == "True"
        if name == "np.load":
            allowed = keywords.get("allow_pickle", ast.Constant(False))
            assert ast.unparse(allowed) == "False"
        if name.startswith("subprocess."):
            assert "shell" not in keywords


def test_names_in_the_workflow_are_quoted():
    text = (ROOT / "workflow" / "Snakefile").read_text(encoding="utf-8")
    command = text[text.index("RUN_NOTEBOOK = (") : text.index("wildcard_constraints")]
    braces = {part.split("}")[0] for part in command.split("{")[1:]}
    assert {name for name in braces if not name.endswith(":q")} == {"threads"}
