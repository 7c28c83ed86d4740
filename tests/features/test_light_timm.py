"""timm without the compiler is timm, and the compiler is there for whoever compiles."""

import subprocess
import sys

CODE = """
import sys
import torch
import fmad_dist.evaluation.evaluate
from fmad_dist.features.backbones import FeatureSpec, load_backbone
assert not [name for name in sys.modules if name.startswith("torch._dynamo")], "the compiler was imported"
backbone = load_backbone(FeatureSpec("tf_efficientnet_lite0", (1, 2), 4, 64))
images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    eager = backbone(images)
assert "torch._dynamo" not in sys.modules
boxes = torch.tensor([[0.0, 0.0, 0.0, 8.0, 8.0]])
import torchvision
assert torchvision.ops.roi_align(images[:1], boxes, 2).shape == (1, 3, 2, 2)
compiled = torch.compile(lambda x: backbone(x) * 2, backend="eager")
with torch.no_grad():
    torch.testing.assert_close(compiled(images), eager * 2)
from torch._dynamo.utils import is_compile_supported
assert is_compile_supported is not sys.modules["fmad_dist.features.light_timm"].is_compile_supported
assert torch.compiler.disable.__module__ == "torch.compiler"
"""


def test_the_compiler_is_imported_by_whoever_compiles() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
