import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.checkpoints import (
    _fields,
    authors_layout,
    infer_config,
    load_state,
    read_tf_checkpoint,
)
from helpers.epibert import EpiBERT, EpiBERTConfig

DATA = Path(__file__).parent / "data"
TINY = DATA / "epibert_tiny"
CONFIG = EpiBERTConfig.from_authors(json.loads((TINY / "tiny_config.json").read_text()))


@pytest.fixture(scope="module")
def tiny():
    return EpiBERT.from_pretrained(TINY / "ckpt-1", CONFIG)


@pytest.fixture
def checkpoint(tmp_path):
    """A copy that a test may damage."""
    for path in TINY.glob("ckpt-1.*"):
        shutil.copy(path, tmp_path / path.name)
    return tmp_path / "ckpt-1"


def varint(value):
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def message(*fields):
    """Encode protobuf fields (number, integer or bytes)."""
    return b"".join(
        varint(number << 3) + varint(value)
        if isinstance(value, int)
        else varint(number << 3 | 2) + varint(len(value)) + value
        for number, value in fields
    )


def table_block(pairs, compression=0):
    """Encode a LevelDB block whose keys share what they can with the one before."""
    content, last = b"", b""
    for key, value in pairs:
        n_shared = 0
        while n_shared < min(len(key), len(last)) and key[n_shared] == last[n_shared]:
            n_shared += 1
        sizes = (n_shared, len(key) - n_shared, len(value))
        content += b"".join(map(varint, sizes)) + key[n_shared:] + value
        last = key
    restarts = bytes(4) + (1).to_bytes(4, "little")
    return content + restarts, bytes([compression]) + bytes(4)


def write_checkpoint(prefix, tensors, n_shards=1, dtype=1, compression=0):
    """Write a TensorFlow checkpoint, two keys to a block, by the format's text."""
    shards = [b""] * n_shards
    pairs = [(b"", message((1, n_shards)))]
    for i, (key, tensor) in enumerate(sorted(tensors.items())):
        shard = i % n_shards
        shape = message(*((2, message((1, size))) for size in tensor.shape))
        position = ((3, shard), (4, len(shards[shard])), (5, tensor.nbytes))
        entry = message((1, dtype), (2, shape), *position)
        pairs.append((f"model/{key}/.ATTRIBUTES/VARIABLE_VALUE".encode(), entry))
        shards[shard] += tensor.astype("<f4").tobytes()
    table, handles = b"", []
    for start in range(0, len(pairs), 2):
        chunk = pairs[start : start + 2]
        block, trailer = table_block(chunk, compression)
        handles.append((chunk[-1][0], varint(len(table)) + varint(len(block))))
        table += block + trailer
    block, trailer = table_block(handles)
    footer = bytes(2) + varint(len(table)) + varint(len(block))
    table += block + trailer
    table += footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")
    Path(f"{prefix}.index").write_bytes(table)
    for i, content in enumerate(shards):
        Path(f"{prefix}.data-{i:05d}-of-{n_shards:05d}").write_bytes(content)


def few_tensors():
    rng = np.random.default_rng(0)
    shapes = {"stem/kernel": (3, 4, 5), "stem/bias": (5,), "step": (), "stop": (200,)}
    return {key: rng.normal(size=s).astype(np.float32) for key, s in shapes.items()}


def test_authors_layout_is_the_published_key_list():
    with torch.device("meta"):
        model = EpiBERT(EpiBERTConfig())
    layout = authors_layout(model)
    with (DATA / "checkpoint_keys.tsv").open(newline="") as file:
        published = {
            row["checkpoint_key"]
            .removeprefix("model/")
            .removesuffix("/.ATTRIBUTES/VARIABLE_VALUE"): tuple(
                int(size) for size in row["shape"].split("x")
            )
            for row in csv.DictReader(file, delimiter="\t")
        }
    assert {key: shape for key, (_, shape) in layout.items()} == published
    assert len(layout) == 182
    sizes = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    assert sum(sizes[name] for name, _ in layout.values()) == 84_314_237
    assert sum(p.numel() for p in model.parameters()) == 84_303_037


def test_read_tf_checkpoint_keeps_the_model_and_nothing_else(tiny):
    tensors = read_tf_checkpoint(TINY / "ckpt-1")
    layout = authors_layout(tiny)
    assert {key: t.shape for key, t in tensors.items()} == {
        key: shape for key, (_, shape) in layout.items()
    }
    assert {t.dtype for t in tensors.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("n_shards", [1, 3])
def test_read_tf_checkpoint_reads_several_blocks_and_data_files(tmp_path, n_shards):
    expected = few_tensors()
    write_checkpoint(tmp_path / "ckpt-7", expected, n_shards)
    found = read_tf_checkpoint(tmp_path / "ckpt-7")
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(found[key], tensor)


def test_read_tf_checkpoint_names_what_it_cannot_read(tmp_path):
    write_checkpoint(tmp_path / "double", few_tensors(), dtype=2)
    with pytest.raises(ValueError, match="model/stem/bias.*float32"):
        read_tf_checkpoint(tmp_path / "double")
    write_checkpoint(tmp_path / "packed", few_tensors(), compression=1)
    with pytest.raises(ValueError, match="packed.index.*compressed"):
        read_tf_checkpoint(tmp_path / "packed")
    write_checkpoint(tmp_path / "empty", {})
    with pytest.raises(ValueError, match="empty.index lists no tensor"):
        read_tf_checkpoint(tmp_path / "empty")


def test_fields_rejects_a_cut_message():
    whole = message((1, 300), (2, b"abc"))
    assert list(_fields(whole)) == [(1, 300), (2, b"abc")]
    with pytest.raises(ValueError, match="runs over"):
        list(_fields(whole[:-1]))


def test_from_pretrained_reports_a_truncated_data_file(checkpoint):
    shard = Path(f"{checkpoint}.data-00000-of-00001")
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"data-00000-of-00001 is truncated.*has 1000"):
        EpiBERT.from_pretrained(checkpoint, CONFIG)


