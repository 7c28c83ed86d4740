"""Official counts of Real-IAD: per class for the split with all views, totals for every split."""

from data_tools.readers.official import Benchmark, OfficialCounts

# test images showing a defect / test images showing none
_TESTED = """
    audiojack 1296/2519, bottle_cap 1631/2154, button_battery 2150/1640, end_cap 2183/1622, eraser 1488/2347,
    fire_hood 1350/2420, mint 2099/2371, mounts 1338/2462, pcb 2289/1486, phone_battery 1550/2240,
    plastic_nut 1246/2509, plastic_plug 1419/2361, porcelain_doll 1255/2535, regulator 1080/2775,
    rolled_strip_base 2525/1280, sim_card_set 2069/1716, switch 1994/1826, tape 1443/2407, terminalblock 2008/1822,
    toothbrush 2027/1753, toy 2190/1585, toy_brick 1536/2234, transistor1 2117/1638, u_block 1214/2526, usb 1754/2066,
    usb_adaptor 1520/2340, vcpill 1470/2295, wooden_beads 1684/2231, woodstick 1073/2677, zipper 2331/1419
"""


def _tested() -> dict[str, OfficialCounts]:
    classes = {}
    for entry in _TESTED.split(","):
        name, numbers = entry.split()
        anomalous, normal = map(int, numbers.split("/"))
        classes[name] = OfficialCounts(val=0, test_normal=normal, test_anomalous=anomalous)
    return classes


PARTS = _tested()

# realiad_jsons_sv keeps view C1 only; the fuiad splits put a share of anomalous images into the training set.
VARIANTS = {
    "realiad_jsons": OfficialCounts(36465, 0, 63256, 51329),
    "realiad_jsons_sv": OfficialCounts(10408, 0, 10387, 9415),
    "realiad_jsons_fuiad_0.0": OfficialCounts(57840, 0, 20157, 9843),
}


def realiad(total: OfficialCounts, per_class: bool) -> Benchmark:
    """Real-IAD with the totals of one split."""
    return Benchmark(
        name="Real-IAD",
        licence="unknown",
        citation="C. Wang, W. Zhu, B.-B. Gao, Z. Gan, J. Zhang, Z. Gu, S. Qian, M. Chen, L. Ma: Real-IAD: A Real-World "
        "Multi-View Dataset for Benchmarking Versatile Industrial Anomaly Detection, CVPR 2024",
        classes=PARTS if per_class else dict.fromkeys(PARTS, OfficialCounts()),
        total=total,
    )
