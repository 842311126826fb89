"""The authors' record on Zenodo, in each form that it might have, to a loaded model."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from helpers.epibert import EpiBERT
from helpers.published_weights import RECORD, main, published_weights
from local_server import LocalServer

TINY = Path(__file__).parent / "data" / "epibert_tiny"
PARTS = sorted(TINY.glob("ckpt-1.*"))


def publish(server, paths):
    """Write the record as Zenodo's API does."""
    files = [
        {
            "key": path.name,
            "size": path.stat().st_size,
            "checksum": "md5:" + hashlib.md5(path.read_bytes()).hexdigest(),
            "links": {"self": f"{server.url}/{path.relative_to(server.folder)}"},
        }
        for path in paths
    ]
    record = server.folder / "api" / "records" / str(RECORD)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"id": RECORD, "files": files}))


def loads(prefix):
    return EpiBERT.from_pretrained(prefix).config.n_blocks > 0


@pytest.fixture
def server(tmp_path):
    served = tmp_path / "served"
    served.mkdir()
    with LocalServer(served) as running:
        yield running


def copied(folder, prefix):
    folder.mkdir(exist_ok=True)
    return [
        Path(shutil.copy(part, folder / part.name.replace("ckpt-1", prefix)))
        for part in PARTS
    ]


def test_parts_of_a_checkpoint_are_fetched_once(server, tmp_path):
    paths = copied(server.folder / "files", "ckpt-45")
    readme = server.folder / "files" / "README.md"
    readme.write_text("weights")
    publish(server, [*paths, readme])
    prefix = published_weights(tmp_path / "kept", source=server.url)
    assert prefix == tmp_path / "kept" / "ckpt-45" and loads(prefix)
    asked = len(server.requests)
    assert published_weights(tmp_path / "kept", source=server.url) == prefix
    assert len(server.requests) == asked
    assert not any("README" in request.path for request in server.requests)


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_the_archive_of_the_first_model_is_unpacked(server, tmp_path, kind):
    packed = []
    for name in ("model1", "model2", "model10", "fine_tuned"):
        content = tmp_path / name
        copied(content / "", "ckpt-45")
        packed.append(
            Path(shutil.make_archive(server.folder / name, kind, tmp_path, name))
        )
    publish(server, packed)
    prefix = published_weights(tmp_path / "kept", source=server.url)
    assert prefix.parts[-2:] == ("model1", "ckpt-45") and loads(prefix)
    fetched = [r.path for r in server.requests if r.method == "GET"]
    assert not any("model2" in path or "model10" in path for path in fetched)
    assert published_weights(tmp_path / "kept", source=server.url) == prefix


def test_an_ambiguous_record_is_listed_and_not_guessed(server, tmp_path):
    archives = []
    for name in ("first.zip", "second.zip"):
        archives.append(server.folder / name)
        archives[-1].write_bytes(name.encode())
    publish(server, archives)
    with pytest.raises(ValueError, match=r"\['first.zip', 'second.zip'\].*`model`"):
        published_weights(tmp_path / "kept", source=server.url)


def test_the_command_says_where_the_weights_lie(server, tmp_path, monkeypatch, capsys):
    publish(server, copied(server.folder / "files", "ckpt-45"))
    kept = str(tmp_path / "kept")
    command = ["published_weights", "--output", kept, "--source", server.url]
    monkeypatch.setattr("sys.argv", command)
    main()
    assert loads(capsys.readouterr().out.strip())
    monkeypatch.setattr("sys.argv", [*command[:-1], str(tmp_path / "absent")])
    with pytest.raises(SystemExit):
        main()
    assert "error: " in capsys.readouterr().err
