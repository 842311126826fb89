import csv
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import torch

from helpers.checkpoints import (
    authors_layout,
    infer_config,
    load_state,
    read_tf_checkpoint,
)
from helpers.checkpoints._tensorflow import _fields, list_tensors
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


def masked_checksum(content):
    """Four little-endian bytes: CRC-32C, rotated right by 15 bits, plus a constant."""
    bits = f"{google_crc32c.value(content):032b}"
    masked = (int(bits[-15:] + bits[:-15], 2) + 0xA282EAD8) % 2**32
    return masked.to_bytes(4, "little")


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
    block = content + bytes(4) + (1).to_bytes(4, "little")
    kind = bytes([compression])
    return block, kind + masked_checksum(block + kind)


def write_checkpoint(prefix, tensors, n_shards=1, dtype=1, compression=0, header=()):
    """Write a TensorFlow checkpoint, two keys to a block, by the format's text."""
    shards = [bytearray() for _ in range(n_shards)]
    pairs = [(b"", message((1, n_shards), *header))]
    for i, (key, tensor) in enumerate(sorted(tensors.items())):
        shard, content = i % n_shards, tensor.astype("<f4").tobytes()
        shape = message(*((2, message((1, size))) for size in tensor.shape))
        position = ((3, shard), (4, len(shards[shard])), (5, len(content)))
        entry = message((1, dtype), (2, shape), *position)
        entry += varint(6 << 3 | 5) + masked_checksum(content)  # a fixed32
        pairs.append((f"model/{key}/.ATTRIBUTES/VARIABLE_VALUE".encode(), entry))
        shards[shard] += content
    table = bytearray()

    def append_block(pairs, compression=0):
        block, trailer = table_block(pairs, compression)
        handle = varint(len(table)) + varint(len(block))
        table.extend(block + trailer)
        return handle

    chunks = [pairs[start : start + 2] for start in range(0, len(pairs), 2)]
    handles = [(chunk[-1][0], append_block(chunk, compression)) for chunk in chunks]
    footer = append_block([]) + append_block(handles)  # the meta block has no pairs
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


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"dtype": 2}, r"model/stem/bias\S+ must be float32; got float64"),
        ({"dtype": 14}, r"model/stem/bias\S+ must be float32; got bfloat16"),
        ({"dtype": 99}, r"model/stem/bias\S+ must be float32; got TensorFlow type 99"),
        ({"compression": 1}, r"odd\.index .*compressed blocks \(snappy\)"),
        ({"compression": 7}, r"odd\.index .*compressed blocks \(unknown type 7\)"),
        ({"header": [(2, 1)]}, r"odd\.index .*big-endian"),
    ],
)
def test_read_tf_checkpoint_names_what_it_cannot_read(tmp_path, options, problem):
    write_checkpoint(tmp_path / "odd", few_tensors(), **options)
    with pytest.raises(ValueError, match=problem):
        read_tf_checkpoint(tmp_path / "odd")


def test_read_tf_checkpoint_needs_a_model(tmp_path):
    write_checkpoint(tmp_path / "empty", {})
    with pytest.raises(
        ValueError, match=r"empty\.index lists no tensor below 'model/'"
    ):
        read_tf_checkpoint(tmp_path / "empty")


def test_read_tf_checkpoint_notices_a_flipped_bit_anywhere_in_an_index(tmp_path):
    expected = few_tensors()
    write_checkpoint(tmp_path / "ckpt", expected)
    path = tmp_path / "ckpt.index"
    content = path.read_bytes()
    for i in range(len(content)):
        damaged = bytearray(content)
        damaged[i] ^= 1 << i % 8
        path.write_bytes(damaged)
        try:
            found = read_tf_checkpoint(tmp_path / "ckpt")
        except ValueError as error:
            assert re.search(r"ckpt\.index is (damaged|not the index)", str(error))
            continue
        assert i >= len(content) - 48  # only the footer has bytes that say nothing
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_read_tf_checkpoint_names_the_tensor_of_every_flipped_bit(tmp_path):
    expected = {"a": np.arange(6.0).reshape(2, 3), "b": np.ones(()), "c": np.ones(2)}
    write_checkpoint(tmp_path / "ckpt", expected)
    path = tmp_path / "ckpt.data-00000-of-00001"
    content = path.read_bytes()
    owners = "".join(key * 4 * tensor.size for key, tensor in expected.items())
    assert len(owners) == len(content)
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        problem = rf"model/{owners[bit // 8]}/\S+ does not match its checksum: {path} "
        with pytest.raises(ValueError, match=problem):
            read_tf_checkpoint(tmp_path / "ckpt")


def test_read_tf_checkpoint_notices_data_of_another_checkpoint(tmp_path):
    tensors = few_tensors()
    write_checkpoint(tmp_path / "ckpt", tensors, n_shards=3)
    tensors["stop"] = tensors["stop"][::-1]
    write_checkpoint(tmp_path / "later", tensors, n_shards=3)
    shutil.copy(
        tmp_path / "later.data-00000-of-00003", tmp_path / "ckpt.data-00000-of-00003"
    )
    with pytest.raises(ValueError, match=r"model/stop/\S+ does not match its checksum"):
        read_tf_checkpoint(tmp_path / "ckpt")