def test_from_pretrained_reports_missing_files(checkpoint, tmp_path):
    Path(f"{checkpoint}.data-00000-of-00001").unlink()
    with pytest.raises(FileNotFoundError, match="data-00000-of-00001"):
        EpiBERT.from_pretrained(checkpoint, CONFIG)
    with pytest.raises(FileNotFoundError, match="ckpt-2 is neither"):
        EpiBERT.from_pretrained(tmp_path / "ckpt-2")
    with pytest.raises(FileNotFoundError, match="model.safetensors does not exist"):
        EpiBERT.from_pretrained(tmp_path)


def test_from_pretrained_reports_an_index_that_is_none(checkpoint):
    index = Path(f"{checkpoint}.index")
    content = index.read_bytes()
    index.write_bytes(content[:-100])
    with pytest.raises(ValueError, match="ckpt-1.index is not the index"):
        EpiBERT.from_pretrained(checkpoint, CONFIG)
    index.write_bytes(content[2000:])
    with pytest.raises(ValueError, match="ckpt-1.index is damaged"):
        EpiBERT.from_pretrained(checkpoint, CONFIG)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("n_blocks", 4, "missing: performer/layers/3"),
        ("n_blocks", 2, "not part of the model: performer/layers/2"),
        ("final_norm", False, "not part of the model: performer/layer_norm/beta"),
        ("n_heads", 4, r"query_dense_layer/kernel must have shape \(48, 4, 12\)"),
        ("n_motifs", 13, r"motif_activity_fc1/kernel must have shape \(13, 32\)"),
    ],
)
def test_from_pretrained_names_tensors_that_do_not_fit(field, value, problem):
    config = dataclasses.replace(CONFIG, **{field: value})
    with pytest.raises(ValueError, match=f"cannot load .*ckpt-1: .*{problem}"):
        EpiBERT.from_pretrained(TINY / "ckpt-1", config)


def test_infer_config_reads_sizes_off_the_shapes():
    tensors = read_tf_checkpoint(TINY / "ckpt-1")
    inferred = infer_config(tensors)
    assert inferred == dataclasses.replace(CONFIG, input_length=524_288)
    model = EpiBERT.from_pretrained(TINY / "ckpt-1")
    assert model.config == inferred
    del tensors["motif_activity_fc1/kernel"]
    with pytest.raises(ValueError, match="motif_activity_fc1/kernel"):
        infer_config(tensors)


def test_save_pretrained_round_trips(tiny, tmp_path):
    folder = tmp_path / "new" / "model"
    for note in ("first", "second"):  # the second time over the first
        tiny.save_pretrained(folder, {"recipe": note})
    loaded = EpiBERT.from_pretrained(folder)
    assert loaded.config == tiny.config
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    state = loaded.state_dict()
    assert state.keys() == tiny.state_dict().keys()
    assert all(torch.equal(state[name], t) for name, t in tiny.state_dict().items())
    card = json.loads((folder / "config.json").read_text())
    assert card["metadata"] == {"recipe": "second"}
    assert EpiBERTConfig.from_dict(card["config"]) == tiny.config
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.safetensors", "config.json"}


def test_save_pretrained_is_independent_of_mode_and_training(tmp_path):
    config = dataclasses.replace(CONFIG, input_length=1024)
    model = EpiBERT(config, random_state=3).train()
    batch = torch.rand(2, 1024, 4), torch.rand(2, 256), torch.rand(2, 12)
    model(*batch).sum().backward()  # moves the running statistics
    model.save_pretrained(tmp_path)
    loaded = EpiBERT.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(*batch), model.eval()(*batch), rtol=0, atol=0)


def test_save_pretrained_touches_nothing_if_metadata_is_no_json(tiny, tmp_path):
    tiny.save_pretrained(tmp_path, {"recipe": 1})
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        tiny.save_pretrained(tmp_path, {"recipe": object()})
    assert (tmp_path / "config.json").read_bytes() == before


def test_from_pretrained_reports_damaged_folders(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    weights, card = tmp_path / "model.safetensors", tmp_path / "config.json"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="model.safetensors is not the file"):
        EpiBERT.from_pretrained(tmp_path)
    weights.write_bytes(content)
    card.write_text("{}")
    with pytest.raises(ValueError, match="config.json is no model card"):
        EpiBERT.from_pretrained(tmp_path)


def test_load_state_fills_a_model_in_place(tiny):
    model = EpiBERT(CONFIG)
    weight = model.sequence_stem.weight
    state = {
        name: tensor
        for name, tensor in tiny.state_dict().items()
        if "num_batches_tracked" not in name
    }
    load_state(model, state)
    assert model.sequence_stem.weight is weight
    assert torch.equal(weight, tiny.sequence_stem.weight)
    state["blocks.3.norm.weight"] = state.pop("blocks.2.norm.weight")
    state["head_output.bias"] = torch.zeros(2)
    with pytest.raises(ValueError) as error:
        load_state(model, state)
    for problem in (
        "missing: blocks.2.norm.weight",
        "not part of the model: blocks.3.norm.weight",
        "head_output.bias must have shape (1,); got (2,)",
    ):
        assert problem in str(error.value)
