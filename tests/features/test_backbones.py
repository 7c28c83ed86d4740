"""Backbones: the features they give, the weights they take, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from fmad_dist.base.errors import UserError
from fmad_dist.features.backbones import Backbone, FeatureSpec, load_backbone, to_grid

SIDE = 64
LITE = FeatureSpec("tf_efficientnet_lite0", (1, 2), 4, SIDE)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def refusal(spec: FeatureSpec, weights: str | Path = "auto") -> str:
    with pytest.raises(UserError) as caught:
        load_backbone(spec, str(weights))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_features_have_the_stated_form(backbone: Backbone) -> None:
    features = backbone(images(3))
    assert backbone.num_channels == 24 + 40
    assert features.shape == (3, 64, 4, 4)
    assert features.dtype == torch.float16
    assert features.is_contiguous()
    assert features.isfinite().all()


def test_features_are_those_of_timm(backbone: Backbone) -> None:
    """Pixels / 255, minus 0.5, over 0.5 is what these weights were trained with."""
    net = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2)).eval()
    net.load_state_dict(backbone.net.state_dict())
    with torch.inference_mode():
        stages = net((images(2).float() / 255 - 0.5) / 0.5)
    assert [stage.shape[-1] for stage in stages] == [16, 8]
    expected = torch.cat([torch.nn.functional.avg_pool2d(stage, stage.shape[-1] // 4) for stage in stages], dim=1)
    torch.testing.assert_close(backbone(images(2)).float(), expected, atol=2e-3, rtol=2e-3)


def test_other_weights_are_folded_anew(backbone: Backbone) -> None:
    other = Backbone(LITE)
    assert not torch.equal(other(images(1)), backbone(images(1)))
    other.load_state_dict(backbone.state_dict())
    assert torch.equal(other(images(1)), backbone(images(1)))
    assert other.half().mean.dtype == torch.float16
    assert other._folded == []


@pytest.mark.parametrize("count", [1, 7, 8, 9, 17])
def test_no_batch_changes_a_single_bit(backbone: Backbone, count: int) -> None:
    pool = images(17)
    whole = backbone(pool)
    assert torch.equal(backbone(pool[:count]), whole[:count])
    order = torch.randperm(17, generator=torch.Generator().manual_seed(count))[:count]
    assert torch.equal(backbone(pool[order]), whole[order])


def test_an_empty_batch_has_no_features(backbone: Backbone) -> None:
    assert backbone(images(0)).shape == (0, 64, 4, 4)


def test_the_backbone_is_frozen(backbone: Backbone) -> None:
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    before = backbone(images(2))
    backbone.train()
    assert not backbone.net.training
    assert torch.equal(backbone(images(2)), before)


def test_the_bundled_weights_know_cats_and_coffee() -> None:
    """The package's tensors are matched to timm's by their order alone; one slip and nothing is recognised."""
    data = pytest.importorskip("skimage.data")
    from PIL import Image

    from fmad_dist.features.backbones import _bundled_weights

    net = timm.create_model("tf_efficientnet_lite0").eval()
    net.load_state_dict(_bundled_weights("tf_efficientnet_lite0"))
    for picture, answers in ((data.chelsea(), range(281, 286)), (data.coffee(), (504, 925, 967, 968))):
        pixels = np.asarray(Image.fromarray(picture).resize((224, 224)), np.float32)
        with torch.inference_mode():
            found = net(torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]).argmax().item()
        assert found in answers


@settings(max_examples=25)
@given(st.integers(1, 5), st.integers(1, 4))
def test_integer_ratios_are_plain_averages(grid: int, ratio: int) -> None:
    tap = torch.randn(2, 3, grid * ratio, grid * ratio)
    expected = tap.view(2, 3, grid, ratio, grid, ratio).mean(dim=(3, 5))
    torch.testing.assert_close(to_grid(tap, grid), expected)


def test_reduction_is_antialiased() -> None:
    """A strided bilinear read of stripes sees one colour only."""
    stripes = torch.zeros(1, 1, 16, 16)
    stripes[..., ::2] = 1.0
    torch.testing.assert_close(to_grid(stripes, 4), torch.full((1, 1, 4, 4), 0.5))


def test_coarse_maps_are_interpolated() -> None:
    found = to_grid(torch.tensor([[[[0.0, 4.0], [0.0, 4.0]]]]), 4)
    assert found[0, 0, 0].tolist() == [0.0, 1.0, 3.0, 4.0]
    tap = torch.randn(1, 2, 4, 4)
    assert torch.equal(to_grid(tap, 4), tap)


def test_the_digest_names_the_weights(backbone: Backbone) -> None:
    again = load_backbone(LITE)
    assert again.weights_digest() == backbone.weights_digest()
    with torch.no_grad():
        next(again.net.parameters()).view(-1)[0] += 1e-3
    assert again.weights_digest() != backbone.weights_digest()


def perturbed(name: str, **options: Any) -> dict[str, Tensor]:
    """State of the full timm model with weights of its own."""
    model = timm.create_model(name, **options)
    torch.manual_seed(1)
    return {key: tensor + 0.01 if tensor.is_floating_point() else tensor for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "spec", "options"),
    [
        ("tf_efficientnet_lite0", LITE, {}),
        ("resnet10t", FeatureSpec("resnet10t", (1, 2), 4, SIDE), {}),
        ("convnext_atto", FeatureSpec("convnext_atto", (1, 2), 4, SIDE), {}),  # timm renames its stages
        ("test_vit", FeatureSpec("test_vit", (2, 3), 4, 160), {}),  # timm wraps the whole model
        ("swin_s3_tiny_224", FeatureSpec("swin_s3_tiny_224", (0, 1), 4, 224), {}),  # channels last
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_files_of_all_kinds_of_models(
    tmp_path: Path, name: str, spec: FeatureSpec, options: dict[str, Any]
) -> None:
    state = perturbed(name, **options)
    save_file(state, tmp_path / "w.safetensors")
    found = load_backbone(spec, str(tmp_path / "w.safetensors"))
    full: Any = timm.create_model(name).eval()
    full.load_state_dict(state)
    batch = torch.randint(0, 256, (1, 3, spec.image_size, spec.image_size), dtype=torch.uint8)
    features = found(batch)
    assert features.shape == (1, found.num_channels, 4, 4)
    pixels = (batch.float() - found.mean) / found.std
    with torch.inference_mode():
        stages = full.forward_intermediates(pixels, indices=list(spec.taps), intermediates_only=True)
    expected = torch.cat([to_grid(stage, 4) for stage in stages], dim=1)
    torch.testing.assert_close(features.float(), expected, atol=0.02, rtol=0.02)


def test_weights_files_may_wrap_their_state(tmp_path: Path) -> None:
    state = perturbed("tf_efficientnet_lite0")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    torch.save(state, tmp_path / "v.pth")
    wrapped, plain = (load_backbone(LITE, str(tmp_path / name)) for name in ("w.pth", "v.pth"))
    assert wrapped.weights_digest() == plain.weights_digest() != load_backbone(LITE).weights_digest()


def test_unknown_backbones_name_near_ones() -> None:
    message = refusal(FeatureSpec("tf_eficientnet_lite0", (0,), 4, SIDE))
    assert "'tf_eficientnet_lite0'" in message
    assert "did you mean" in message
    assert "tf_efficientnet_lite0" in message
    assert "list_models" in refusal(FeatureSpec("zzzzzzzz", (0,), 4, SIDE))


@pytest.mark.parametrize("taps", [(9,), (0, 7), (0, 0), (-1,), (-9,)])
def test_stages_that_are_not_there_are_refused(taps: tuple[int, ...]) -> None:
    message = refusal(FeatureSpec("tf_efficientnet_lite0", taps, 4, SIDE))
    assert message.startswith("features.taps: ")
    assert str(list(taps)) in message


def test_a_tag_that_does_not_exist_is_refused() -> None:
    message = refusal(FeatureSpec("tf_efficientnet_lite0.nosuchtag", (0,), 4, SIDE))
    assert message.startswith("features.backbone: ")
    assert "nosuchtag" in message


def test_sizes_that_a_backbone_cannot_take_are_refused(tmp_path: Path) -> None:
    save_file(perturbed("test_vit"), tmp_path / "w.safetensors")
    message = refusal(FeatureSpec("test_vit", (2,), 4, 100), tmp_path / "w.safetensors")
    assert message.startswith("features.image_size: test_vit cannot take 100 px images")


def test_a_missing_weights_file_is_named(tmp_path: Path) -> None:
    assert "gone.pth does not exist" in refusal(LITE, tmp_path / "gone.pth")
    assert "does not exist" in refusal(LITE, tmp_path)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_files_that_hold_no_weights_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("hello")
    assert f"{name} is not a readable weights file" in refusal(LITE, tmp_path / name)
    (tmp_path / name).write_bytes(b"")
    assert f"{name} is not a readable weights file" in refusal(LITE, tmp_path / name)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"state_dict": 5}, {"conv_stem.weight": "text"}])
def test_pickles_that_are_no_state_are_named(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert "w.pth" in refusal(LITE, tmp_path / "w.pth")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_file(perturbed("resnet10t"), tmp_path / "w.safetensors")
    message = refusal(LITE, tmp_path / "w.safetensors")
    assert "belongs to another model" in message
    assert "w.safetensors" in message


def test_a_truncated_weights_file_is_refused(tmp_path: Path) -> None:
    save_file(perturbed("tf_efficientnet_lite0"), tmp_path / "w.safetensors")
    data = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(data[: len(data) // 2])
    assert "not a readable weights file" in refusal(LITE, tmp_path / "w.safetensors")


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise OSError("cannot reach the hub\nlong explanation")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    message = refusal(FeatureSpec("resnet10t", (0,), 4, SIDE))
    assert "resnet10t cannot be fetched (cannot reach the hub)" in message
    assert "features.weights" in message