def test_read_tf_checkpoint_names_a_missing_data_file(tmp_path):
    write_checkpoint(tmp_path / "ckpt", few_tensors(), n_shards=3)
    (tmp_path / "ckpt.data-00002-of-00003").unlink()
    problem = r"data-00002-of-00003, which should hold model/step/\S+, does not exist"
    with pytest.raises(FileNotFoundError, match=problem):
        read_tf_checkpoint(tmp_path / "ckpt")


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


@pytest.fixture
def shelf(checkpoint, tmp_path):
    """A folder of checkpoints, and beside it what is easily taken for a model."""
    (tmp_path / "model").mkdir()
    for path in tmp_path.glob("ckpt-1.*"):
        shutil.copy(path, tmp_path / "model" / path.name)
        path.rename(tmp_path / "model" / path.name.replace("ckpt-1", "ckpt-2"))
    (tmp_path / "empty").mkdir()
    saved = tmp_path / "saved" / "variables"
    saved.mkdir(parents=True)
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    write_checkpoint(saved / "variables", {})
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("model/ckpt-3", "{}/model/ckpt-3.index does not exist"),
        (
            "model/ckpt-1.index",
            "one file of a checkpoint; expected its prefix, {}/m.*-1$",
        ),
        ("model/ckpt-1.data-00000-of-00001", "expected its prefix, {}/model/ckpt-1$"),
        (
            "model",
            "folder with the checkpoints ckpt-1, ckpt-2; .* e.g. {}/model/ckpt-2$",
        ),
        ("saved", "the folder of a SavedModel"),
        ("keras", r"a folder with HDF5 files \(model.h5\)"),
        ("keras/model.h5", "an HDF5 file"),
        ("half/config.json", "a file of another kind"),
        ("empty", "a folder without a checkpoint"),
    ],
)
@pytest.mark.parametrize("read", [EpiBERT.from_pretrained, read_tf_checkpoint])
def test_reading_says_what_is_there_instead_of_a_checkpoint(shelf, read, name, problem):
    path = re.escape(str(shelf / name))
    problem = problem.format(re.escape(str(shelf)))
    with pytest.raises(
        FileNotFoundError, match=f"^{path} is n.*checkpoint: .*{problem}"
    ):
        read(shelf / name)


def test_from_pretrained_names_the_missing_file_of_a_saved_model(shelf):
    with pytest.raises(
        FileNotFoundError, match="half/model.safetensors does not exist"
    ):
        EpiBERT.from_pretrained(shelf / "half")


def test_from_pretrained_reports_an_index_that_is_none(checkpoint):
    index = Path(f"{checkpoint}.index")
    content = index.read_bytes()
    index.write_bytes(content[:-100])
    with pytest.raises(ValueError, match="ckpt-1.index is not the index"):
        EpiBERT.from_pretrained(checkpoint, CONFIG)
    index.write_bytes(content[2000:])
    with pytest.raises(ValueError, match="cannot load .*ckpt-1.index is damaged"):
        EpiBERT.from_pretrained(checkpoint, CONFIG)


def test_from_pretrained_takes_no_damaged_checkpoint(checkpoint):
    shard = Path(f"{checkpoint}.data-00000-of-00001")
    content = bytearray(shard.read_bytes())
    content[list_tensors(checkpoint)["final_dense_profile/kernel"].offset] ^= 1
    shard.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"cannot load .*: model/\S+ does not match its"
    ):
        EpiBERT.from_pretrained(checkpoint, CONFIG)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_from_pretrained_holds_one_copy_of_the_published_size(tmp_path):
    config = EpiBERTConfig()
    with torch.device("meta"):
        layout = authors_layout(EpiBERT(config))
    rng = np.random.default_rng(0)
    tensors = {
        key: rng.standard_normal(shape, dtype=np.float32)
        for key, (_, shape) in layout.items()
    }
    write_checkpoint(tmp_path / "ckpt-1", tensors, n_shards=2)
    script = """
import re, sys, time
from pathlib import Path
import helpers.checkpoints
from helpers.epibert import EpiBERT, EpiBERTConfig

def megabytes(field):
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\\s+(\\d+) kB", status)[1]) / 1000

before, start = megabytes("VmRSS"), time.perf_counter()
model = EpiBERT.from_pretrained(sys.argv[1])
seconds = time.perf_counter() - start
assert model.config == EpiBERTConfig()
print(seconds, before, megabytes("VmHWM"))
"""
    command = [sys.executable, "-c", script, str(tmp_path / "ckpt-1")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    print("seconds, MB before, MB at the peak:", run.stdout)
    _, before, peak = map(float, run.stdout.split())
    n_megabytes = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
    shutil.rmtree(tmp_path)
    assert n_megabytes == pytest.approx(337.257, abs=0.001)
    assert peak - before < 1.5 * n_megabytes


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
