"""Where weights come from: names on the hub, its cache, files; and what a reader refuses."""

import zipfile
from dataclasses import replace
from pathlib import PurePosixPath

import pytest
import torch
from safetensors.torch import save_file

from cspipe.extract.backbones import BACKBONES, find_files, resolve_spec
from cspipe.extract.weights import find_weights, read_weights
from cspipe.store.errors import MismatchError, MissingDataError, SettingError, UnknownNameError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The hub's client at its boundary: repositories of named files, a cache, and whether there is a network."""

    def __init__(self, folder, repositories):
        self.folder, self.repositories, self.online, self.asked = folder, repositories, True, []

    def metadata(self, url, **kwargs):
        import huggingface_hub

        repo, _, name = url.removeprefix("https://huggingface.co/").partition("/resolve/")
        name = name.partition("/")[2]
        self.asked.append((repo, name))
        if not self.online:
            raise ConnectionError("no route to host")
        if name not in self.repositories.get(repo, ()):
            raise huggingface_hub.errors.EntryNotFoundError(f"404: {name} is not in {repo}")
        return type("Answer", (), {"commit_hash": COMMIT})

    def download(self, repo, name, revision=None, local_files_only=False):
        import huggingface_hub

        path = self.folder / repo.replace("/", "--") / "snapshots" / COMMIT / name
        if local_files_only and not path.is_file():
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        assert local_files_only or revision == COMMIT
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            save_file({"visual.proj": torch.zeros(1)}, path)
        return str(path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function from repositories to a hub that holds them."""
    import huggingface_hub

    def make(repositories):
        it = Hub(tmp_path, repositories)
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", it.metadata)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", it.download)
        return it

    return make


@pytest.mark.parametrize(
    ("name", "repo", "file"),
    [
        ("dinov2-s-reg", "timm/vit_small_patch14_reg4_dinov2.lvd142m", "model.safetensors"),
        ("dinov3-b", "timm/vit_base_patch16_dinov3.lvd1689m", "model.safetensors"),
        ("clip-b32", "timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors"),
        ("clip-l14-laion", "laion/CLIP-ViT-L-14-laion2B-s32B-b82K", "open_clip_model.safetensors"),
        ("siglip", "timm/ViT-B-16-SigLIP", "open_clip_model.safetensors"),
        ("radiov2", "nvidia/RADIO", "radio_v2.pth.tar"),
        ("radiov2.5-l", "nvidia/RADIO-L", "model.safetensors"),
        ("cradiov4-so400m", "nvidia/C-RADIOv4-SO400M", "model.safetensors"),
        ("timm:vit_base_patch16_clip_224.openai", "timm/vit_base_patch16_clip_224.openai", "model.safetensors"),
        ("open_clip:ViT-B-16/openai", "timm/vit_base_patch16_clip_224.openai", "open_clip_model.safetensors"),
    ],
)
def test_every_family_asks_the_hub_for_its_own_repository_and_file(hub, name, repo, file):
    asked = hub({repo: [file]})
    found = find_files(resolve_spec(name), None, None)
    assert asked.asked == [(repo, file)]
    assert (found.path.name, found.revision, found.source) == (file, COMMIT, f"huggingface.co/{repo}")


@pytest.mark.parametrize("name", [name for name, spec in BACKBONES.items() if spec.family == "open_clip"])
def test_repositories_of_clip_are_those_that_open_clip_names(name):
    import open_clip

    spec = BACKBONES[name]
    assert f"{spec.hub_repo}/" == open_clip.get_pretrained_cfg(spec.architecture, spec.tag)["hf_hub"]


@pytest.mark.parametrize("name", [name for name, spec in BACKBONES.items() if spec.family == "timm" and spec.hub_repo])
def test_repositories_of_timm_are_those_that_timm_names(name):
    import timm

    assert BACKBONES[name].hub_repo == timm.get_pretrained_cfg(BACKBONES[name].architecture).hf_hub_id


def test_an_older_repository_gives_its_other_file(hub):
    repo = BACKBONES["clip-b32-laion"].hub_repo
    asked = hub({repo: ["open_clip_pytorch_model.bin"]})
    found = find_weights(BACKBONES["clip-b32-laion"], None, None)
    assert [name for _, name in asked.asked] == ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    assert found.path.name == "open_clip_pytorch_model.bin"


def test_a_cached_file_serves_without_network_and_none_names_every_file(hub):
    spec = BACKBONES["clip-b32"]
    asked = hub({spec.hub_repo: ["open_clip_model.safetensors"]})
    first = find_weights(spec, None, None)
    asked.online = False
    assert find_weights(spec, None, None) == first
    with pytest.raises(MissingDataError, match=r"no route to host.*open_clip_model\.safetensors or open_clip_pytorch"):
        find_weights(BACKBONES["clip-b16"], None, None)


def test_a_repository_without_the_file_says_so(hub):
    hub({})
    with pytest.raises(MissingDataError, match=r"404: model.safetensors is not in nvidia/RADIO-B"):
        find_weights(BACKBONES["radiov2.5-b"], None, None)


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pth.tar", "pt", "bin"])
def test_every_kind_of_file_of_weights_is_taken(tmp_path, suffix):
    file = tmp_path / f"weights.{suffix}"
    state = {"a": torch.ones(2, dtype=torch.float16)}
    save_file(state, file) if suffix == "safetensors" else torch.save(state, file)
    found = find_weights(BACKBONES["dinov2-s"], file, None)
    assert found.path == file and read_weights(file)["a"].dtype == torch.float32
    with pytest.raises(SettingError, match="give one of the two"):
        find_weights(BACKBONES["dinov2-s"], file, "main")


def test_a_folder_of_code_in_an_archive_is_known_whatever_it_is_called(tmp_path):
    for name in ("model.pt", "model.pth"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("ViT-B-32/code/__torch__/model.py", "import os")
            archive.writestr("ViT-B-32/data.pkl", b"")
        with pytest.raises(MismatchError, match="TorchScript archive"):
            read_weights(tmp_path / name)


def test_torchs_own_hint_to_run_code_is_not_handed_on(tmp_path):
    torch.save({"a": torch.ones(1), "b": PurePosixPath("x")}, tmp_path / "model.pth")
    with pytest.raises(MismatchError) as told:
        read_weights(tmp_path / "model.pth")
    assert "it holds pathlib" in str(told.value) and "weights_only" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("timm:vit_smal_patch14_dinov2", "timm architecture .*did you mean 'vit_small_patch14_dinov2'"),
        ("timm:vit_small_patch14_dinov2.lvd", "timm weights .*vit_small_patch14_dinov2.lvd142m"),
        ("timm:", "unknown backbone 'timm:'.*timm:NAME"),
        ("hf:", "unknown backbone 'hf:'.*hf:NAME"),
    ],
)
def test_a_name_that_its_library_does_not_know_gets_the_nearest(name, told):
    with pytest.raises(UnknownNameError, match=told):
        resolve_spec(name)


def test_any_timm_name_has_timms_own_side_licence_and_repository():
    spec = resolve_spec("timm:vit_small_patch14_dinov2.lvd142m")
    assert (spec.image_px, spec.licence) == (518, "apache-2.0")
    assert spec.hub_repo == BACKBONES["dinov2-s"].hub_repo
    assert resolve_spec("timm:test_vit").hub_repo == "timm/test_vit.r160_in1k"


def test_any_timm_network_runs_under_its_name(tmp_path):
    from cspipe.extract.backbones import load_backbone
    from cspipe.extract.timm_models import build

    torch.manual_seed(0)
    for name, token in (
        ("test_vit", "cls"),
        ("test_vit2", "pooled"),
        ("test_convnext", "pooled"),
        ("test_resnet", "pooled"),
    ):
        spec = replace(resolve_spec(f"timm:{name}"), image_px=160)
        network = build(spec, 160).eval()
        save_file(network.state_dict(), tmp_path / "weights.safetensors")
        backbone = load_backbone(f"timm:{name}", weights=tmp_path / "weights.safetensors")
        pixels = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            assert torch.equal(backbone.model(pixels), network(pixels)), name
        assert (backbone.token, backbone.width) == (token, network(pixels).shape[1])
