"""What careless readers of the official layouts get wrong, one test per trap."""

import io

import numpy as np
import pytest
from official_trees import SIZE, nearest

from data_tools.readers import read_source
from fmad_dist.stream.manifest import load_manifest
from fmad_dist.stream.reader import SampleReader


def sample_at(case, trap, suffix=""):
    return case.samples[case.facts["traps"][trap] + suffix]


@pytest.mark.parametrize("layout", ["mvtec", "mpdd"])
def test_one_pixel_defect(converted, layout):
    case = converted(layout)
    (fact,) = [f for f in case.facts["images"] if [m["pixels"] for m in f["masks"]] == [1]]
    sample = case.samples[fact["source"]]
    stored = case.stored_pixels(sample, sample.masks[0])
    assert np.argwhere(stored).tolist() == [[100 * SIZE // 160, 75 * SIZE // 120]]
    assert not nearest(case.published(fact["masks"][0]["file"])).any(), "nearest alone would have lost it"
    assert case.report.num_pooled_masks == 1


@pytest.mark.parametrize("layout", ["mvtec", "mpdd"])
def test_mask_of_several_parts(converted, layout):
    from scipy.ndimage import label

    case = converted(layout)
    name = case.facts["traps"]["mask of several parts"]
    (fact,) = [f for f in case.facts["images"] if name in [m["file"] for m in f["masks"]]]
    sample = case.samples[fact["source"]]
    assert label(case.stored_pixels(sample, sample.masks[0]))[1] == 2


def test_greyscale_class_becomes_rgb(converted):
    case = converted("mvtec")
    sample = case.samples["grid/train/good/000.png"]
    assert case.published("grid/train/good/000.png").ndim == 2
    assert case.stored_pixels(sample, sample.image).shape == (SIZE, SIZE, 3)


def test_visa_split_comes_from_the_list(converted):
    case = converted("visa")
    train = sorted(source for source, s in case.samples.items() if s.split == "train" and s.class_name == "candle")
    stems = sorted(int(source[-8:-4]) for source in train)
    assert stems != list(range(len(stems))), "the training images must not be the first ones"
    rows = (case.source / "split_csv/1cls.csv").read_text(encoding="utf-8").splitlines()
    assert {row.split(",")[3] for row in rows if row.startswith("candle,train,normal")} == set(train)


def test_visa_ids_are_kept_and_the_stored_mask_is_binary(converted):
    case = converted("visa")
    assert load_manifest(case.options.out).mask_semantics == "class_id"
    first = case.samples["candle/Data/Images/Anomaly/000.JPG"]
    assert first.mask_ids == ((1, 3),)
    assert case.samples["candle/Data/Images/Anomaly/001.JPG"].mask_ids == ((1,),)
    assert set(np.unique(case.stored_pixels(first, first.masks[0]))) == {0, 255}
    published = case.published("candle/Data/Masks/Anomaly/000.png")
    assert set(np.unique(published)) == {0, 1, 3}


def test_visa_same_number_in_normal_and_anomaly(converted):
    case = converted("visa")
    ids = {case.samples[f"cashew/Data/Images/{kind}/000.JPG"].sample_id for kind in ("Normal", "Anomaly")}
    assert len(ids) == 2


def test_visa_forms_have_the_same_samples(converted):
    official, other = converted("visa"), converted("visa", "converted")
    assert official.dataset.sample_ids == other.dataset.sample_ids
    assert other.report.manifest.mask_semantics == "binary"
    for one, two in zip(
        *(sorted(c.samples.values(), key=lambda s: s.sample_id) for c in (official, other)), strict=True
    ):
        assert one.image.sha256 == two.image.sha256
        assert [span.sha256 for span in one.masks] == [span.sha256 for span in two.masks]


@pytest.mark.parametrize("below", ["", "VisA_pytorch", "VisA_pytorch/1cls"])
def test_visa_converted_is_found_with_and_without_its_folders(converted, below):
    case = converted("visa", "converted")
    tree = read_source("visa", case.source / below, "tiny")
    assert [image.sample_id for image in tree.images] == case.dataset.sample_ids


def test_loco_keeps_every_mask_of_an_image(converted):
    case = converted("loco")
    sample = case.samples["pushpins/test/logical_anomalies/000.png"]
    assert sample.mask_ids == ((255,), (254,))
    first, second = (case.stored_pixels(sample, span) != 0 for span in sample.masks)
    assert (first & second).any()
    assert (first & ~second).any()
    assert (second & ~first).any()


def test_loco_keeps_masks_as_published_beside_resized_images(converted):
    """Without them the official metric, which is defined at the size of the source, could not be computed."""
    case = converted("loco")
    assert not case.dataset.manifest.rendition.original
    reader, sources = SampleReader(case.dataset), case.dataset.table.column("source").to_pylist()
    facts, num_compared = {fact["source"]: fact for fact in case.facts["images"]}, 0
    for row, source in enumerate(sources):
        assert case.samples[source].original is None
        for mask, published in zip(reader.native_masks(row), facts[source]["masks"], strict=True):
            np.testing.assert_array_equal(mask, case.published(published["file"]) != 0)
            num_compared += 1
    assert num_compared == 6
    assert case.dataset.stores_native_masks
    assert not converted("mvtec").dataset.stores_native_masks


def test_loco_id_below_128(converted):
    case = converted("loco")
    sample = case.samples["breakfast_box/test/structural_anomalies/000.png"]
    assert sample.mask_ids == ((100,),)
    assert case.stored_pixels(sample, sample.masks[0]).any()


def test_loco_saturation(converted):
    manifest = load_manifest(converted("loco").options.out)
    assert manifest.mask_semantics == "channel"
    rules = [rule.model_dump() for rule in manifest.saturation["splicing_connectors"]]
    fields = ("defect_name", "pixel_value", "saturation_threshold", "relative_saturation")
    assert [tuple(rule[field] for field in fields) for rule in rules] == [
        ("wrong_cable", 255, 40, False),
        ("flipped_connector", 254, 0.25, True),
    ]
    whole = manifest.saturation["breakfast_box"][1].saturation_threshold
    assert (whole, type(whole)) == (1.0, float), "a share of 1.0 must not come back as one pixel"


@pytest.mark.parametrize("layout", ["loco", "mvtec3d"])
def test_validation_is_a_split_of_its_own(converted, layout):
    case = converted(layout)
    folder = case.facts["traps"]["validation split"]
    own = [sample for source, sample in case.samples.items() if source.startswith(folder)]
    assert [(sample.split, sample.label) for sample in own] == [("val", 0)] * 2
    assert {shard.split for shard in case.report.manifest.shards} == {"train", "val", "test"}


def test_points_keep_their_bits_and_holes(converted):
    case = converted("mvtec3d")
    for fact in case.facts["images"]:
        sample = case.samples[fact["source"]]
        points = np.load(io.BytesIO(case.stored(sample, sample.xyz)))
        published = case.published(fact["xyz"])
        assert points.dtype == np.float32
        assert np.array_equal(points, nearest(published))
        missing = ~points.any(axis=-1)
        assert missing.any()
        assert not missing.all()
        assert points[~missing][:, 2].min() > 0.39, "a missing point must not be mixed into its neighbours"


def test_points_and_masks_show_the_same_pixels(converted):
    case = converted("mvtec3d")
    (fact,) = [f for f in case.facts["images"] if f["source"] == "rope/test/cut/rgb/000.png"]
    sample = case.samples[fact["source"]]
    points = np.load(io.BytesIO(case.stored(sample, sample.xyz)))
    marked = case.stored_pixels(sample, sample.masks[0]) != 0
    published_mask, published = case.published(fact["masks"][0]["file"]) != 0, case.published(fact["xyz"])
    inside = {tuple(point) for point in published[published_mask]}
    assert {tuple(point) for point in points[marked]} <= inside
    assert not {tuple(point) for point in points[~marked] if point.any()} & inside


def test_mask_of_a_normal_scan_is_no_defect(converted):
    case = converted("mvtec3d")
    assert (case.source / "bagel/test/good/gt/000.png").exists()
    assert case.samples["bagel/test/good/rgb/000.png"].masks == ()


@pytest.mark.parametrize("tree", ["flat", "nested"])
def test_normal_view_of_a_defective_part(converted, tree):
    case = converted("realiad", tree)
    below_ng = [sample for source, sample in case.samples.items() if "/NG/" in source]
    assert {sample.label for sample in below_ng} == {0, 1}
    normal = next(s for s in below_ng if s.group == "audiojack_0001_NG_AK" and s.view == "C2")
    assert (normal.label, normal.defect_type, normal.masks) == (0, "good", ())
    assert {sample.defect_type for sample in below_ng} == {"good", "AK", "BX", "CH", "HS", "PS", "QS", "YW", "ZW"}


@pytest.mark.parametrize("tree", ["flat", "nested"])
def test_views_of_a_part_share_a_group(converted, tree):
    case = converted("realiad", tree)
    groups: dict[str, list[str]] = {}
    for sample in case.samples.values():
        groups.setdefault(sample.group, []).append(sample.view)
    assert {tuple(sorted(views)) for views in groups.values()} == {("C1", "C2", "C3", "C4", "C5")}
    assert {"audiojack_0001_OK", "audiojack_0001_NG_AK"} <= groups.keys(), "one number, two parts"


def test_realiad_masks_are_no_images(converted):
    assert not any(source.endswith(".png") for source in converted("realiad", "flat").samples)


def test_realiad_nestings_have_the_same_samples(converted):
    flat, nested = converted("realiad", "flat"), converted("realiad", "nested")
    assert flat.dataset.sample_ids == nested.dataset.sample_ids


def test_realiad_all_views_are_preferred_to_the_single_view_split(converted):
    case = converted("realiad", "flat")
    assert (case.source / "realiad_jsons_sv").is_dir()
    assert {sample.view for sample in case.samples.values()} == {"C1", "C2", "C3", "C4", "C5"}


def test_realiad_resolution_folder_as_source(converted):
    case = converted("realiad", "flat")
    tree = read_source("realiad", case.source / "realiad_256", "tiny")
    assert [image.sample_id for image in tree.images] == case.dataset.sample_ids


def test_folder_rows_with_awkward_text(converted):
    case = converted("folder", "csv")
    sample = sample_at(case, "comma in a name")
    assert (sample.sample_id, len(sample.masks)) == ("tiny/bolt/test/scratch/line 3/scratched, bent", 2)
    assert case.samples["line 3/good/3.jpg"].split == "val"
    assert sample_at(case, "dot in a name").sample_id == "tiny/nut/train/good/nuts/no.0"


def test_folder_tree_splits_by_name_alone(converted):
    case = converted("folder", "tree")
    tested = {source for source, sample in case.samples.items() if sample.split == "test" and not sample.label}
    assert tested == {"bolt/good/c.png", "nut/good/c.png"}
